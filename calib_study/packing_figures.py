"""Figure of the chapter on packing: tables of `packing_tables` in, Figure out.

Effects of the cut are drawn by `schedule_figures.fig_schedule_changes`, shares by `figures.fig_variance_shares`.
"""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import (
    MUTED,
    TEXT,
    canvas,
    method_label,
    need_rows,
    rows_of,
    source_label,
    source_marks,
    unique,
)
from calib_study.packing_tables import PAPERS

ROW = 0.24  # inches of height for one row of text
LOWER = "← lower is better"


def fig_texts_by_cut(means: pd.DataFrame, spreads: pd.DataFrame) -> Figure:
    """Return how far the texts lie apart under each cut, and in the last row as the papers' loaders cut them.

    Each text's mean damage, minus the mean of all texts in that row. Lines that cross are texts that change places.

    Args:
        means: from `packing_tables.text_means`. spreads: from `spread_table`.
    """
    need_rows(means, "fig_texts_by_cut")
    methods, cuts, texts = unique(means["method"]), unique(means["cut"]), unique(means["source"])
    marks = source_marks(sorted(texts))
    height = len(methods) * (1.5 * ROW * len(cuts) + 0.35) + 0.95
    with canvas(height, len(methods), 1, sharex=True) as (figure, axes):
        for ax, method in zip(axes, methods, strict=True):
            here = means[means["method"] == method].pivot(index="cut", columns="source", values="mean").loc[cuts]
            around = here.sub(here.mean(axis=1), axis=0)
            ax.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
            for text in texts:
                style: dict[str, Any] = {"markeredgecolor": TEXT, "markeredgewidth": 0.6}
                style |= {"color": marks[text].colour, "marker": marks[text].marker}
                ax.plot(around[text].iloc[:-1], range(len(cuts) - 1), linewidth=0.9, **style)
                ax.plot(around[text].iloc[-2:], range(len(cuts) - 2, len(cuts)), linewidth=0.9, dashes=(2, 2), **style)
            for row in rows_of(spreads[spreads["method"] == method]):
                ax.annotate(f"s.d. {row['sd']:.3f}", (1, cuts.index(row["cut"])), ha="right", va="center", fontsize=9,
                            xycoords=ax.get_yaxis_transform())  # fmt: skip
            ax.axhline(len(cuts) - 1.5, color=MUTED, linewidth=0.6, linestyle=":")
            ax.set_title(method_label(method))
            ax.set_yticks(range(len(cuts)), cuts)
            ax.set_ylim(len(cuts) - 0.5, -0.5)
        low, high = axes[0].get_xlim()
        axes[0].set_xlim(low, high + 0.18 * (high - low))  # room for what is written on the right
        axes[-1].set_xlabel(f"mean damage minus that of all texts (nats per token)   {LOWER}")
        keys = [Line2D([], [], linestyle="", marker=marks[text].marker, color=marks[text].colour) for text in texts]
        names = [source_label(text) for text in texts]
        figure.legend(keys, names, loc="outside lower center", ncols=min(len(keys), 6))
    return figure


def describe_texts_by_cut(means: pd.DataFrame, spreads: pd.DataFrame) -> str:
    """Return the alt text of `fig_texts_by_cut`."""
    parts = []
    for row in rows_of(spreads):
        here = means[(means["method"] == row["method"]) & (means["cut"] == row["cut"])].set_index("source")["mean"]
        joined = f", {row['packed']} {row['deficit']:+.3f} from the others" if row["cut"] == PAPERS else ""
        parts.append(
            f"{method_label(row['method'])}, {row['cut']}: best {here.idxmin()}, worst {here.idxmax()}, "
            f"s.d. {row['sd']:.3f}{joined}"
        )
    return f"Mean damage of the texts by cut, in nats per token. {'; '.join(parts)}."
