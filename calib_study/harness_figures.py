"""The figure of the adapter's speed beside the harness's own class, and what it shows in words."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import BLUE, MUTED, TEXT, canvas, need_rows, number, rows_of

ROW = 0.24  # inches of height for one row of text
HIGHER = "higher is better →"


def fig_harness_speed(table: pd.DataFrame) -> Figure:
    """Return how many times as long the stock class takes as the adapter, for each task and number of examples.

    table: from `harness_tables.harness_table`. A bar that misses its target is pale.
    """
    need_rows(table, "fig_harness_speed")
    rows = rows_of(table)
    with canvas(len(rows) * ROW + 1.05) as (figure, (ax,)):
        for y, row in enumerate(rows):
            ax.barh(y, row["ratio"], height=0.6, color=BLUE, alpha=0.85 if row["met"] else 0.4)
            ax.plot(row["target"], y, "|", color=TEXT, markersize=11, markeredgewidth=1.8, zorder=3)
            label = number(row["ratio"]) + ("" if row["met"] else ", target missed")
            ax.annotate(label, (max(row["ratio"], row["target"]), y), xytext=(7, 0), textcoords="offset points",
                        va="center", fontsize=9)  # fmt: skip
        ax.axvline(1, color=MUTED, linewidth=0.8)
        ax.set_yticks(range(len(rows)), [_label(row) for row in rows])
        longest = max(max(row["ratio"], row["target"]) for row in rows)
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, (1.12 if table["met"].all() else 1.3) * longest))
        ax.set_xlabel(f"{_clock(table)} of the stock class over that of the adapter   {HIGHER}")
        ax.grid(False)
        equal = Line2D([], [], color=MUTED, linewidth=0.8)
        target = Line2D([], [], linestyle="", marker="|", color=TEXT, markersize=11, markeredgewidth=1.8)
        figure.legend([equal, target], ["as fast as the stock class", "target"], loc="outside lower right", ncols=2)
    return figure


def describe_harness_speed(table: pd.DataFrame) -> str:
    """Return the alt text of `fig_harness_speed`, with how far the answers of the two agree."""
    need_rows(table, "describe_harness_speed")
    rows = rows_of(table)
    slow, fast = min(rows, key=lambda row: row["ratio"]), max(rows, key=lambda row: row["ratio"])
    met = [_label(row) for row in rows if row["met"]]
    missed = [
        f"{_label(row)} ({number(row['ratio'])}, target {number(row['target'])})" for row in rows if not row["met"]
    ]
    parts = [
        f"{_clock(table)} of the stock class over that of the adapter: from {number(slow['ratio'])} ({_label(slow)}) "
        f"to {number(fast['ratio'])} ({_label(fast)})."
    ]
    parts += [f"Targets met: {'; '.join(met)}."] if met else []
    parts += [f"Targets missed: {'; '.join(missed)}."] if missed else ["No target is missed."]
    parts.append(describe_harness_agreement(table))
    parts.append(f"Beside the model's answers, an evaluation takes {number(table['overhead_s'].max())} s at most.")
    return " ".join(parts)


def describe_harness_agreement(table: pd.DataFrame) -> str:
    """Return in words how far the answers of adapter and stock class agree."""
    need_rows(table, "describe_harness_agreement")
    differ = [f"{_label(row)}: {row['items_that_differ']}" for row in rows_of(table) if row["items_that_differ"]]
    share = f"{table['items_that_differ'].sum():,} of {table['items'].sum():,} items"
    where = f" ({'; '.join(differ)})" if differ else ""
    return (
        f"acc or acc_norm differs on {share}{where}. The largest difference of a log-likelihood is "
        f"{table['max_abs_difference'].max():.1e} nats."
    )


def _label(row: dict[str, Any]) -> str:
    return f"{row['task']}, {row['shots']} shots"


def _clock(table: pd.DataFrame) -> str:
    return "CPU time" if table.attrs.get("device", "cpu") == "cpu" else "Time"
