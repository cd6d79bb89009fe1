"""Figures of the chapter on schedules: tables of `schedule_tables` and `mask_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import (
    METHOD_STYLE,
    MUTED,
    TEXT,
    canvas,
    method_label,
    need_rows,
    number,
    rows_of,
    seed_legend,
    source_label,
    source_marks,
    unique,
)
from calib_study.verdicts import SMALLEST_EFFECT

ROW = 0.24  # inches of height for one row of text
BAND = "#E6E9ED"  # what is too small to matter
LOWER = "← lower is better"
DRAWN = ("textbook", "block", "sequential", "dense", "its extra pass")


def fig_schedule_changes(
    differences: pd.DataFrame, changes: pd.DataFrame, by: str = "schedule", label: str = "damage minus that under block"
) -> Figure:
    """Return how damage moves when the schedule does: a panel for each method and schedule, a point for each draw.

    Args:
        differences: from `schedule_tables.schedule_differences`. changes: from `change_table`.
        by, label: the column that stands for the schedule in tables of other changes, and what a difference is.
    """
    need_rows(changes, "fig_schedule_changes")
    methods, schedules = unique(changes["method"]), unique(changes[by])
    texts = unique(differences["source"])
    marks = source_marks(sorted(texts))
    height = len(methods) * ((len(texts) + 1) * ROW + 0.42) + 0.95
    with canvas(height, len(methods), len(schedules), sharex="col", sharey=True) as (figure, axes):
        for ax, (method, schedule) in zip(axes, ((m, s) for m in methods for s in schedules), strict=True):
            here = _of(differences, method, schedule, by)
            ax.axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=BAND, zorder=0)
            ax.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
            for y, text in enumerate(texts):
                seeds = here.loc[here["source"] == text, "difference"]
                ax.plot(seeds, [y] * len(seeds), marks[text].marker, color=marks[text].colour, alpha=0.6, markersize=5)
            for row in rows_of(_of(changes, method, schedule, by)):
                ax.plot([row["low"], row["high"]], [len(texts)] * 2, color=TEXT, linewidth=1.6)
                ax.plot(row["mean"], len(texts), "o", color="white", markeredgecolor=TEXT, markeredgewidth=1.2)
            ax.set_title(f"{method_label(method)}: {schedule}")
            ax.set_yticks(range(len(texts) + 1), [*(source_label(text, 14) for text in texts), "all texts"])
            ax.set_ylim(len(texts) + 0.5, -0.6)
        for ax in axes[-len(schedules) :]:
            ax.set_xlabel(f"{label} (nats)\n{LOWER}")
        seed_legend(figure, int(changes["n_seeds"].max()), "mean of all texts")
    return figure


def describe_schedule_changes(
    changes: pd.DataFrame, by: str = "schedule", label: str = "Damage minus that under the schedule block"
) -> str:
    """Return the alt text of `fig_schedule_changes`."""
    parts = [
        f"{method_label(row['method'])}, {row[by]}: {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        for row in rows_of(changes)
    ]
    return f"{label}, in nats per token, with 95 % interval: {'; '.join(parts)}."


def fig_order_by_schedule(means: pd.DataFrame, order: pd.DataFrame) -> Figure:
    """Return how far the texts lie apart under each schedule; lines that cross are texts that change places.

    Each text's mean damage, minus the mean of all texts under that schedule. A grey bar is as long as the range
    would be at most, in 95 of 100 cases, if all texts were one.

    Args:
        means: `interval_table(damage, ["method", "schedule", "source"], "damage")`.
        order: from `schedule_tables.order_table`.
    """
    need_rows(order, "fig_order_by_schedule")
    methods, schedules = unique(order["method"]), unique(order["schedule"])
    texts = unique(means["source"])
    marks = source_marks(sorted(texts))
    height = len(methods) * (1.6 * ROW * len(schedules) + 0.35) + 0.95
    with canvas(height, len(methods), 1, sharex=True) as (figure, axes):
        for ax, method in zip(axes, methods, strict=True):
            table = means[means["method"] == method].pivot(index="schedule", columns="source", values="mean")
            for y, row in enumerate(rows_of(order[order["method"] == method])):
                ax.barh(y, row["null_q95"], left=-row["null_q95"] / 2, height=0.5, color=BAND)
                said = f"range {row['range']:.3f}" + (f"\nτ = {row['tau']:.2f}" if y else "")
                ax.annotate(said, (1, y), xycoords=ax.get_yaxis_transform(), va="center", ha="right", fontsize=9)
            for text in texts:
                points = (table[text] - table.mean(axis=1)).reindex(schedules)
                style: dict[str, Any] = {"markeredgecolor": TEXT, "markeredgewidth": 0.6}
                style |= {"color": marks[text].colour, "marker": marks[text].marker}
                ax.plot(points, range(len(schedules)), linewidth=0.9, **style)
            ax.set_title(method_label(method))
            ax.set_yticks(range(len(schedules)), schedules)
            ax.set_ylim(len(schedules) - 0.5, -0.5)
        low, high = axes[0].get_xlim()
        axes[0].set_xlim(low, high + 0.2 * (high - low))  # room for what is written on the right
        axes[-1].set_xlabel(f"damage minus the mean of the texts (nats per token)   {LOWER}")
        keys: list[Any] = [
            Line2D([], [], color=mark.colour, marker=mark.marker, linestyle="") for mark in marks.values()
        ]
        figure.legend(keys, [source_label(text) for text in marks], loc="outside lower center", ncols=min(5, len(keys)))
    return figure


def describe_order_by_schedule(order: pd.DataFrame) -> str:
    """Return the alt text of `fig_order_by_schedule`."""
    parts = [
        f"{method_label(row['method'])}, {row['schedule']}: {row['best']} best, {row['worst']} worst, "
        f"range {row['range']:.3f} (if one text: below {row['null_q95']:.3f}), tau {row['tau']:.2f}"
        for row in rows_of(order)
    ]
    return f"Mean damage of the texts under each schedule, tau against block. {'; '.join(parts)}."


def fig_mask_disagreement(masks: pd.DataFrame) -> Figure:
    """Return the share of weights on which two runs disagree, for each pair of runs that differ in one thing only.

    masks: from `mask_tables.mask_table`. A point is a pair of runs, the mark their mean.
    """
    need_rows(masks, "fig_mask_disagreement")
    labels = _mask_labels(masks)
    methods = unique(masks["method"].dropna())
    found: dict[tuple[str, str | None], pd.Series[float]] = {}
    for label in unique(labels):
        for method in (*methods, None):
            same = masks["method"].isna() if method is None else masks["method"] == method
            if len(shares := 100 * masks.loc[(labels == label) & same, "share"]):
                found[label, method] = shares
    with canvas(len(found) * ROW + 0.95) as (figure, (ax,)):
        for y, ((_, method), shares) in enumerate(found.items()):
            colour = MUTED if method is None else _colour(method)
            ax.plot(shares, [y] * len(shares), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            ax.plot(shares.mean(), y, "o", color=colour, markeredgecolor=TEXT, markeredgewidth=0.9)
            ax.annotate(f"{shares.mean():.1f} %", (shares.max(), y), xytext=(8, 0), va="center", fontsize=9,
                        textcoords="offset points")  # fmt: skip
        ax.set_yticks(range(len(found)), [label + (f", {method_label(m)}" if m else "") for label, m in found])
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.set_xlim(0, 1.15 * max(0.1, *(shares.max() for shares in found.values())))
        ax.set_xlabel("weights that are removed in one of two models only (%)")
    return figure


def describe_mask_disagreement(masks: pd.DataFrame) -> str:
    """Return the alt text of `fig_mask_disagreement`."""
    named = masks.assign(label=_mask_labels(masks), method=masks["method"].fillna(""))
    means = named.groupby(["label", "method"], sort=False)["share"].mean().reset_index()
    parts = [
        row["label"] + (f" ({method_label(row['method'])})" if row["method"] else "") + f" {100 * row['share']:.1f} %"
        for row in rows_of(means)
    ]
    return f"Mean share of weights removed in one of two models only: {'; '.join(parts)}."


def fig_prune_cost(cost: pd.DataFrame) -> Figure:
    """Return the cost of pruning by each method and schedule, and by a textbook program, in forwards.

    cost: from `schedule_tables.cost_table`; of its rows those on `DRAWN` work, if they have `forwards`.
    """
    rows = rows_of(_drawn(cost))
    need_rows(_drawn(cost), "fig_prune_cost")
    with canvas(len(rows) * ROW + 0.75) as (figure, (ax,)):
        for y, row in enumerate(rows):
            forwards = row["forwards"]
            plain = row["work"].endswith("textbook")
            ax.barh(y, forwards, height=0.6, color=_colour(row["work"]), alpha=0.4 if plain else 0.85)
            label = [number(forwards)]
            if pd.notna(row["baseline_ratio"]):
                label.append(f"{number(row['baseline_ratio'])} times faster")
            if pd.notna(row["met"]):
                label.append("target met" if row["met"] else "target missed")
            ax.annotate(", ".join(label), (forwards, y), xytext=(6, 0), textcoords="offset points", va="center",
                        fontsize=9)  # fmt: skip
        ax.set_yticks(range(len(rows)), [_work_label(row) for row in rows])
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.25 * max(row["forwards"] for row in rows)))
        ax.set_xlabel(f"CPU time, in dense forwards of the same dtype   {LOWER}")
        ax.grid(False)
    return figure


def describe_prune_cost(cost: pd.DataFrame) -> str:
    """Return the alt text of `fig_prune_cost`."""
    parts = []
    for row in rows_of(_drawn(cost)):
        ratio = row["baseline_ratio"]
        faster = "" if pd.isna(ratio) else f" ({number(ratio)} times faster than the textbook)"
        parts.append(f"{_work_label(row)} {number(row['forwards'])}{faster}")
    aimed = cost.loc[cost["met"].notna(), "met"]
    met = f" Rows of the benchmark that meet their targets: {int(aimed.sum())} of {len(aimed)}." if len(aimed) else ""
    return f"Cost in dense forwards of the calibration windows: {'; '.join(parts)}.{met}"


def _drawn(cost: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that `fig_prune_cost` draws."""
    kinds = cost["work"].astype(str).str.partition(", ")[2]
    return cost[kinds.isin(DRAWN) & cost["forwards"].notna()]


def _mask_labels(masks: pd.DataFrame) -> "pd.Series[str]":
    """Return what the two runs of each row differ in, as shown."""
    names = {"seed": "another draw", "source": "another text", "method": "another method"}
    pairs = masks["one"] + " / " + masks["other"]
    return pairs.where(masks["differs"] == "schedule", masks["differs"].map(names))


def _work_label(row: dict[str, Any]) -> str:
    return f"{row['work']}, {row['dtype']}"


def _colour(name: str) -> str:
    """Return the colour of the method that a name begins with; grey if none."""
    method = name.partition(",")[0]
    return METHOD_STYLE[method].colour if method in METHOD_STYLE else MUTED


def _of(table: pd.DataFrame, method: str, setting: str, by: str = "schedule") -> pd.DataFrame:
    return table[(table["method"] == method) & (table[by] == setting)]
