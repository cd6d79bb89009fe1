"""Figures of the chapter on text of the model's own: tables of `own_text_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import (
    BLUE,
    MUTED,
    TEXT,
    Mark,
    canvas,
    measure_label,
    method_label,
    need_rows,
    number,
    rows_of,
    seed_legend,
    source_label,
    source_marks,
    unique,
)
from calib_study.measures import MEASURES
from calib_study.verdicts import SMALLEST_EFFECT

ROW = 0.24  # inches of height for one row of text
BAND = "#E6E9ED"  # what is too small to matter
LOWER = "← lower is better"
OWN_MARKERS = ("H", "p", "8")  # none of a source in the catalogue
LONGEST = 22  # characters of a text's name
NEAR_FLOOR = 1.5  # times the least time: as good as three times plain `generate`
SETS = ("real", "real, twice", "real + own")


def text_marks(real: Iterable[str], own: Mapping[str, str]) -> dict[str, Mark]:
    """Return a mark for each text: own text has the hue of its prefix source, and another marker.

    Args:
        real: names of sources. own: prefix source -> name of the own text.

    >>> marks = text_marks(["c4"], {"c4": "selfgen:x"})
    >>> marks["c4"].colour == marks["selfgen:x"].colour, marks["selfgen:x"].marker
    (True, 'H')
    """
    marks = source_marks(dict.fromkeys([*real, *own]))
    for prefix, name in own.items():
        colour = marks[prefix].colour
        free = [Mark(colour, marker) for marker in OWN_MARKERS if Mark(colour, marker) not in marks.values()]
        marks[name] = free[0] if free else Mark(colour, OWN_MARKERS[0])
    return marks


# --- own beside real text ---------------------------------------------------------------------------------


def fig_own_gaps(runs: pd.DataFrame, gaps: pd.DataFrame, own: Mapping[str, str]) -> Figure:
    """Return the damage of every text minus the mean of the real texts, one panel for each method.

    Args:
        runs: from `own_text_tables.run_gaps`. gaps: from `gap_table`. own: prefix source -> name of the own text.
    """
    need_rows(gaps, "fig_own_gaps")
    methods = unique(gaps["method"])
    shown = gaps.drop_duplicates("source")
    marks = text_marks(shown.loc[~shown["own"], "source"], own)
    n_real = int((~shown["own"]).sum())
    n_seeds = int(runs["seed"].nunique())
    with canvas(len(shown) * ROW + 1.35, 1, len(methods), sharex=True, sharey=True) as (figure, axes):
        for ax, method in zip(axes, methods, strict=True):
            ax.axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=BAND, zorder=0)
            ax.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
            ax.axhline(n_real - 0.5, color=MUTED, linewidth=0.8, linestyle=":", zorder=1)
            for y, row in enumerate(rows_of(gaps[gaps["method"] == method])):
                here = runs[(runs["method"] == method) & (runs["source"] == row["source"])]
                _dots(ax, here["gap"], y, marks[row["source"]])
                _mean(ax, row, y, marks[row["source"]])
            ax.set_title(method_label(method))
            ax.set_yticks(range(len(shown)), [source_label(name, LONGEST) for name in shown["label"]])
            ax.set_ylim(len(shown) - 0.4, -0.6)
            ax.set_xlabel(f"damage minus mean of\nreal texts (nats)\n{LOWER}")
        seed_legend(figure, n_seeds, "mean")
    return figure


def describe_own_gaps(gaps: pd.DataFrame) -> str:
    """Return the alt text of `fig_own_gaps`."""
    need_rows(gaps, "describe_own_gaps")
    parts = []
    for method in unique(gaps["method"]):
        rows = rows_of(gaps[gaps["method"] == method])
        own = [f"{row['label']} {row['mean']:+.3f} (rank {row['rank']})" for row in rows if row["own"]]
        real = sorted((row for row in rows if not row["own"]), key=lambda row: row["mean"])
        parts.append(
            f"{method_label(method)}: {', '.join(own)}; real texts from {real[0]['label']} {real[0]['mean']:+.3f} to "
            f"{real[-1]['label']} {real[-1]['mean']:+.3f}"
        )
    n = len(gaps.drop_duplicates("source"))
    return f"Damage minus the mean of real texts, in nats per token, rank 1 the best of {n}. {'. '.join(parts)}."


def describe_comparison(table: pd.DataFrame) -> str:
    """Return in words how own text compares, from `own_text_tables.comparison_table`: one sentence for each method."""
    need_rows(table, "describe_comparison")
    parts = []
    for method in unique(table["method"]):
        rows = rows_of(table[table["method"] == method])
        said = [f"minus {row['against']} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in rows]
        parts.append(f"{method_label(method)}: {', '.join(said)}")
    names = [f"{measure_label(name)} ({MEASURES[name][1]})" for name in unique(table["measure"])]
    return f"Own text in {', '.join(names)}, negative where it is better: {'; '.join(parts)}."


def fig_prefix_sources(table: pd.DataFrame, own: Mapping[str, str]) -> Figure:
    """Return how far the prefix sources lie apart as calibration texts, and the own texts that continue them.

    A grey bar is as long as the range would be at most, in 95 of 100 cases, if all texts of a row were one.

    Args:
        table: from `own_text_tables.prefix_source_table`. own: prefix source -> name of the own text.
    """
    need_rows(table, "fig_prefix_sources")
    kinds, prefixes = unique(table["kind"]), unique(table["prefix"])
    marks = text_marks(prefixes, own)
    with canvas(len(kinds) * 1.9 * ROW + 1.05) as (figure, (ax,)):
        for y, kind in enumerate(kinds):
            here = table[table["kind"] == kind]
            first, centre = rows_of(here)[0], here["mean"].mean()
            ax.barh(y, first["null_q95"], left=centre - first["null_q95"] / 2, height=0.55, color=BAND)
            ax.annotate(f"range {first['range']:.3f}", (1, y), xycoords=ax.get_yaxis_transform(), va="center",
                        ha="right", fontsize=9)  # fmt: skip
        for prefix in prefixes:
            points = [
                table.loc[(table["kind"] == kind) & (table["prefix"] == prefix), "mean"].iloc[0] for kind in kinds
            ]
            ax.plot(points, range(len(kinds)), color=marks[prefix].colour, linewidth=0.9)
            for y, (kind, x) in enumerate(zip(kinds, points, strict=True)):
                mark = marks[prefix] if kind == "real" else marks[own[prefix]]
                ax.plot(x, y, mark.marker, color=mark.colour, markeredgecolor=TEXT, markeredgewidth=0.6)
        ax.set_yticks(range(len(kinds)), [{"real": "the text itself", "own": "own text after it"}[k] for k in kinds])
        ax.set_ylim(len(kinds) - 0.5, -0.5)
        low, high = ax.get_xlim()
        ax.set_xlim(low, high + 0.2 * (high - low))  # room for what is written on the right
        ax.set_xlabel(f"damage (nats per token)   {LOWER}")
        keys = [Line2D([], [], color=marks[p].colour, marker=marks[p].marker, linestyle="") for p in prefixes]
        figure.legend(keys, [source_label(name) for name in prefixes], loc="outside lower center", ncols=len(keys))
    return figure


def describe_prefix_sources(table: pd.DataFrame) -> str:
    """Return the alt text of `fig_prefix_sources`."""
    need_rows(table, "describe_prefix_sources")
    parts = []
    for kind, name in (("real", "real texts"), ("own", "own texts after them")):
        rows = sorted(rows_of(table[table["kind"] == kind]), key=lambda row: row["mean"])
        parts.append(
            f"{name}: range {rows[0]['range']:.3f} from {rows[0]['prefix']} {rows[0]['mean']:.3f} to "
            f"{rows[-1]['prefix']} {rows[-1]['mean']:.3f} (if one text: below {rows[0]['null_q95']:.3f}; they differ: "
            f"{rows[0]['verdict']})"
        )
    return f"Damage in nats per token by prefix source. {'; '.join(parts)}."


# --- prefix length, own text added ------------------------------------------------------------------------


def fig_prefix_length(runs: pd.DataFrame, lengths: pd.DataFrame, reference: float, prefix: str) -> Figure:
    """Return the damage of own text by the number of real tokens it begins with.

    Args:
        runs: length and damage of single runs. lengths: from `own_text_tables.length_table`.
        reference: damage of the prefix source itself, and `prefix` its name.
    """
    need_rows(lengths, "fig_prefix_length")
    rows = rows_of(lengths)
    mark = text_marks([prefix], {prefix: ""})[""]
    chosen = next(row["level"] for row in rows if not row["better"])
    with canvas(3.0) as (figure, (ax,)):
        ax.axhspan(chosen - SMALLEST_EFFECT, chosen + SMALLEST_EFFECT, color=BAND, zorder=0)
        ax.axhline(reference, color=mark.colour, linewidth=1, linestyle=":")
        ax.plot(range(len(rows)), [row["level"] for row in rows], color=mark.colour, linewidth=0.9)
        for x, row in enumerate(rows):
            seeds = runs.loc[runs["length"] == row["length"], "damage"]
            ax.plot(
                [x] * len(seeds), seeds, mark.marker, color=mark.colour, alpha=0.35, markersize=4, markeredgewidth=0
            )
            ax.plot([x, x], [row["level_low"], row["level_high"]], color=mark.colour, linewidth=1.6)
            ax.plot(x, row["level"], mark.marker, color=mark.colour, markeredgecolor=TEXT, markeredgewidth=0.9)
        ax.annotate(source_label(prefix) + " itself", (1, reference), xycoords=ax.get_yaxis_transform(), ha="right",
                    va="bottom", fontsize=9, color=MUTED)  # fmt: skip
        ax.set_xticks(range(len(rows)), [str(row["length"]) for row in rows])
        ax.set_xlim(-0.4, len(rows) - 0.6 + 0.35)
        ax.set_xlabel("tokens of real text at the beginning of a text")
        ax.set_ylabel("damage (nats per token)\n" + LOWER)
        seed_legend(figure, int(runs.groupby("length").size().max()), "mean")
    return figure


def describe_prefix_length(lengths: pd.DataFrame, reference: float, prefix: str) -> str:
    """Return the alt text of `fig_prefix_length`."""
    need_rows(lengths, "describe_prefix_length")
    parts = [
        f"{row['length']} tokens {row['level']:.3f}"
        + (f" ({row['mean']:+.3f}, {row['alike']})" if row["alike"] else "")
        for row in rows_of(lengths)
    ]
    chosen = next(row["length"] for row in rows_of(lengths) if not row["better"])
    return (
        f"Damage in nats per token by length of the prefix, and difference from {chosen} tokens: {'; '.join(parts)}. "
        f"{prefix} itself has {reference:.3f}."
    )


def fig_own_added(runs: pd.DataFrame) -> Figure:
    """Return the damage with real text, twice as much of it, and own text in its second half; lines join a seed's runs.

    runs: from `own_text_tables.added_runs`.
    """
    need_rows(runs, "fig_own_added")
    prefixes = unique(runs["prefix"])
    names = {"real": "real", "real, twice": "twice as much real", "real + own": "real, and as much own"}
    with canvas(len(prefixes) * (len(SETS) * 1.25 * ROW + 0.35) + 0.75, len(prefixes), 1, sharex=True) as (
        figure,
        axes,
    ):
        for ax, prefix in zip(axes, prefixes, strict=True):
            here = runs[runs["prefix"] == prefix]
            mark = text_marks([prefix], {})[prefix]
            for _, seed in here.groupby("seed"):
                values = seed.set_index("set")["damage"].reindex(list(SETS))
                ax.plot(values, range(len(SETS)), "-o", color=mark.colour, alpha=0.4, linewidth=0.8, markersize=4)
            means = here.groupby("set")["damage"].mean()
            for y, name in enumerate(SETS):
                ax.plot(means[name], y, mark.marker, color=mark.colour, markeredgecolor=TEXT, markeredgewidth=0.9)
            ax.set_title(source_label(prefix))
            ax.set_yticks(range(len(SETS)), [names[name] for name in SETS])
            ax.set_ylim(len(SETS) - 0.5, -0.5)
        axes[-1].set_xlabel(f"damage (nats per token)   {LOWER}")
    return figure


def describe_own_added(runs: pd.DataFrame, added: pd.DataFrame) -> str:
    """Return the alt text of `fig_own_added`."""
    need_rows(added, "describe_own_added")
    means = runs.groupby(["prefix", "set"], sort=False)["damage"].mean().reset_index()
    parts = [f"{row['prefix']}, {row['set']} {row['damage']:.3f}" for row in rows_of(means)]
    changes = [
        f"real + own minus {row['against']} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        for row in rows_of(added)
    ]
    return f"Damage in nats per token: {'; '.join(parts)}. Means: {'; '.join(changes)}."


# --- speed ------------------------------------------------------------------------------------------------


def fig_writing_speed(table: pd.DataFrame) -> Figure:
    """Return how many tokens a second each way of writing text keeps.

    table: from `own_text_facts.speed_table`.
    """
    need_rows(table, "fig_writing_speed")
    rows = rows_of(table)
    with canvas(len(rows) * 1.15 * ROW + 0.75) as (figure, (ax,)):
        for y, row in enumerate(rows):
            ax.barh(y, row["tokens_per_s"], height=0.6, color=BLUE, alpha=0.85 if y == len(rows) - 1 else 0.4)
            said = (
                f"{number(row['tokens_per_s'])} ({number(row['speedup'])} times; floor × {number(row['over_floor'])})"
            )
            ax.annotate(
                said, (row["tokens_per_s"], y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
            )
        ax.set_yticks(range(len(rows)), [row["work"] for row in rows])
        ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.55 * table["tokens_per_s"].max()))
        ax.set_xlabel("tokens a second, higher is better →")
        ax.grid(False)
    return figure


def describe_writing_speed(table: pd.DataFrame) -> str:
    """Return in words how fast text is written, whether the targets are met, and what bounds it."""
    need_rows(table, "describe_writing_speed")
    rows, settings = rows_of(table), table.attrs
    plain, ours = rows[0], rows[-1]
    target = settings.get("target", 3.0)
    met = ours["speedup"] >= target or ours["over_floor"] <= NEAR_FLOOR
    said = (
        f"Plain generate keeps {number(plain['tokens_per_s'])} tokens a second, the engine "
        f"{number(ours['tokens_per_s'])}: {number(ours['speedup'])} times as many, in {number(ours['over_floor'])} "
        f"times the floor. The target, {target:g} times generate or within {NEAR_FLOOR:g} times the floor, is "
        f"{'met' if met else 'missed'}."
    )
    if {"read_weights_s", "multiply_token_s", "batch_size"} <= settings.keys():
        read, token, batch = (settings[name] for name in ("read_weights_s", "multiply_token_s", "batch_size"))
        bound = "computing" if batch * token > read else "memory"
        said += (
            f" Reading all weights once takes {1000 * read:.0f} ms here, multiplying them with one token "
            f"{1000 * token:.1f} ms; so a step of {batch} texts has {1000 * batch * token:.0f} ms to multiply, and its "
            f"floor is set by {bound}."
        )
    return said


def _dots(ax: Axes, values: "pd.Series[float]", y: float, mark: Mark) -> None:
    """Draw single runs, faint."""
    style: dict[str, Any] = {"alpha": 0.35, "markersize": 4, "markeredgewidth": 0, "linestyle": ""}
    ax.plot(values, [y] * len(values), marker=mark.marker, color=mark.colour, **style)


def _mean(ax: Axes, row: Mapping[str, Any], y: float, mark: Mark) -> None:
    """Draw a mean with its interval."""
    ax.plot([row["low"], row["high"]], [y, y], color=mark.colour, linewidth=1.6)
    ax.plot(row["mean"], y, mark.marker, color=mark.colour, markeredgecolor=TEXT, markeredgewidth=0.9)
