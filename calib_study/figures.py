"""One function for each figure of the book: tables in, Figure out. Nothing is shown, saved or estimated here.

Tables come from `frames`, intervals and shares from `statistics`. Beside each `fig_<claim>` stands a
`describe_<claim>` that says in words, from the same data, what the figure shows (its alt text).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from calib_study.errors import InputError
from calib_study.figure_style import (
    BLUE,
    METHOD_STYLE,
    MUTED,
    PURPLE,
    RED,
    SKY,
    TEXT,
    Mark,
    canvas,
    log_ticks,
    number,
    seed_legend,
    source_label,
    source_marks,
    tag,
    window,
)
from calib_study.frames import FLOOR_SOURCE, SETTING_COLUMNS
from calib_study.statistics import COMPONENTS, Interval, SameSourceNull

ROW = 0.215  # inches of height for one row of text
LOWER = "← lower is better"
Limits = tuple[float, float, float]  # mean, low, high; NaN where there is no interval


def fig_perplexity_by_source(frame: pd.DataFrame, intervals: pd.DataFrame, *, method: str = "wanda") -> Figure:
    """Return perplexity by calibration source, one panel for each held-out set, every seed a faint point.

    The dense model is the grey dashed line, magnitude pruning the black one; what lies so far off in any panel
    that the sources would crowd together is, in all panels, an arrow with its number. Logarithmic axes.

    Args:
        frame: tidy frame of one model, sparsity, pattern, policy and size; rows of metric "perplexity".
        intervals: `interval_table(rows, ["method", "source", "dataset"], log=True)`; NaN limits are not drawn.
        method: the calibrated method to show.
    Raises InputError if the frame mixes settings or has no such rows.
    """
    rows = frame[frame["metric"] == "perplexity"]
    seeds = _of_one_setting(rows[(rows["method"] == method) & rows["source"].notna()], "fig_perplexity_by_source")
    means = intervals[(intervals["method"] == method) & intervals["source"].notna()]
    order = _by_damage(means)
    datasets = list(dict.fromkeys(seeds["dataset"]))
    columns = min(2, len(datasets))
    panel_rows = -(-len(datasets) // columns)
    points = {d: _by_source(seeds[seeds["dataset"] == d], "value") for d in datasets}
    limits = {d: _limits(means[means["dataset"] == d]) for d in datasets}
    lines = {d: _lines(rows[rows["dataset"] == d]) for d in datasets}
    shown: set[str] = set()
    for name in ("dense", "magnitude", FLOOR_SOURCE):
        tried = shown | {name}
        if all(name in _extent(points[d], limits[d], lines[d], log=True, only=tried)[2] for d in datasets):
            shown = tried
    height = panel_rows * ((len(order) + 2) * ROW + 0.62) + 0.35
    with canvas(height, panel_rows, columns, sharey=True) as (figure, axes):
        for index, (ax, dataset) in enumerate(zip(axes, datasets, strict=False)):
            low, high, _ = _extent(points[dataset], limits[dataset], lines[dataset], log=True, only=shown)
            log_ticks(ax, low, high)
            _dot_rows(ax, points[dataset], limits[dataset], order, lines[dataset])
            ax.set_title(f"on held-out {source_label(dataset)}")
            if index >= len(datasets) - columns:
                ax.set_xlabel(f"perplexity (per token)   {LOWER}")
        for ax in axes[len(datasets) :]:
            ax.set_visible(False)
        seed_legend(figure, int(means["n"].max()), "geometric mean over seeds")
    return figure


def describe_perplexity_by_source(intervals: pd.DataFrame, *, method: str = "wanda") -> str:
    """Return the alt text of `fig_perplexity_by_source`."""
    means = intervals[(intervals["method"] == method) & intervals["source"].notna()]
    parts = []
    for dataset, group in means.groupby("dataset", sort=False):
        real = group[group["source"] != FLOOR_SOURCE].sort_values("mean")
        best, worst = real.iloc[0], real.iloc[-1]
        parts.append(
            f"on held-out {dataset} from {number(best['mean'])} with {best['source']} "
            f"to {number(worst['mean'])} with {worst['source']}"
        )
    sources = means["source"].nunique()
    return f"Perplexity after {method} pruning for {sources} calibration sources: {'; '.join(parts)}."


def fig_front_page(damage: pd.DataFrame, intervals: pd.DataFrame, *, method: str = "wanda") -> Figure:
    """Return the whole question in one figure: mean damage by calibration source, with magnitude for scale.

    Args:
        damage: `damage_table(frame)` of one model, sparsity, pattern, policy and size.
        intervals: `interval_table(damage, ["method", "source"], "damage")`.
        method: the calibrated method to show.
    Raises InputError if the table mixes settings or has no such rows.
    """
    runs = _of_one_setting(damage[(damage["method"] == method) & damage["source"].notna()], "fig_front_page")
    means = intervals[(intervals["method"] == method) & intervals["source"].notna()]
    order = [str(source) for source in means.sort_values("mean")["source"]]
    points, limits = _by_source(runs, "damage"), _limits(means)
    lines = {"dense": 0.0, **_lines(damage, "damage")}
    low, high, _ = _extent(points, limits, lines, log=False)
    with canvas((len(order) + 2) * ROW + 0.95) as (figure, (ax,)):
        ax.set_xlim(low, high)
        _dot_rows(ax, points, limits, order, lines)
        ax.set_xlabel(f"damage by pruning: mean rise of the loss (nats per token)   {LOWER}")
        seed_legend(figure, int(means["n"].max()), "mean over seeds")
    return figure


def describe_front_page(intervals: pd.DataFrame, *, method: str = "wanda") -> str:
    """Return the alt text of `fig_front_page`."""
    means = intervals[(intervals["method"] == method) & intervals["source"].notna()]
    real = means[means["source"] != FLOOR_SOURCE].sort_values("mean")
    best, worst = real.iloc[0], real.iloc[-1]
    text = (
        f"Mean damage by {method} pruning for {len(real)} calibration texts: from {best['mean']:.2f} nats per "
        f"token with {best['source']} to {worst['mean']:.2f} with {worst['source']}"
    )
    plain = intervals[intervals["method"] == "magnitude"]
    return text + (f"; magnitude pruning, without text: {plain['mean'].iloc[0]:.2f}." if len(plain) else ".")


def fig_variance_shares(shares: Mapping[str, Interval]) -> Figure:
    """Return the share of all variance that source, method, both together, and the seed explain.

    shares: from `variance_shares_interval`. Estimates below zero are drawn at zero.
    """
    colours = dict(zip(COMPONENTS, (BLUE, RED, PURPLE, MUTED), strict=True))
    names = {"source": "source of the text", "method": "pruning method", "seed": "seed (which samples)"}
    with canvas(len(shares) * 0.36 + 0.75) as (figure, (ax,)):
        for y, (part, share) in enumerate(shares.items()):
            mean = 100 * max(share.mean, 0.0)
            ax.barh(y, mean, height=0.62, color=colours.get(part, SKY), alpha=0.85)
            end, label = mean, f"{_share(mean)} %"
            if share.low is not None and share.high is not None:
                low, high = 100 * share.low, 100 * share.high
                ax.plot([low, high], [y, y], color=TEXT, linewidth=1.6, solid_capstyle="butt")
                ax.plot([low, high], [y, y], "|", color=TEXT, markersize=8)
                end, label = max(mean, high), f"{label}  ({_share(low)} to {_share(high)})"
            ax.annotate(label, (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set_yticks(range(len(shares)), [names.get(part, part.replace(" x ", " × ")) for part in shares])
        ax.set(xlim=(0, 118), ylim=(len(shares) - 0.45, -0.55))
        ax.set_xticks(range(0, 101, 20))
        ax.set_xlabel("share of all variance (%), with 95 % interval")
        ax.grid(False)
    return figure


def describe_variance_shares(shares: Mapping[str, Interval]) -> str:
    """Return the alt text of `fig_variance_shares`."""
    parts = [f"{part} {_share(100 * max(share.mean, 0.0))} %" for part, share in shares.items()]
    return f"Bars of the share of variance explained: {', '.join(parts)}."


def fig_same_source_null(null: SameSourceNull, unit: str = "nats per token") -> Figure:
    """Return the histogram of "worst minus best" if all sources were one, with the observed value as a line."""
    far = null.observed > 6 * null.null_q95  # then only a logarithmic axis shows both
    low, high = float(null.draws.min()), float(max(null.draws.max(), null.observed))
    bins = np.geomspace(max(low, high * 1e-4), null.draws.max(), 40) if far else np.linspace(0, null.draws.max(), 40)
    with canvas(2.75) as (figure, (ax,)):
        sns.histplot(null.draws, bins=list(bins), color="#C9CED6", alpha=1, edgecolor="white", linewidth=0.5, ax=ax)
        ax.set_ylabel("")
        top = max(bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle))
        ax.vlines(null.null_q95, 0, 1.08 * top, color=MUTED, linestyle="--", linewidth=1.4)
        ax.vlines(null.observed, 0, 1.3 * top, color=BLUE, linewidth=2.2)
        if far:
            log_ticks(ax, max(low, high * 1e-4) * 0.85, high * 1.2)
        else:
            ax.set_xlim(0, 1.08 * high)
        tag(ax, null.null_q95, 1.08 * top, f"95 % of draws below {null.null_q95:.2g}", MUTED)
        found = f"observed {null.observed:.2g}  ({_p(null)}; {null.relative:.1f} s.d. over seeds)"
        tag(ax, null.observed, 1.3 * top, found, BLUE)
        ax.set(ylim=(0, 1.42 * top), yticks=[])
        ax.grid(False)
        ax.set_xlabel(f"worst minus best source mean ({unit})" + (", logarithmic axis" if far else ""))
        ax.set_title(f"If all {null.n_sources} sources were one and the same ({null.n_seeds} seeds each)")
    return figure


def describe_same_source_null(null: SameSourceNull, unit: str = "nats per token") -> str:
    """Return the alt text of `fig_same_source_null`."""
    side = "above" if null.observed > null.null_q95 else "not above"
    return (
        f"Histogram of worst minus best source mean if all {null.n_sources} sources were the same: mean "
        f"{null.null_mean:.2g}, 95 % quantile {null.null_q95:.2g} {unit}. The observed {null.observed:.2g} lies "
        f"{side} that quantile ({_p(null)})."
    )


def fig_own_text_advantage(table: pd.DataFrame) -> Figure:
    """Return a heat map, sources by held-out sets, of how much worse than the best text each one is.

    table: `advantage_table(frame, method)`, ln(perplexity / best) in nats per token. Shown as per cent of
    perplexity; a frame marks where the source and the held-out set are the same kind of text.
    """
    real = [s for s in table.mean(axis=1).sort_values().index if s != FLOOR_SOURCE]
    order = real + [s for s in table.index if s == FLOOR_SOURCE]
    values = table.loc[order].to_numpy(dtype=np.float64)
    worst = max(float(table.loc[real or order].to_numpy().max()), 0.05)
    with canvas(len(order) * 0.3 + 0.85) as (figure, (ax,)):
        colours = {"cmap": "YlOrBr", "vmin": 0, "vmax": 1.15 * worst}
        sns.heatmap(values, **colours, linecolor="white", linewidths=1.5, cbar=False, ax=ax)
        for (row, column), value in np.ndenumerate(values):
            home = order[row] == table.columns[column]
            if home:
                box = Rectangle((column + 0.015, row + 0.05), 0.97, 0.9, fill=False, edgecolor=BLUE, linewidth=2)
                ax.add_patch(box)
            text = ax.text(column + 0.5, row + 0.5, _per_cent(value), ha="center", va="center", fontsize=9)
            text.set(color="white" if value > 0.72 * worst else TEXT, weight="bold" if home else "normal")
        ax.set_yticks(np.arange(len(order)) + 0.5, [source_label(s) for s in order], rotation=0)
        ax.set_xticks(np.arange(values.shape[1]) + 0.5, [source_label(str(d), 14) for d in table.columns])
        ax.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        ax.xaxis.set_label_position("top")
        ax.set_xlabel("perplexity above that of the best calibration text, on held-out …")
        ax.set_ylabel("calibration text")
        ax.set_ylim(len(order), 0)
        ax.spines["bottom"].set_visible(False)
        ax.grid(False)
    return figure


def describe_own_text_advantage(table: pd.DataFrame) -> str:
    """Return the alt text of `fig_own_text_advantage`."""
    real = table.drop(index=FLOOR_SOURCE, errors="ignore")
    best = {str(dataset): str(real[dataset].idxmin()) for dataset in real.columns}
    own = [dataset for dataset, source in best.items() if dataset == source]
    pairs = ", ".join(f"{source} for {dataset}" for dataset, source in best.items())
    return (
        f"Heat map of {len(table)} calibration sources by {len(best)} held-out sets. Best texts: {pairs}. "
        f"Best at home: {len(own)} of {len(best)} sets."
    )


def _extent(
    points: Mapping[str, Sequence[float]],
    limits: Mapping[str, Limits],
    lines: Mapping[str, float],
    *,
    log: bool,
    only: Collection[str] | None = None,
) -> tuple[float, float, set[str]]:
    """Return axis limits made by the sources, and which lines (and FLOOR_SOURCE) fit on that axis.

    The seeds of real sources are all shown; an interval may lengthen the axis by 0.3 of them at each end, after
    which it runs off the page. only: consider no other lines than these.
    """
    real = [s for s in points if s != FLOOR_SOURCE] or list(points)
    scale = np.log if log else np.asarray
    seen = scale(np.concatenate([points[s] for s in real]))
    ends = scale(np.array([end for s in real for end in limits[s]]))
    room = 0.3 * np.ptp(seen)
    low = max(float(np.nanmin(ends)), float(seen.min() - room))
    high = min(float(np.nanmax(ends)), float(seen.max() + room))
    core = [min(low, float(seen.min())), max(high, float(seen.max()))]
    far = dict(lines)
    if FLOOR_SOURCE not in real and FLOOR_SOURCE in limits:
        far[FLOOR_SOURCE] = max(points[FLOOR_SOURCE])
    names = [name for name in far if only is None or name in only]
    low, high, inside = window(core, [float(scale(far[name])) for name in names])
    fitting = {name for name, fits in zip(names, inside, strict=True) if fits}
    return (float(np.exp(low)), float(np.exp(high)), fitting) if log else (low, high, fitting)


def _dot_rows(
    ax: Axes,
    points: Mapping[str, Sequence[float]],
    limits: Mapping[str, Limits],
    order: Sequence[str],
    lines: Mapping[str, float],
) -> None:
    """Draw one row a source on an axis whose x is set, and the reference lines, named in two rows above."""
    marks = source_marks(sorted(points))
    for y, source in enumerate(order):
        _one_row(ax, y, points[source], limits[source], marks[source])
    for y, (name, value) in zip((-2, -1), lines.items(), strict=False):
        style, (left, right) = METHOD_STYLE[name], ax.get_xlim()
        if left <= value <= right:
            ax.vlines(value, y - 0.35, len(order) - 0.4, color=style.colour, linestyle=style.dash, zorder=2)
        tag(ax, value, y, f"{name} {number(value) if value else 0}", style.colour)
    ax.set_yticks(range(len(order)), [source_label(s) for s in order])
    ax.set_ylim(len(order) - 0.4, -2.6)


def _one_row(ax: Axes, y: int, seeds: Sequence[float], limits: Limits, mark: Mark) -> None:
    """Draw the seeds as faint dots, the mean with its interval on top; a mean off the axis as an arrow."""
    mean, low, high = limits
    left, right = ax.get_xlim()
    if not left <= mean <= right:
        tag(ax, mean, y, number(mean), mark.colour)
        return
    if len(seeds) > 1:
        ax.plot(seeds, [y] * len(seeds), "o", color=mark.colour, alpha=0.45, markersize=5, markeredgewidth=0)
    if np.isfinite(low):
        ax.plot([low, high], [y, y], color=TEXT, linewidth=1.6, zorder=3)
    ax.plot([mean], [y], mark.marker, color=mark.colour, markeredgecolor=TEXT, markeredgewidth=0.9, zorder=4)


def _by_source(rows: pd.DataFrame, value: str) -> dict[str, list[float]]:
    """Return each source's values, one for each seed."""
    return {str(source): [float(v) for v in group[value]] for source, group in rows.groupby("source")}


def _limits(means: pd.DataFrame) -> dict[str, Limits]:
    """Return each source's mean, low and high."""
    columns = means[["source", "mean", "low", "high"]].itertuples(index=False)
    return {str(source): (float(mean), float(low), float(high)) for source, mean, low, high in columns}


def _lines(rows: pd.DataFrame, value: str = "value") -> dict[str, float]:
    """Return the value of the dense model and of magnitude pruning, of those that are among the rows."""
    found = {name: rows.loc[rows["method"] == name, value] for name in ("dense", "magnitude")}
    return {name: float(values.iloc[0]) for name, values in found.items() if len(values)}


def _by_damage(means: pd.DataFrame) -> list[str]:
    """Return the sources from least to most damage over all held-out sets (mean logarithm)."""
    logs = means.assign(log=np.log(means["mean"])).groupby("source")["log"].mean()
    return [str(s) for s in logs.sort_values().index]


def _of_one_setting(rows: pd.DataFrame, caller: str) -> pd.DataFrame:
    """Return the rows; InputError if there are none, or if they mix models, sparsities, patterns or sizes."""
    if rows.empty:
        raise InputError(f"{caller}: no runs of a method with a calibration source to draw.")
    mixed = [c for c in SETTING_COLUMNS if c in rows.columns and rows[c].nunique(dropna=False) > 1]
    if mixed:
        raise InputError(f"{caller} draws one setting, but the frame mixes several of {', '.join(mixed)}.")
    return rows


def _per_cent(value: float) -> str:
    """Return how much a perplexity is above the best, from the logarithm of their ratio."""
    if value == 0:
        return "best"
    return f"{100 * np.expm1(value):+,.0f} %" if abs(value) >= 0.005 else "0 %"


def _share(per_cent: float) -> str:
    """Return a share in per cent, with decimals near 0 and 100, which it only reads if it is that."""
    if per_cent in (0, 100) or 1 <= per_cent < 99:
        return f"{per_cent:.0f}"
    return f"{per_cent:.2f}" if per_cent < 1 else f"{per_cent:.1f}"


def _p(null: SameSourceNull) -> str:
    """Return the p value as text; the smallest that the number of draws allows is only a bound."""
    if null.p_value < 1.5 / (1 + len(null.draws)):
        return f"p ≤ {null.p_value:.1g}"
    return f"p = {null.p_value:.3f}" if null.p_value >= 0.001 else f"p = {null.p_value:.1g}"
