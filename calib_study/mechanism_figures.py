"""Figures of the chapter on where a calibration text shows: tables of `mechanism_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from calib_study.figure_style import (
    BLUE,
    MUTED,
    RED,
    TEXT,
    canvas,
    log_ticks,
    need_rows,
    number,
    rows_of,
    source_label,
    source_marks,
    unique,
)
from calib_study.mechanism_tables import ALONE, DRAWS, TEXTS, swap_costs

LINE = {TEXTS: (RED, "-", "two texts"), DRAWS: (MUTED, "--", "two draws of one text")}
BAR = "#C9CFD6"


# --- masks --------------------------------------------------------------------------------------------------


def fig_overlap(excess: pd.DataFrame) -> Figure:
    """Return a map of how much farther apart the masks of two texts are than those of two draws: layers by blocks.

    excess: `excess_table(pairs, by=("block", "kind"))`; means over pairs of texts and seeds are shown.
    """
    need_rows(excess, "fig_overlap")
    kinds = unique(excess["kind"])
    grid = 100 * excess.pivot_table(index="kind", columns="block", values="excess").loc[kinds]
    with canvas(0.26 * len(kinds) + 1.35) as (figure, (ax,)):
        edge = float(np.abs(grid.to_numpy()).max()) or 1.0
        low = -edge if (grid.to_numpy() < 0).any() else 0.0
        image = ax.imshow(grid, aspect="auto", cmap="RdBu_r" if low else "Reds", vmin=low, vmax=edge)
        ax.set_yticks(range(len(kinds)), kinds)
        ax.grid(False)
        _block_axis(ax, grid.shape[1])
        bar = figure.colorbar(image, ax=ax, orientation="horizontal", fraction=0.1, pad=0.02, aspect=45)
        bar.set_label("removed weights not shared: two texts minus two draws (percentage points)")
        bar.outline.set_visible(False)
    return figure


def describe_overlap(excess: pd.DataFrame) -> str:
    """Return the alt text of `fig_overlap`."""
    need_rows(excess, "describe_overlap")
    cells = excess.groupby(["kind", "block"], sort=False)["excess"].mean().mul(100).reset_index()
    by_kind = "; ".join(
        f"{name} {value:.1f}" for name, value in cells.groupby("kind", sort=False)["excess"].mean().items()
    )
    ranked = sorted(rows_of(cells), key=lambda row: float(row["excess"]))
    least, most = ranked[0], ranked[-1]
    return (
        "Share of removed weights that two masks do not have in common: of two texts minus of two draws of one, "
        f"percentage points, mean over blocks: {by_kind}. Most in {most['kind']} of block {most['block']} "
        f"({most['excess']:.1f}), least in {least['kind']} of block {least['block']} ({least['excess']:.1f})."
    )


# --- activations --------------------------------------------------------------------------------------------


def fig_activations(distances: pd.DataFrame, outliers: pd.DataFrame) -> Figure:
    """Return, by block, how far activation norms of two texts and of two draws are apart, and OWL's outlier share.

    Args:
        distances: `excess_table(pairs, "distance")`. outliers: from `outlier_table`.
    """
    need_rows(distances, "fig_activations")
    marks = source_marks(sorted(unique(outliers["source"])))
    with canvas(4.6, 2, 1, sharex=True) as (figure, (top, bottom)):
        _two_lines(top, distances)
        top.set(title="activation norms", ylabel="distance (nats)", ylim=(0, None))
        top.legend(loc="upper center", ncols=2)
        for source, mark in marks.items():
            here = outliers[outliers["source"] == source].groupby("block")["outliers"]
            bottom.plot(here.mean(), color=mark.colour, marker=mark.marker, markersize=4, linewidth=1.1,
                        label=source_label(source))  # fmt: skip
            bottom.fill_between(here.mean().index, here.min(), here.max(), color=mark.colour, alpha=0.2, linewidth=0)
        bottom.set(title="scores above five times the mean of their block", ylabel="OWL's D (%)", ylim=(0, None))
        bottom.legend(loc="best", ncols=min(4, len(marks)))
        _block_axis(bottom, int(outliers["block"].max()) + 1)
    return figure


def describe_activations(distances: pd.DataFrame, outliers: pd.DataFrame) -> str:
    """Return the alt text of `fig_activations`."""
    need_rows(distances, "describe_activations")
    by_block = distances.groupby("block")[[TEXTS, DRAWS]].mean()
    shares = outliers.pivot_table(index="block", columns="source", values="outliers", sort=False)
    said = "; ".join(f"{name} {values.min():.2f} to {values.max():.2f} %" for name, values in shares.items())
    spread = (shares.max(axis=1) - shares.min(axis=1)).max()
    return (
        f"Distance of activation norms, mean over blocks: two texts {by_block[TEXTS].mean():.3f} nats, two draws of "
        f"one text {by_block[DRAWS].mean():.3f}; the texts are farthest apart in block {by_block[TEXTS].idxmax()} "
        f"({by_block[TEXTS].max():.3f}), nearest in block {by_block[TEXTS].idxmin()} ({by_block[TEXTS].min():.3f}). "
        f"OWL's share of outlying scores, range over blocks: {said}. In no block do the texts differ by more than "
        f"{spread:.2f} points."
    )


# --- reconstruction -----------------------------------------------------------------------------------------


def fig_errors(errors: pd.DataFrame, ratios: pd.DataFrame) -> Figure:
    """Return the relative error of layers' outputs on own and on foreign text by block, and their ratio by layer.

    Args:
        errors: from `error_table`. ratios: `foreign_ratios(errors, "kind")`; a point is a pair of texts in one seed.
    """
    need_rows(ratios, "fig_errors")
    kinds = unique(errors["kind"])
    with canvas(3.1, 1, 2, width_ratios=[3, 2]) as (figure, (left, right)):
        for own, (colour, dash, label) in {
            True: (BLUE, "-", "mask made from this text"), False: (RED, "--", "from another text"),
        }.items():  # fmt: skip
            here = 100 * errors[errors["own"] == own].groupby("block")["error"].mean()
            left.plot(here, color=colour, linestyle=dash, linewidth=1.4, label=label)
        left.set(title="error of the output", ylabel="share of its square (%)\n← lower is better", ylim=(0, None))
        left.legend(loc="best")
        _block_axis(left, int(errors["block"].max()) + 1)
        for y, kind in enumerate(kinds):
            here = ratios.loc[ratios["kind"] == kind, "ratio"]
            right.plot(here, [y] * len(here), "o", color=RED, alpha=0.3, markersize=4, markeredgewidth=0)
            right.plot(here.mean(), y, "o", color=RED, markeredgecolor=TEXT, markeredgewidth=0.9)
        right.axvline(1, color=MUTED, linewidth=0.8)
        right.set_yticks(range(len(kinds)), kinds)
        right.set(ylim=(len(kinds) - 0.5, -0.5), title="by layer", xlabel="another text's mask / own mask")
    return figure


def describe_errors(errors: pd.DataFrame, ratios: pd.DataFrame) -> str:
    """Return the alt text of `fig_errors`."""
    need_rows(ratios, "describe_errors")
    own, foreign = (100 * errors.loc[errors["own"] == which, "error"].mean() for which in (True, False))
    by_kind = ratios.groupby("kind", sort=False)["ratio"].mean()
    return (
        f"Error of layers' outputs as a share of the output's square: {own:.1f} % on the text that the mask was made "
        f"from, {foreign:.1f} % with another text's mask. Ratio by layer: "
        + "; ".join(f"{name} {value:.2f}" for name, value in by_kind.items())
        + "."
    )


# --- blocks -------------------------------------------------------------------------------------------------


def fig_block_costs(swaps: pd.DataFrame) -> Figure:
    """Return what pruning one block alone costs: bars are means, points single draws, marks the rise of the loss.

    swaps: from `swap_table`.
    """
    alone = swaps[swaps["swap"] == ALONE]
    need_rows(alone, "fig_block_costs")
    costs, rises = swap_costs(alone), swap_costs(alone, "rise")
    means = costs.groupby("block")["cost"].mean()
    marks = source_marks(sorted(unique(costs["other"])))
    with canvas(2.9) as (figure, (ax,)):
        ax.bar(means.index, means, color=BAR, width=0.8)
        ax.axhline(0, color=MUTED, linewidth=0.8)
        for source, mark in marks.items():
            here = costs[costs["other"] == source]
            ax.plot(here["block"], here["cost"], mark.marker, color=mark.colour, alpha=0.6, markersize=4,
                    markeredgewidth=0)  # fmt: skip
        rise = rises.groupby("block")["rise"].mean()
        ax.plot(rise, "_", color=TEXT, markersize=9, markeredgewidth=1.5)
        ax.set(ylabel="nats per token\n← lower is better")
        _block_axis(ax, int(alone["block"].max()) + 1)
        handles = [Line2D([], [], linestyle="", marker=m.marker, color=m.colour) for m in marks.values()]
        handles.append(Line2D([], [], linestyle="", marker="_", color=TEXT, markersize=9, markeredgewidth=1.5))
        labels = [*(f"cost, {source_label(name)}" for name in marks), "rise of the loss"]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(handles)))
    return figure


def describe_block_costs(swaps: pd.DataFrame) -> str:
    """Return the alt text of `fig_block_costs`."""
    alone = swaps[swaps["swap"] == ALONE]
    need_rows(alone, "describe_block_costs")
    means = swap_costs(alone).groupby("block")["cost"].mean().sort_values(ascending=False)
    rise = swap_costs(alone, "rise").groupby("block")["rise"].mean().sum()
    dense = alone["base_nll"].mean()
    whole = swaps.loc[swaps["swap"] != ALONE, "base_nll"].mean() - dense
    top = ", ".join(f"{block} ({number(cost)})" for block, cost in means.head(3).items())
    return (
        f"Cost of pruning one block alone, KL from the dense model in nats per token: most in blocks {top}, least in "
        f"block {means.index[-1]} ({number(means.iloc[-1])}). The rises of the loss add up to {rise:.2f} nats per "
        f"token; all blocks pruned at once raise it by {whole:.2f}."
    )


def fig_slide(masks: pd.DataFrame, ratios: pd.DataFrame, swaps: pd.DataFrame) -> Figure:
    """Return the chapter in one figure, block by block: where masks differ, where outputs do, where predictions do.

    Args:
        masks: `excess_table(pairs)`. ratios: `foreign_ratios(errors, "block")`. swaps: from `swap_table`.
    """
    need_rows(masks, "fig_slide")
    costs = swap_costs(swaps[swaps["swap"] != ALONE])
    with canvas(5.6, 3, 1, sharex=True) as (figure, (top, middle, bottom)):
        _two_lines(top, masks.assign(texts=100 * masks[TEXTS], draws=100 * masks[DRAWS]))
        top.set(title="Masks: removed weights that are not shared", ylabel="%", ylim=(0, None))
        top.legend(loc="best", ncols=2)
        here = (100 * (ratios.groupby("block")["ratio"].mean() - 1)).rename("more")
        middle.bar(here.index, here, color=RED, alpha=0.75, width=0.7)
        middle.axhline(0, color=MUTED, linewidth=0.8)
        middle.set(title="Outputs: more error with another text's mask", ylabel="%")
        wide = costs.groupby(["swap", "block"])["cost"].mean().unstack("swap")
        for swap, (colour, dash, _) in LINE.items():
            if swap in wide:
                bottom.plot(wide[swap], color=colour, linestyle=dash, linewidth=1.6)
                single = costs[costs["swap"] == swap]
                bottom.plot(single["block"], single["cost"], "o", color=colour, alpha=0.3, markersize=3,
                            markeredgewidth=0)  # fmt: skip
        log_ticks(bottom, costs["cost"].min() / 1.3, costs["cost"].max() * 1.3, vertical=True)
        bottom.set(title="Predictions: this block pruned by another text or draw", ylabel="KL, nats per token")
        _block_axis(bottom, int(masks["block"].max()) + 1)
    return figure


def describe_slide(masks: pd.DataFrame, ratios: pd.DataFrame, swaps: pd.DataFrame) -> str:
    """Return the alt text of `fig_slide`."""
    need_rows(masks, "describe_slide")
    by_block = 100 * masks.groupby("block")[[TEXTS, DRAWS]].mean()
    more = 100 * (ratios.groupby("block")["ratio"].mean() - 1)
    costs = swap_costs(swaps[swaps["swap"] != ALONE]).groupby(["swap", "block"])["cost"].mean().unstack("swap")
    total = costs.sum()
    return (
        f"Masks of two texts do not share {_range(by_block[TEXTS])} of removed weights, those of two draws "
        f"{_range(by_block[DRAWS])}; most in block {by_block[TEXTS].idxmax()}. Another text's mask adds {_range(more)} "
        f"of error to a block's outputs, most in block {more.idxmax()}. Swapping in another text's block costs most in "
        f"block {costs[TEXTS].idxmax()} ({number(costs[TEXTS].max())} nats per token), least in block "
        f"{costs[TEXTS].idxmin()} ({number(costs[TEXTS].min())}); added up over blocks {number(total[TEXTS])}, with "
        f"another draw {number(total[DRAWS])}."
    )


def _range(values: "pd.Series[float]") -> str:
    return f"{values.min():.1f} to {values.max():.1f} %"


def _two_lines(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the values of two texts and of two draws by block: lines of means, a band over pairs and seeds."""
    for name, (colour, dash, label) in LINE.items():
        here = table.groupby("block")[name]
        ax.plot(here.mean(), color=colour, linestyle=dash, linewidth=1.6, label=label)
        ax.fill_between(here.mean().index, here.min(), here.max(), color=colour, alpha=0.15, linewidth=0)


def _block_axis(ax: Axes, n_blocks: int) -> None:
    ax.set_xlim(-0.6, n_blocks - 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    ax.set_xlabel("block")
