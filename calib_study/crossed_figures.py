"""Figures of a crossed grid of texts, methods and draws: tables of `measures` and `crossed` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import (
    BLUE,
    METHOD_STYLE,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TEXT,
    canvas,
    measure_label,
    method_label,
    need_rows,
    source_label,
    unique,
)
from calib_study.measures import MEASURES

ROW = 0.24  # inches of height for one row of text
LOWER = "← lower is better"
PARTS = {  # of variance: label and colour
    "source": ("text", BLUE),
    "method": ("method", RED),
    "source x method": ("text × method", PURPLE),
    "seed": ("draw", ORANGE),
    "seed x method": ("draw × method", SKY),
    "evaluation": ("evaluation", "#B5BAC2"),
}


def fig_losses_by_text(table: pd.DataFrame, texts: Sequence[str], measures: Sequence[str]) -> Figure:
    """Return what pruning costs by text (rows) and method (colours), one panel for each measure.

    Faint points are single draws, marks their means. Methods without text are no rows here.

    Args:
        table: from `measures.measure_table`, of runs with a text.
    """
    runs = table[table["source"].isin(list(texts))]
    need_rows(runs, "fig_losses_by_text")
    methods = unique(runs["method"])
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    height = rows * (len(texts) * 1.35 * ROW + 0.75) + 0.35
    with canvas(height, rows, columns, sharey=True) as (figure, axes):
        for ax, name in zip(axes, measures, strict=False):
            for index, method in enumerate(methods):
                shift = 0.6 * (index - (len(methods) - 1) / 2) / max(1, len(methods))
                for y, text in enumerate(texts):
                    seeds = runs.loc[(runs["method"] == method) & (runs["source"] == text), name]
                    ax.plot(seeds, [y + shift] * len(seeds), "o", alpha=0.35, markersize=3.5, **_plain(method))
                    ax.plot([seeds.mean()], [y + shift], **_mark(method))
            label, unit = MEASURES[name]
            ax.set_title(label)
            ax.set_xlabel(f"{unit}   {LOWER}")
            ax.set_yticks(range(len(texts)), [source_label(text) for text in texts])
            ax.set_ylim(len(texts) - 0.45, -0.55)
        for ax in axes[len(measures) :]:
            ax.set_visible(False)
        keys = [Line2D([], [], linestyle="", **_mark(method)) for method in methods]
        figure.legend(keys, [method_label(name) for name in methods], loc="outside lower center", ncols=len(keys))
    return figure


def describe_losses_by_text(table: pd.DataFrame, texts: Sequence[str], measures: Sequence[str]) -> str:
    """Return the alt text of `fig_losses_by_text`."""
    runs = table[table["source"].isin(list(texts))]
    parts = []
    for name in measures:
        by_text = runs.groupby("source")[name].mean().sort_values()
        by_method = runs.groupby("method")[name].mean().sort_values()
        parts.append(
            f"{measure_label(name)} ({MEASURES[name][1]}): texts from {by_text.index[0]} {by_text.iloc[0]:.3f} to "
            f"{by_text.index[-1]} {by_text.iloc[-1]:.3f}, methods from {method_label(by_method.index[0])} "
            f"{by_method.iloc[0]:.3f} to {method_label(by_method.index[-1])} {by_method.iloc[-1]:.3f}"
        )
    return f"Loss against the dense model. {'; '.join(parts)}."


def fig_components(shares: pd.DataFrame) -> Figure:
    """Return, for each measure, the shares of variance by text, method, both, draws and evaluation, as one bar.

    shares: from `crossed.component_table`. Components estimated below zero are not drawn.
    """
    need_rows(shares, "fig_components")
    measures = unique(shares["measure"])
    with canvas(len(measures) * 1.6 * ROW + 1.15) as (figure, (ax,)):
        for y, name in enumerate(measures):
            left = 0.0
            for part, share in shares.loc[shares["measure"] == name, ["part", "share"]].itertuples(index=False):
                width = 100 * float(share)
                ax.barh(y, width, left=left, height=0.66, color=PARTS[part][1], edgecolor="white", linewidth=0.8)
                if width >= 7:
                    dark = part in ("source", "method")
                    ax.text(left + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=9,
                            color="white" if dark else TEXT)  # fmt: skip
                left += width
        ax.set_yticks(range(len(measures)), [measure_label(name) for name in measures])
        ax.set(xlim=(0, 100), ylim=(len(measures) - 0.45, -0.55))
        ax.set_xlabel("share of the variance of single runs (%)")
        ax.grid(False)
        present = [part for part in PARTS if part in set(shares["part"])]
        keys = [Line2D([], [], linestyle="", marker="s", markersize=9, color=PARTS[part][1]) for part in present]
        figure.legend(keys, [PARTS[part][0] for part in present], loc="outside lower center", ncols=len(keys))
    return figure


def describe_components(shares: pd.DataFrame) -> str:
    """Return the alt text of `fig_components`."""
    parts = []
    for name in unique(shares["measure"]):
        here = shares[shares["measure"] == name]
        said = ", ".join(f"{PARTS[p][0]} {100 * s:.0f} %" for p, s in here[["part", "share"]].itertuples(index=False))
        parts.append(f"{measure_label(name)}: {said}")
    return f"Shares of the variance of single runs. {'; '.join(parts)}."


def _plain(method: str) -> dict[str, Any]:
    return {"color": METHOD_STYLE[method].colour, "markeredgewidth": 0}


def _mark(method: str) -> dict[str, Any]:
    """Return how the mean of a method is drawn; with OWL the mark is hollow."""
    colour = METHOD_STYLE[method].colour
    if "+" in method:
        edge: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.4}
    else:
        edge = {"markerfacecolor": colour, "markeredgecolor": TEXT, "markeredgewidth": 0.8}
    return {"marker": "s" if "+" in method else "o", "color": colour, "markersize": 6, **edge}
