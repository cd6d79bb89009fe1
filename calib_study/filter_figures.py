"""Figures of the chapter on the perplexity filter: tables of `filter_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import (
    BLUE,
    MUTED,
    RED,
    TEXT,
    canvas,
    log_ticks,
    method_label,
    need_rows,
    number,
    rows_of,
    source_label,
    unique,
)
from calib_study.filter_tables import CONTROL, WHOLE
from calib_study.verdicts import SMALLEST_EFFECT

BAND = "#E6E9ED"  # what is too small to matter
LOWER = "← lower is better"
END_STYLE = {"top": (RED, "^"), "bottom": (BLUE, "v"), CONTROL: (MUTED, "d"), WHOLE: (TEXT, "o")}
END_LABEL = {"top": "highest perplexity", "bottom": "lowest perplexity", CONTROL: "at random"}


def fig_perplexity_cuts(texts: Mapping[str, pd.DataFrame], cuts: Mapping[str, pd.DataFrame]) -> Figure:
    """Return the distribution of the texts' perplexities and where the filters cut, one panel for each prefix source.

    Args:
        texts: from `filter_tables.scored_texts`. cuts: from `composition_table`.
    """
    if not texts:
        need_rows(pd.DataFrame(), "fig_perplexity_cuts")
    with canvas(1.75 * len(texts) + 0.65, len(texts), 1) as (figure, axes):
        for ax, (name, table) in zip(axes, texts.items(), strict=True):
            values = table["perplexity"].dropna().to_numpy(np.float64)
            need_rows(table.dropna(subset="perplexity"), "fig_perplexity_cuts")
            low, high = values.min() / 1.1, values.max() * 1.1
            edges = np.geomspace(low, high, 2 + int(2 * len(values) ** 0.5))
            counts, _, _ = ax.hist(values, bins=edges.tolist(), color="#C9CFD6")
            ax.set_ylim(0, 1.35 * float(np.max(counts)))
            log_ticks(ax, low, high)
            for row in rows_of(cuts[name].dropna(subset="cut")):
                colour, _ = END_STYLE[row["end"]]
                ax.axvline(row["cut"], color=colour, linewidth=1.2)
                ax.annotate(f"{row['drop']:g} %", (row["cut"], 0.99), xycoords=ax.get_xaxis_transform(), rotation=90,
                            va="top", ha="right", fontsize=9, color=colour)  # fmt: skip
            ax.set_title(f"own after {source_label(name)}")
            ax.set_ylabel("texts")
        axes[-1].set_xlabel("perplexity of a text")
        ends = [end for end in ("top", "bottom") if any(end in set(table["end"]) for table in cuts.values())]
        keys = [Line2D([], [], color=END_STYLE[end][0]) for end in ends]
        said = {"top": "dropped right of the line", "bottom": "dropped left of the line"}
        figure.legend(keys, [said[end] for end in ends], loc="outside lower right", ncols=2)
    return figure


def describe_perplexity_cuts(texts: Mapping[str, pd.DataFrame], cuts: Mapping[str, pd.DataFrame]) -> str:
    """Return the alt text of `fig_perplexity_cuts`."""
    parts = []
    for name, table in texts.items():
        values = table["perplexity"].dropna()
        where = [
            f"{row['end']} {row['drop']:g} % at {number(row['cut'])}"
            for row in rows_of(cuts[name].dropna(subset="cut"))
        ]
        parts.append(
            f"own after {name}: {len(values)} texts from {number(values.min())} to {number(values.max())}, median "
            f"{number(values.median())}; cuts: {', '.join(where) or 'none'}"
        )
    return f"Perplexity of texts. {'. '.join(parts)}."


def fig_filter_damage(runs: pd.DataFrame, effects: pd.DataFrame, method: str) -> Figure:
    """Return the damage by the share of texts dropped, and its difference from dropping as many at random.

    Args:
        runs: from `filter_tables.filter_runs`; means are over texts and seeds. effects: from `effect_table`.
    """
    runs, effects = runs[runs["method"] == method], effects[effects["method"] == method]
    need_rows(effects, "fig_filter_damage")
    ends = [end for end in END_LABEL if end in set(runs["end"])]
    whole = runs.loc[runs["end"] == WHOLE, "damage"]
    with canvas(3.3, 1, 2) as (figure, (left, right)):
        left.plot([0] * len(whole), whole, "o", color=TEXT, alpha=0.35, markersize=4, markeredgewidth=0)
        for place, end in enumerate(ends):
            colour, marker = END_STYLE[end]
            here = runs[runs["end"] == end]
            shift = 0.5 * (place - (len(ends) - 1) / 2)
            left.plot(here["drop"] + shift, here["damage"], marker, color=colour, alpha=0.35, markersize=4,
                      markeredgewidth=0)  # fmt: skip
            means = pd.concat([pd.Series({0.0: whole.mean()}), here.groupby("drop")["damage"].mean()])
            left.plot(means.index, means, color=colour, marker=marker, linewidth=1.2, markersize=6)
        right.axhspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=BAND, zorder=0)
        right.axhline(0, color=MUTED, linewidth=0.8)
        for place, end in enumerate(unique(effects["end"])):
            colour, marker = END_STYLE[end]
            shift = 1.2 * (place - (effects["end"].nunique() - 1) / 2)
            for row in rows_of(effects[effects["end"] == end]):
                right.plot([row["drop"] + shift] * 2, [row["low"], row["high"]], color=colour, linewidth=1.6)
                right.plot(row["drop"] + shift, row["mean"], marker, color=colour, markeredgecolor=TEXT,
                           markeredgewidth=0.9)  # fmt: skip
        left.set(title="damage", xlabel="texts dropped (%)", ylabel=f"nats per token\n{LOWER}")
        right.set(title="minus random drops", xlabel="texts dropped (%)")
        for ax in (left, right):
            ax.set_xticks([0, *sorted(set(effects["drop"]))] if ax is left else sorted(set(effects["drop"])))
        right.margins(x=0.15)
        keys = [Line2D([], [], color=END_STYLE[end][0], marker=END_STYLE[end][1]) for end in ends]
        figure.legend(keys, [END_LABEL[end] for end in ends], loc="outside lower center", ncols=len(keys))
    return figure


def describe_filter_damage(runs: pd.DataFrame, effects: pd.DataFrame, method: str) -> str:
    """Return the alt text of `fig_filter_damage`."""
    here = runs[runs["method"] == method]
    need_rows(effects[effects["method"] == method], "describe_filter_damage")
    means = here.groupby(["end", "drop"])["damage"].mean()
    control = "; ".join(f"{drop:g} % {means[CONTROL, drop]:.3f}" for drop in sorted(set(effects["drop"])))
    parts = [
        f"{row['end']} {row['drop']:g} %: {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        for row in rows_of(effects[effects["method"] == method])
    ]
    return (
        f"{method_label(method)}: damage {means[WHOLE, 0.0]:.3f} nats per token with the whole texts, after random "
        f"drops {control}. Minus random drops: {'; '.join(parts)}."
    )
