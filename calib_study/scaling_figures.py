"""Figures of the chapter on sparsity: tables of `scaling_levels` and `scaling_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator

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
from calib_study.scaling_levels import CELL, Level, chains, level_label, levels_of
from calib_study.verdicts import SMALLEST_EFFECT

ROW = 0.24  # inches of height for one row of text
BAND = "#E6E9ED"  # what draws alone could do, or what is too small to matter
LOWER = "← lower is better"
FLOORS = ("magnitude", "random")


def fig_damage_by_level(runs: pd.DataFrame, method: str) -> Figure:
    """Return the mean damage with each text at each level, with magnitude and the random mask for scale.

    runs: from `frames.scored_runs`. One panel for sparsities, one for each sparsity with several patterns.
    """
    here = runs[runs["method"] == method]
    need_rows(here, "fig_damage_by_level")
    marks = source_marks(sorted(unique(here["source"])))
    with _by_chain(here, method, ["damage (nats per token)\n" + "↓ lower is better"], 3.4) as (figure, grid):
        for (_, levels, x), (ax,) in grid:
            for text, mark in marks.items():
                ax.plot(x, _means(here[here["source"] == text], levels), color=mark.colour, marker=mark.marker,
                        linewidth=0.9, markersize=5)  # fmt: skip
            for name in _floors(runs):
                y = _means(runs[runs["method"] == name], levels)
                ax.plot(x, y, color=METHOD_STYLE[name].colour, linestyle=METHOD_STYLE[name].dash)
        _log_y(grid[0][1][0])
        keys = [Line2D([], [], color=mark.colour, marker=mark.marker, markersize=5) for mark in marks.values()]
        for name in _floors(runs):
            style: dict[str, Any] = {"color": METHOD_STYLE[name].colour, "linestyle": METHOD_STYLE[name].dash}
            keys.append(Line2D([], [], **style))
        labels = [*(source_label(text) for text in marks), *map(method_label, _floors(runs))]
        figure.legend(keys, labels, loc="outside lower center", ncols=min(5, len(keys)))
    return figure


def describe_damage_by_level(runs: pd.DataFrame, method: str) -> str:
    """Return the alt text of `fig_damage_by_level`."""
    here = runs[runs["method"] == method]
    parts = []
    for level in levels_of(here):
        at = here[(here["sparsity"] == level[0]) & (here["pattern"] == level[1])]
        by_text = at.groupby("source")["damage"].mean()
        said = [f"texts {number(by_text.min())} to {number(by_text.max())}"]
        for name in _floors(runs):
            said.append(f"{method_label(name)} {number(_means(runs[runs['method'] == name], [level])[0])}")
        parts.append(f"{level_label(*level)}: {', '.join(said)}")
    return f"Damage by {method_label(method)}, in nats per token. {'; '.join(parts)}."


def fig_gap_by_level(gaps: pd.DataFrame, method: str) -> Figure:
    """Return how far the texts lie apart at each level: worst minus best, above, and as a share of the damage, below.

    gaps: from `scaling_levels.gap_table`. Grey: the 95 % quantile of that range if all texts were one.
    """
    here = gaps[gaps["method"] == method]
    need_rows(here, "fig_gap_by_level")
    titles = ["gap (nats per token)", "gap (% of damage)"]
    colour = METHOD_STYLE[method].colour if method in METHOD_STYLE else TEXT
    with _by_chain(here, method, titles, 4.6) as (figure, grid):
        for (_, levels, x), (above, below) in grid:
            rows = here.set_index(["sparsity", "pattern"]).loc[levels]
            for ax, scale in ((above, 1.0), (below, 100 / rows["damage"])):
                gap, null, noise = (rows[name] * scale for name in ("gap", "null_q95", "within_sd"))
                ax.fill_between(x, null, 0, color=BAND, linewidth=0)
                ax.plot(x, null, color=MUTED, linewidth=0.8)
                ax.plot(x, noise, color=MUTED, linestyle=":")
                ax.plot(x, gap, "o-", color=colour)
                ax.plot(x, rows["without_worst"] * scale, "o--", color=colour, markerfacecolor="white", linewidth=0.9)
            below.set_ylim(bottom=0)
        lowest = here[["within_sd", "gap"]].to_numpy()
        _log_y(grid[0][1][0], 0.6 * float(np.nanmin(lowest)))
        keys: list[Any] = [
            Line2D([], [], color=colour, marker="o"),
            Line2D([], [], color=colour, marker="o", markerfacecolor="white", linestyle="--", linewidth=0.9),
            Patch(facecolor=BAND, edgecolor=MUTED, linewidth=0.8),
            Line2D([], [], color=MUTED, linestyle=":"),
        ]
        labels = ["worst minus best text", "without the worst text", "if all texts were one (95 %)", "s.d. of draws"]
        figure.legend(keys, labels, loc="outside lower center", ncols=4, columnspacing=1.2, handlelength=1.8)
    return figure


def describe_gap_by_level(gaps: pd.DataFrame, method: str) -> str:
    """Return the alt text of `fig_gap_by_level`."""
    parts = [
        f"{level_label(row['sparsity'], row['pattern'])}: {row['gap']:.3f}, {row['relative']:.1f} s.d. of draws, "
        f"{100 * row['share']:.1f} % of the damage (if one text: below {row['null_q95']:.3f}; {row['best']} best, "
        f"{row['worst']} worst)"
        for row in rows_of(gaps[gaps["method"] == method])
    ]
    return f"Worst minus best text with {method_label(method)}, in nats per token. {'; '.join(parts)}."


def fig_spread_growth(growth: pd.DataFrame) -> Figure:
    """Return how much the spread of the texts grows from level to level: in nats, and in points of the mean damage.

    growth: from `scaling_levels.growth_table`. Filled marks: from the first level of a chain to the last.
    """
    need_rows(growth, "fig_spread_growth")
    rows = rows_of(growth)
    panels = (
        ("mean", "low", "high", 1, "nats per token"),
        ("share", "share_low", "share_high", 100, "points of damage"),
    )
    with canvas(len(rows) * 1.2 * ROW + 1.0, 1, 2, sharey=True) as (figure, axes):
        axes[0].axvspan(-SMALLEST_EFFECT, SMALLEST_EFFECT, color=BAND, zorder=0)
        for ax, (estimate, low, high, scale, unit) in zip(axes, panels, strict=True):
            ax.axvline(0, color=MUTED, linewidth=0.8)
            for y, row in enumerate(rows):
                ax.plot([scale * row[low], scale * row[high]], [y, y], color=TEXT, linewidth=1.6)
                ax.plot(scale * row[estimate], y, "o", color=TEXT if row["whole"] else "white", markeredgecolor=TEXT)
            ax.set_xlabel(f"change of the s.d. between texts\n({unit})")
            ax.set_ylim(len(rows) - 0.5, -0.5)
        axes[0].set_yticks(range(len(rows)), [_step(row) for row in rows])
    return figure


def describe_spread_growth(growth: pd.DataFrame) -> str:
    """Return the alt text of `fig_spread_growth`."""
    parts = []
    for row in rows_of(growth):
        share, low, high = (100 * row[name] for name in ("share", "share_low", "share_high"))
        parts.append(
            f"{_step(row)}: {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] nats per token, "
            f"{share:+.1f} [{low:+.1f}, {high:+.1f}] points of the damage"
        )
    return f"Change of the standard deviation between texts, noise of draws taken out. {'; '.join(parts)}."


def fig_against_magnitude(runs: pd.DataFrame, against: pd.DataFrame) -> Figure:
    """Return the mean damage with each text in multiples of magnitude's, for each method at each level.

    Args:
        runs: from `frames.scored_runs`. against: from `scaling_tables.magnitude_table`, one row each.
    """
    need_rows(against, "fig_against_magnitude")
    marks = source_marks(sorted(unique(runs["source"].dropna())))
    means = runs[runs["source"].notna()].groupby([*CELL, "source"])["damage"].mean()
    rows = rows_of(against)
    plain: dict[str, Any] = {"color": METHOD_STYLE["magnitude"].colour, "linestyle": METHOD_STYLE["magnitude"].dash}
    with canvas(len(rows) * ROW + 1.25) as (figure, (ax,)):
        ax.axvline(1, **plain)
        seen = [1.0]
        for y, row in enumerate(rows):
            for text, mark in marks.items():
                value = means.loc[row["method"], row["sparsity"], row["pattern"], text] / row["magnitude"]
                ax.plot(value, y, mark.marker, color=mark.colour, markeredgecolor="white", markeredgewidth=0.4)
                seen.append(float(value))
            if np.isfinite(row["random"]):
                ax.plot(row["random"] / row["magnitude"], y, "|", color=TEXT, markersize=11, markeredgewidth=1.6)
                seen.append(row["random"] / row["magnitude"])
        log_ticks(ax, min(seen) / 1.15, max(seen) * 1.15)
        ax.set_yticks(range(len(rows)), [_cell(row) for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel(f"damage, in multiples of magnitude's   {LOWER}")
        keys: list[Any] = [Line2D([], [], linestyle="", color=m.colour, marker=m.marker) for m in marks.values()]
        labels = [source_label(text) for text in marks]
        keys.append(Line2D([], [], **plain))
        labels.append("magnitude")
        if against["random"].notna().any():
            keys.append(Line2D([], [], linestyle="", color=TEXT, marker="|", markersize=11, markeredgewidth=1.6))
            labels.append(method_label("random"))
        figure.legend(keys, labels, loc="outside lower center", ncols=min(5, len(keys)))
    return figure


def describe_against_magnitude(against: pd.DataFrame) -> str:
    """Return the alt text of `fig_against_magnitude`."""
    parts = []
    for row in rows_of(against):
        random = "" if pd.isna(row["random"]) else f", random mask {number(row['random'] / row['magnitude'])}"
        parts.append(f"{_cell(row)}: {row['worst']} {number(row['mean'] / row['magnitude'])}{random}")
    return f"Damage with the worst text, in multiples of magnitude's. {'; '.join(parts)}."


def fig_gap_by_method(gaps: pd.DataFrame) -> Figure:
    """Return worst minus best text with each method that reads text, one panel for each level.

    gaps: from `scaling_levels.gap_table`, rows of `compared`. Grey bars: the 95 % quantile if all texts were one.
    """
    need_rows(gaps, "fig_gap_by_method")
    panels = [rows_of(rows) for _, rows in gaps.groupby(["sparsity", "pattern"], sort=False)]
    height = sum(len(rows) * ROW + 0.55 for rows in panels) + 0.45
    ratios = {"height_ratios": [len(rows) + 1 for rows in panels]}
    with canvas(height, len(panels), 1, gridspec_kw=ratios) as (figure, axes):
        for ax, rows in zip(axes, panels, strict=True):
            for y, row in enumerate(rows):
                ax.barh(y, row["null_q95"], height=0.62, color=BAND)
                style = METHOD_STYLE.get(row["method"])
                ax.plot(row["gap"], y, "o", color=style.colour if style else TEXT)
                said = f"{row['relative']:.1f} s.d. of draws, {100 * row['share']:.1f} % of the damage"
                ax.annotate(said, (1, y), xycoords=ax.get_yaxis_transform(), va="center", ha="right", fontsize=9)
            ax.set_title(level_label(rows[0]["sparsity"], rows[0]["pattern"]))
            ax.set_yticks(range(len(rows)), [method_label(row["method"]) for row in rows])
            ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.75 * max(max(r["gap"], r["null_q95"]) for r in rows)))
        axes[-1].set_xlabel("worst minus best text (nats per token)")
    return figure


def describe_gap_by_method(gaps: pd.DataFrame, agreement: pd.DataFrame) -> str:
    """Return the alt text of `fig_gap_by_method`, and how far methods agree on the order of the texts.

    agreement: from `scaling_tables.agreement_table`.
    """
    parts = [
        f"{_cell(row)}: {row['gap']:.3f} (if one text: below {row['null_q95']:.3f}; {row['best']} best, "
        f"{row['worst']} worst)"
        for row in rows_of(gaps)
    ]
    orders = [
        f"{row['at']} {row['between']:.2f} between methods and {row['within']:.2f} for a method with itself"
        for row in rows_of(agreement[agreement["over"] == "methods"])
    ]
    ranks = f" Rank correlation of the texts on different draws: {'; '.join(orders)}." if orders else ""
    return f"Worst minus best text, in nats per token. {'; '.join(parts)}.{ranks}"


def fig_text_places(places: pd.DataFrame) -> Figure:
    """Return where each text stands with each method at each level; filled marks may be the best there.

    places: from `scaling_tables.place_table`. Lines that cross are texts that change places.
    """
    need_rows(places, "fig_text_places")
    cells = [rows for _, rows in places.groupby(CELL, sort=False)]
    marks = source_marks(sorted(unique(places["source"])))
    with canvas(len(cells) * 1.1 * ROW + 1.25) as (figure, (ax,)):
        for text, mark in marks.items():
            here = [row for cell in cells for row in rows_of(cell[cell["source"] == text])]
            ax.plot([row["place"] for row in here], range(len(cells)), color=mark.colour, linewidth=0.9, zorder=1)
            for y, row in enumerate(here):
                face = mark.colour if row["perhaps_best"] else "white"
                ax.plot(row["place"], y, mark.marker, color=face, markeredgecolor=mark.colour, markeredgewidth=1.2)
        ax.set_yticks(range(len(cells)), [_cell(rows_of(cell)[0]) for cell in cells])
        ax.set_ylim(len(cells) - 0.5, -0.5)
        ax.set_xlabel(f"damage minus the mean of the texts, in s.d. between them   {LOWER}")
        keys: list[Any] = [Line2D([], [], color=m.colour, marker=m.marker, linewidth=0.9) for m in marks.values()]
        labels = [source_label(text) for text in marks]
        for face, label in ((MUTED, "may be the best"), ("white", "another is better")):
            keys.append(Line2D([], [], linestyle="", marker="o", color=face, markeredgecolor=MUTED))
            labels.append(label)
        figure.legend(keys, labels, loc="outside lower center", ncols=min(5, len(keys)))
    return figure


def describe_text_places(places: pd.DataFrame) -> str:
    """Return the alt text of `fig_text_places`."""
    parts = []
    for _, cell in places.groupby(CELL, sort=False):
        rows = sorted(rows_of(cell), key=lambda row: row["mean"])
        others = [row["source"] for row in rows[1:] if row["perhaps_best"]]
        perhaps = f" (perhaps {', '.join(others)})" if others else ""
        parts.append(f"{_cell(rows[0])}: {rows[0]['source']}{perhaps} best, {rows[-1]['source']} worst")
    return f"Best and worst texts. {'; '.join(parts)}."


# --- helpers ----------------------------------------------------------------------------------------------


@contextmanager
def _by_chain(
    rows: pd.DataFrame, method: str, labels: list[str], height: float
) -> Iterator[tuple[Figure, list[tuple[tuple[str, list[Level], list[float]], list[Axes]]]]]:
    """Yield a figure, and for each chain of levels its name, levels and places on x with its axes from top to bottom.

    labels: of the y axes, one for each row of panels.
    """
    found = chains(levels_of(rows))
    widths = {"width_ratios": [max(2, len(levels)) for _, levels in found]}
    shape = (len(labels), len(found))
    with canvas(height, *shape, sharey="row", sharex="col", gridspec_kw=widths) as (figure, axes):
        columns = []
        for index, (name, levels) in enumerate(found):
            column = axes[index :: len(found)]
            numeric = name == "sparsity"
            x = [100 * level[0] if numeric else float(place) for place, level in enumerate(levels)]
            column[-1].xaxis.set_major_locator(FixedLocator(x))
            ticks = [level_label(*level) for level in levels]
            column[-1].set_xticks(x, ticks if numeric else ["unstructured" if "%" in t else t for t in ticks])
            margin = 0.08 * (x[-1] - x[0])
            column[-1].set_xlim(x[0] - 1.5 * margin, x[-1] + 1.5 * margin)
            column[-1].set_xlabel("sparsity, unstructured" if numeric else name)
            columns.append(((name, levels, x), column))
        for ax, label in zip(axes[:: len(found)], labels, strict=True):
            ax.set_ylabel(label)
        axes[0].set_title(method_label(method))
        yield figure, columns


def _log_y(ax: Axes, lowest: float | None = None) -> None:
    """Make y logarithmic, of all axes that share it and hold their data already."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    log_ticks(ax, lowest or low, high, vertical=True)


def _means(runs: pd.DataFrame, levels: list[Level]) -> list[float]:
    """Return the mean damage at each level, NaN where there are no runs."""
    means = runs.groupby(["sparsity", "pattern"])["damage"].mean()
    return [float(means.get(level, np.nan)) for level in levels]


def _floors(runs: pd.DataFrame) -> list[str]:
    """Return the methods without text that are among the runs and serve for scale."""
    return [name for name in FLOORS if name in set(runs["method"])]


def _cell(row: dict[str, Any]) -> str:
    return f"{method_label(row['method'])}, {level_label(row['sparsity'], row['pattern'])}"


def _step(row: dict[str, Any]) -> str:
    """Return from which level to which a row of `growth_table` goes."""
    lower = "unstructured" if row["chain"] != "sparsity" and "%" in row["lower"] else row["lower"]
    return f"{lower} → {row['higher']}"
