"""One function for each figure of the book: tables in, Figure out. Nothing is shown, saved or estimated here.

Tables come from `frames`, intervals and shares from `statistics`. Beside each `fig_<claim>` stands a
`describe_<claim>` that says in words, from the same data, what the figure shows (its alt text).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from calib_study.errors import InputError
from calib_study.figure_style import (
    BLUE,
    METHOD_STYLE,
    MUTED,
    PURPLE,
    RED,
    TEXT,
    canvas,
    log_ticks,
    number,
    source_label,
    source_marks,
    window,
)
from calib_study.frames import FLOOR_SOURCE, SETTING_COLUMNS
from calib_study.statistics import COMPONENTS, Interval, SameSourceNull

ROW = 0.215  # inches of height for one row of text
LOWER = "← lower is better"


def fig_perplexity_by_source(frame: pd.DataFrame, intervals: pd.DataFrame, *, method: str = "wanda") -> Figure:
    """Return perplexity by calibration source, one panel for each held-out set, every seed a faint point.

    The dense model is the grey dashed line, magnitude pruning the black one; what lies so far off that the
    sources would crowd together is an arrow with its number at the edge. Logarithmic axes.

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
    height = panel_rows * ((len(order) + 2) * ROW + 0.62) + 0.35
    with canvas(height, panel_rows, columns, sharey=True) as (figure, axes):
        for index, (ax, dataset) in enumerate(zip(axes, datasets, strict=False)):
            here = rows[rows["dataset"] == dataset]
            lines = {name: _single(here, name) for name in ("dense", "magnitude")}
            points = {s: g["value"].tolist() for s, g in seeds[seeds["dataset"] == dataset].groupby("source")}
            _dot_rows(ax, points, means[means["dataset"] == dataset], order, lines, log=True)
            ax.set_title(f"on held-out {source_label(dataset)}")
            if index >= len(datasets) - columns:
                ax.set_xlabel(f"perplexity (per token)   {LOWER}")
        for ax in axes[len(datasets) :]:
            ax.set_visible(False)
        _legend(figure, int(means["n"].max()), "geometric mean over seeds")
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
    order = list(means.sort_values("mean")["source"])
    magnitude = damage.loc[damage["method"] == "magnitude", "damage"]
    lines = {"dense": 0.0, "magnitude": float(magnitude.iloc[0]) if len(magnitude) else None}
    points = {s: g["damage"].tolist() for s, g in runs.groupby("source")}
    with canvas((len(order) + 2) * ROW + 0.95) as (figure, axes):
        _dot_rows(axes[0], points, means, order, lines, log=False)
        axes[0].set_xlabel(f"damage by pruning: mean rise of the loss (nats per token)   {LOWER}")
        _legend(figure, int(means["n"].max()), "mean over seeds")
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
            ax.barh(y, mean, height=0.62, color=colours[part], alpha=0.85)
            end, label = mean, f"{mean:.0f} %"
            if share.low is not None and share.high is not None:
                low, high = 100 * share.low, 100 * share.high
                ax.plot([low, high], [y, y], color=TEXT, linewidth=1.6, solid_capstyle="butt")
                ax.plot([low, high], [y, y], "|", color=TEXT, markersize=8)
                end, label = max(mean, high), f"{label}  ({low:.0f} to {high:.0f})"
            ax.annotate(label, (end, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set_yticks(range(len(shares)), [names.get(part, part.replace(" x ", " × ")) for part in shares])
        ax.set(xlim=(0, 118), ylim=(len(shares) - 0.45, -0.55))
        ax.set_xticks(range(0, 101, 20))
        ax.set_xlabel("share of all variance (%), with 95 % interval")
        ax.grid(False)
    return figure


def describe_variance_shares(shares: Mapping[str, Interval]) -> str:
    """Return the alt text of `fig_variance_shares`."""
    parts = [f"{part} {100 * max(share.mean, 0.0):.0f} %" for part, share in shares.items()]
    return f"Bars of the share of variance explained: {', '.join(parts)}."


def fig_same_source_null(null: SameSourceNull, unit: str = "nats per token") -> Figure:
    """Return the histogram of "worst minus best" if all sources were one, with the observed value as a line."""
    far = null.observed > 6 * null.null_q95  # then only a logarithmic axis shows both
    low, high = float(null.draws.min()), float(max(null.draws.max(), null.observed))
    bins = np.geomspace(max(low, high * 1e-4), null.draws.max(), 40) if far else np.linspace(0, null.draws.max(), 40)
    with canvas(2.75) as (figure, (ax,)):
        counts, _, _ = ax.hist(null.draws, bins=list(bins), color="#C9CED6", edgecolor="white", linewidth=0.5)
        top = float(np.max(counts))
        ax.vlines(null.null_q95, 0, 1.08 * top, color=MUTED, linestyle="--", linewidth=1.4)
        ax.vlines(null.observed, 0, 1.3 * top, color=BLUE, linewidth=2.2)
        if far:
            log_ticks(ax, max(low, high * 1e-4) * 0.85, high * 1.2)
        else:
            ax.set_xlim(0, 1.08 * high)
        left, right = ax.get_xlim()
        _tag(
            ax,
            null.null_q95,
            1.08 * top,
            f"95 % of draws below {null.null_q95:.2g}",
            "#5F5F5F",
            (left, right),
        )
        found = f"observed {null.observed:.2g}  (p {_p(null.p_value)}; {null.relative:.1f} s.d. over seeds)"
        _tag(ax, null.observed, 1.3 * top, found, BLUE, (left, right))
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
        f"{side} that quantile (p {_p(null.p_value)})."
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
        ax.pcolormesh(values, cmap="YlOrBr", vmin=0, vmax=1.15 * worst, edgecolors="white", linewidth=1.5)
        for (row, column), value in np.ndenumerate(values):
            home = order[row] == table.columns[column]
            if home:
                box = Rectangle((column + 0.015, row + 0.05), 0.97, 0.9, fill=False, edgecolor=BLUE, linewidth=2)
                ax.add_patch(box)
            colour = "white" if value > 0.72 * worst else TEXT
            weight = "bold" if home else "normal"
            text = f"{100 * np.expm1(value):+.0f} %" if abs(value) >= 0.005 else "best" if value == 0 else "0 %"
            ax.text(
                column + 0.5,
                row + 0.5,
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
                weight=weight,
            )
        ax.set_yticks(np.arange(len(order)) + 0.5, [source_label(s) for s in order])
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


def _dot_rows(
    ax: Axes,
    points: Mapping[str, Sequence[float]],
    means: pd.DataFrame,
    order: Sequence[str],
    lines: Mapping[str, float | None],
    *,
    log: bool,
) -> None:
    """Draw one row a source: faint seeds, mean with interval; reference lines named in two rows above."""
    marks = source_marks(sorted(points))
    stats = means.set_index("source")
    scale = np.log if log else np.asarray
    seen = np.concatenate([np.asarray(v) for s, v in points.items() if s != FLOOR_SOURCE or len(points) == 1])
    core = scale([seen.min(), seen.max()]).tolist()
    floor = [float(np.median(points[FLOOR_SOURCE]))] if FLOOR_SOURCE in points and len(points) > 1 else []
    drawn = {name: value for name, value in lines.items() if value is not None}
    low, high, inside = window(core, scale([*drawn.values(), *floor]).tolist())
    low, high = (float(np.exp(low)), float(np.exp(high))) if log else (low, high)
    if log:
        log_ticks(ax, low, high)
    else:
        ax.set_xlim(low, high)
    for y, source in enumerate(order):
        _one_row(ax, y, points[source], stats.loc[source], marks[source].colour, marks[source].marker)
    for y, (name, value) in zip((-2, -1), drawn.items(), strict=False):
        _reference(ax, y, name, value, len(order))
    ax.set_yticks(range(len(order)), [source_label(s) for s in order])
    ax.set_ylim(len(order) - 0.4, -2.6)


def _one_row(ax: Axes, y: int, seeds: Sequence[float], mean: "pd.Series[float]", colour: str, marker: str) -> None:
    low, high = ax.get_xlim()
    if not low <= mean["mean"] <= high:
        _edge(ax, y, float(mean["mean"]), number(float(mean["mean"])), colour)
        return
    ax.plot(seeds, [y] * len(seeds), marker, color=colour, alpha=0.38, markersize=5, markeredgewidth=0)
    if np.isfinite(mean["low"]):
        ax.plot([mean["low"], mean["high"]], [y, y], color=TEXT, linewidth=1.6, zorder=3)
    ax.plot([mean["mean"]], [y], marker, color=colour, markeredgecolor=TEXT, markeredgewidth=0.9, zorder=4)


def _reference(ax: Axes, y: int, name: str, value: float, rows: int) -> None:
    """Draw a method without text as a vertical line with its name and number, or as an arrow at the edge."""
    style, label = METHOD_STYLE[name], f"{name} {number(value) if value else 0}"
    low, high = ax.get_xlim()
    if not low <= value <= high:
        _edge(ax, y, value, label, style.colour)
        return
    ax.vlines(value, y - 0.35, rows - 0.4, color=style.colour, linestyle=style.dash, linewidth=1.5, zorder=2)
    _tag(ax, value, y, label, style.colour, (low, high))


def _edge(ax: Axes, y: float, value: float, label: str, colour: str) -> None:
    """Write the label with an arrow at the left or right edge: the value is off the axis."""
    right = value > ax.get_xlim()[1]
    text = f"{label} →" if right else f"← {label}"
    place = (1.0, y) if right else (0.0, y)
    transform = ax.get_yaxis_transform()
    ax.text(
        *place,
        text,
        transform=transform,
        ha="right" if right else "left",
        va="center",
        color=colour,
        fontsize=9,
    )


def _tag(ax: Axes, x: float, y: float, label: str, colour: str, limits: tuple[float, float]) -> None:
    """Write the label beside the vertical line at x, on the side with more room."""
    low, high = np.log(limits) if ax.get_xscale() == "log" else limits
    at = (np.log(x) if ax.get_xscale() == "log" else x) - low
    left = at > 0.5 * (high - low)
    ax.annotate(
        label,
        (x, y),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        color=colour,
        fontsize=9,
    )


def _legend(figure: Figure, n_seeds: int, mean: str) -> None:
    """Put below the panels what a faint point, a dark one and a bar are."""
    seed = Line2D([], [], linestyle="", marker="o", color=MUTED, alpha=0.45, markersize=5, markeredgewidth=0)
    centre = Line2D([], [], color=TEXT, marker="o", markerfacecolor="white", markersize=7, linewidth=1.6)
    note = f"{mean}, 95 % interval" if n_seeds > 1 else "its value (one seed, no interval)"
    plural = "s" if n_seeds > 1 else ""
    labels = [f"one seed of {n_seeds}" if n_seeds > 1 else f"{n_seeds} seed{plural}", note]
    figure.legend([seed, centre], labels, loc="outside lower right", ncols=2, columnspacing=1.5)


def _by_damage(means: pd.DataFrame) -> list[str]:
    """Return the sources from least to most damage over all held-out sets (mean logarithm)."""
    logs = means.assign(log=np.log(means["mean"])).groupby("source")["log"].mean()
    return [str(s) for s in logs.sort_values().index]


def _single(rows: pd.DataFrame, method: str) -> float | None:
    """Return the perplexity of a method that reads no text, or None if there is no such run."""
    found = rows.loc[rows["method"] == method, "value"]
    return float(found.iloc[0]) if len(found) else None


def _of_one_setting(rows: pd.DataFrame, caller: str) -> pd.DataFrame:
    """Return the rows; InputError if there are none, or if they mix models, sparsities, patterns or sizes."""
    if rows.empty:
        raise InputError(f"{caller}: no runs of a method with a calibration source to draw.")
    mixed = [c for c in SETTING_COLUMNS if c in rows.columns and rows[c].nunique(dropna=False) > 1]
    if mixed:
        raise InputError(f"{caller} draws one setting, but the frame mixes several of {', '.join(mixed)}.")
    return rows


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else f"= {value:.1g}"
