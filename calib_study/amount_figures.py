"""Figures of the chapter on amounts of calibration text: tables of `amount_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from calib_study.amount_tables import AMOUNT, SIZES, enough
from calib_study.figure_style import (
    METHOD_STYLE,
    MUTED,
    TEXT,
    canvas,
    log_ticks,
    method_label,
    need_rows,
    number,
    rows_of,
    source_label,
    source_marks,
    unique,
)
from calib_study.verdicts import SMALLEST_EFFECT

ROW = 0.24  # inches of height for one row of text
BAND = "#E6E9ED"  # what is too small to matter
LOWER = "← lower is better"
LINEAR = 0.02  # half the part of a changes axis that is linear; beyond, it is logarithmic
WIDE_SPAN = 0.2  # nats per token that fit on an axis which is linear all over
COLUMNS = 2  # panels beside each other
TICKS = (0.01, 0.1, 1.0, 10.0)


def fig_damage_by_amount(damage: pd.DataFrame) -> Figure:
    """Return damage against the number of windows: a panel for each method, a line for each text, a point for each run.

    damage: from `amount_tables.amount_runs`. Both axes are logarithmic.
    """
    need_rows(damage, "fig_damage_by_amount")
    methods, texts = unique(damage["method"]), unique(damage["source"])
    marks, columns = source_marks(sorted(texts)), min(len(methods), COLUMNS)
    lines = -(-len(methods) // columns)
    with canvas(lines * 2.6 + 0.5, lines, columns) as (figure, axes):
        for ax, method in zip(axes, methods, strict=False):
            for text in texts:
                here = damage[(damage["method"] == method) & (damage["source"] == text)]
                means = here.groupby(AMOUNT)["damage"].mean()
                mark: dict[str, Any] = {"color": marks[text].colour, "marker": marks[text].marker}
                ax.plot(here[AMOUNT], here["damage"], linestyle="", alpha=0.35, markersize=4, markeredgewidth=0, **mark)
                ax.plot(means.index, means, markersize=6, markeredgecolor=TEXT, markeredgewidth=0.6, **mark)
            _amount_axis(ax, sorted(damage[AMOUNT].unique()))
            seen = damage.loc[damage["method"] == method, "damage"]
            log_ticks(ax, seen.min() / 1.06, seen.max() * 1.06, vertical=True)
            ax.set_title(method_label(method))
        for ax in axes[len(methods) :]:
            ax.set_visible(False)
        for ax in axes[::columns]:
            ax.set_ylabel(f"damage (nats per token)\n{LOWER}")
        keys = [Line2D([], [], color=marks[text].colour, marker=marks[text].marker) for text in texts]
        figure.legend(keys, [source_label(text) for text in texts], loc="outside lower center", ncols=min(len(keys), 6))
    return figure


def describe_damage_by_amount(damage: pd.DataFrame) -> str:
    """Return the alt text of `fig_damage_by_amount`."""
    least, most = int(damage[AMOUNT].min()), int(damage[AMOUNT].max())
    means = damage.groupby(["method", AMOUNT, "source"], sort=False)["damage"].mean()
    parts = []
    for method in unique(damage["method"]):
        texts = [f"{text} {means[method, least, text]:.3f} to {means[method, most, text]:.3f}"
                 for text in unique(damage["source"])]  # fmt: skip
        parts.append(f"{method_label(method)}: {', '.join(texts)}")
    return f"Mean damage in nats per token with {least} and with {most} windows. {'; '.join(parts)}."


def fig_size_changes(differences: pd.DataFrame, changes: pd.DataFrame, size: str = AMOUNT) -> Figure:
    """Return the damage at each smaller size minus that at the largest, and the band in which that does not matter.

    Args:
        differences: from `amount_tables.size_differences`. changes: from `size_changes`. size: the column of sizes.
    """
    need_rows(changes, "fig_size_changes")
    methods, sizes = unique(changes["method"]), sorted(int(n) for n in changes[size].unique())
    step = 0.62 / len(methods)
    with canvas(len(sizes) * max(1.5, len(methods)) * ROW + 1.3) as (figure, (ax,)):
        ax.axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=BAND, zorder=0)
        ax.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
        for row in rows_of(changes):
            place = methods.index(row["method"])
            y = sizes.index(row[size]) + step * (place - (len(methods) - 1) / 2)
            colour = METHOD_STYLE[row["method"]].colour
            runs = differences[(differences["method"] == row["method"]) & (differences[size] == row[size])]
            ax.plot(runs["difference"], [y] * len(runs), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.2)
            ax.plot([row["low90"], row["high90"]], [y, y], color=colour, linewidth=3, solid_capstyle="butt")
            fill = colour if row["alike"] else "white"
            ax.plot(row["mean"], y, "o", color=fill, markeredgecolor=colour, markeredgewidth=1.4, markersize=6.5)
        ax.set_yticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        ax.set_ylim(len(sizes) - 0.5, -0.5)
        ax.set_title(SIZES[size].capitalize())
        _change_axis(ax, differences["difference"].abs().max())
        ax.set_xlabel(f"damage minus that of the largest size (nats per token)   {LOWER}")
        keys = [Line2D([], [], color=METHOD_STYLE[name].colour, linewidth=3) for name in methods]
        names = [method_label(name) for name in methods]
        for fill, said in ((MUTED, "as good as the largest"), ("white", "not shown to be")):
            keys.append(Line2D([], [], linestyle="", marker="o", color=fill, markeredgecolor=MUTED))
            names.append(said)
        figure.legend(keys, names, loc="outside lower center", ncols=len(keys) if len(keys) <= 4 else 3)
    return figure


def describe_size_changes(changes: pd.DataFrame, size: str = AMOUNT) -> str:
    """Return the alt text of `fig_size_changes`."""
    parts = []
    for method in unique(changes["method"]):
        rows = rows_of(changes[changes["method"] == method])
        said = [f"{row[size]:,} {row['mean']:+.3f} [{row['low90']:+.3f}, {row['high90']:+.3f}]" for row in rows]
        first = enough(changes, method, size)
        as_good = f"as good as the largest from {first:,} on" if first else "none is shown to be as good as the largest"
        parts.append(f"{method_label(method)}: {', '.join(said)} ({as_good})")
    return (
        f"Damage minus that of the largest size, in nats per token with 90 % interval, by {SIZES[size]}. "
        f"{'; '.join(parts)}."
    )


def fig_gap_by_amount(gaps: pd.DataFrame) -> Figure:
    """Return how far the worst and the best text lie apart, against the number of windows.

    gaps: from `amount_tables.gap_table`.
    """
    need_rows(gaps, "fig_gap_by_amount")
    methods = unique(gaps["method"])
    columns = min(len(methods), COLUMNS)
    lines = -(-len(methods) // columns)
    with canvas(lines * 2.3 + 0.15, lines, columns) as (figure, axes):
        for ax, method in zip(axes, methods, strict=False):
            here = gaps[gaps["method"] == method]
            ax.axhspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=BAND, zorder=0)
            ax.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
            _lines_by_amount(ax, here, method, ("gap", "low", "high"))
            _amount_axis(ax, sorted(gaps[AMOUNT].unique()))
            ax.set_title(f"{method_label(method)}\n{_pair(here)}")
        for ax in axes[len(methods) :]:
            ax.set_visible(False)
        for ax in axes[::columns]:
            ax.set_ylabel("gap (nats per token)")
    return figure


def describe_gap_by_amount(gaps: pd.DataFrame) -> str:
    """Return the alt text of `fig_gap_by_amount`."""
    parts = []
    for method in unique(gaps["method"]):
        rows = gaps[gaps["method"] == method]
        said = [f"{row['gap']:.3f} [{row['low']:.3f}, {row['high']:.3f}] at {row[AMOUNT]}" for row in rows_of(rows)]
        parts.append(f"{method_label(method)}, {_pair(rows)}: {', '.join(said)}")
    return f"Gap of damage between two texts by number of windows, in nats per token. {'; '.join(parts)}."


def fig_spread_by_amount(spreads: pd.DataFrame, exponents: pd.DataFrame) -> Figure:
    """Return how much two draws of one text differ, against the number of windows, with the lines n^-beta.

    The dashed line falls as n^-1/2, as it would if windows were independent.

    Args:
        spreads: from `amount_tables.spread_table`. exponents: from `exponent_table`.
    """
    need_rows(spreads, "fig_spread_by_amount")
    methods, amounts = unique(spreads["method"]), sorted(int(n) for n in spreads[AMOUNT].unique())
    columns = min(len(methods), COLUMNS)
    lines = -(-len(methods) // columns)
    with canvas(lines * 2.3 + 0.15, lines, columns, sharey=True) as (figure, axes):
        for ax, method in zip(axes, methods, strict=False):
            here = spreads[spreads["method"] == method]
            (beta,) = exponents.loc[exponents["method"] == method, "beta"]
            middle, level = np.log(amounts).mean(), np.log(here["rms"]).mean()
            for slope, style in ((beta, "-"), (0.5, "--")):
                fitted = np.exp(level - slope * (np.log(amounts) - middle))
                colour = METHOD_STYLE[method].colour if style == "-" else MUTED
                ax.plot(amounts, fitted, style, color=colour, linewidth=1.0, zorder=1.5)
            ax.axhspan(0, SMALLEST_EFFECT, color=BAND, zorder=0)
            _lines_by_amount(ax, here, method, ("rms", "low", "high"), joined=False)
            _amount_axis(ax, amounts)
            ax.set_title(f"{method_label(method)}: β = {beta:.2f}")
        low, high = min(spreads["low"].min(), SMALLEST_EFFECT), spreads["high"].max()
        for ax in axes[: len(methods)]:
            log_ticks(ax, low / 1.3, high * 1.3, vertical=True)
        for ax in axes[len(methods) :]:
            ax.set_visible(False)
        for ax in axes[::columns]:
            ax.set_ylabel("difference of two draws\n(nats per token)")
    return figure


def describe_spread_by_amount(spreads: pd.DataFrame, exponents: pd.DataFrame) -> str:
    """Return the alt text of `fig_spread_by_amount`."""
    parts = []
    for row in rows_of(exponents):
        here = rows_of(spreads[spreads["method"] == row["method"]])
        said = [f"{at['rms']:.4f} [{at['low']:.4f}, {at['high']:.4f}] at {at[AMOUNT]}" for at in here]
        beta = f"β = {row['beta']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        parts.append(f"{method_label(row['method'])}: {', '.join(said)}; {beta}")
    return (
        "Root mean square difference of two draws of one text by number of windows, in nats per token. "
        f"{'. '.join(parts)}."
    )


def _lines_by_amount(
    ax: Axes, rows: pd.DataFrame, method: str, columns: tuple[str, str, str], *, joined: bool = True
) -> None:
    """Draw a mark with its interval at each amount. columns: of the mark and of its limits."""
    style, (mark, low, high) = METHOD_STYLE[method], columns
    for row in rows_of(rows):
        ax.plot([row[AMOUNT]] * 2, [row[low], row[high]], color=style.colour, linewidth=1.6)
    dash: Any = style.dash if joined else ""
    ax.plot(rows[AMOUNT], rows[mark], "o", linestyle=dash, color=style.colour, markeredgecolor=TEXT,
            markeredgewidth=0.8)  # fmt: skip


def _amount_axis(ax: Axes, amounts: Sequence[int]) -> None:
    """Make x a logarithmic axis with a tick at each amount, every second one where there are many."""
    ax.set_xscale("log")
    ticks = list(amounts)[:: -(-len(amounts) // 7)]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{n:,}" for n in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("calibration windows")


def _change_axis(ax: Axes, furthest: float) -> None:
    """Make x linear near zero, and logarithmic beyond if there is something far off."""
    if furthest <= WIDE_SPAN:
        return
    ax.set_xscale("symlog", linthresh=LINEAR, linscale=1.0)
    low, high = ax.get_xlim()
    ticks = [sign * t for sign in (-1, 1) for t in TICKS if low <= sign * t <= high]
    ticks = sorted([0.0, *ticks])
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([number(t).replace("-", "−") for t in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())


def _pair(gaps: pd.DataFrame) -> str:
    row = gaps.iloc[0]
    return f"{source_label(row['worst'], 14)} − {source_label(row['best'], 14)}"
