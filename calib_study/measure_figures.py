"""Figures of how measures of a pruned model compare: tables of `measuring_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from calib_study.figure_style import (
    BLUE,
    METHOD_STYLE,
    MUTED,
    ORANGE,
    RED,
    TEXT,
    canvas,
    measure_label,
    method_label,
    need_rows,
    number,
    rows_of,
    source_label,
    unique,
)
from calib_study.measuring_tables import KEPT_RISE

ROW = 0.24  # inches of height for one row of text
LOWER = "← lower is better"
KINDS = {"text": (BLUE, "o"), "draw": (ORANGE, "s"), "evaluation": (MUTED, "D")}  # of spread in `noise_table`


def fig_agreement(agreement: pd.DataFrame) -> Figure:
    """Return a heat map of how far measures rank the texts alike: mean rank correlation of each pair.

    agreement: from `measuring_tables.agreement_table`.
    """
    need_rows(agreement, "fig_agreement")
    names = unique(agreement["one"])
    values = agreement.pivot(index="one", columns="other", values="mean").loc[names, names].to_numpy(np.float64)
    with canvas(len(names) * 0.36 + 1.45) as (figure, (ax,)):
        colours: dict[str, Any] = {"cmap": "RdBu", "vmin": -1.3, "vmax": 1.3}
        sns.heatmap(values, **colours, linecolor="white", linewidths=1.5, cbar=False, ax=ax)
        for (row, column), value in np.ndenumerate(values):
            if row != column:
                said = f"{value:.2f}".replace("-", "−")
                ax.text(column + 0.5, row + 0.5, said, ha="center", va="center", fontsize=8.5,
                        color="white" if abs(value) > 0.8 else TEXT)  # fmt: skip
        labels = [measure_label(name) for name in names]
        ax.set_yticks(np.arange(len(names)) + 0.5, labels, rotation=0)
        ax.set_xticks(np.arange(len(names)) + 0.5, labels, rotation=40, ha="right", rotation_mode="anchor")
        ax.tick_params(length=0)
        ax.set_xlabel("")
        ax.set_ylabel("")
        ax.spines["bottom"].set_visible(False)
        ax.grid(False)
    return figure


def describe_agreement(agreement: pd.DataFrame, outcome: str = "accuracy_loss") -> str:
    """Return the alt text of `fig_agreement`: each measure's correlation with the outcome."""
    rows = agreement[(agreement["other"] == outcome) & (agreement["one"] != outcome)]
    parts = [f"{measure_label(name)} {value:+.2f}" for name, value in rows[["one", "mean"]].itertuples(index=False)]
    return f"Heat map of rank correlations over texts. With {measure_label(outcome)}: {', '.join(parts)}."


def fig_home(home: pd.DataFrame) -> Figure:
    """Return, for each held-out text, how damage on it and losses on tasks rank the calibration texts alike.

    home: from `measuring_tables.home_table`. Left of zero the text ranks them the other way round.
    """
    need_rows(home, "fig_home")
    texts, tasks = unique(home["text"]), unique(home["task"])
    with canvas(len(texts) * 1.6 * ROW + 1.15) as (figure, (ax,)):
        ax.axvline(0, color=MUTED, linewidth=0.9)
        for index, task in enumerate(tasks):
            shift = 0.36 * (index - (len(tasks) - 1) / 2)
            colour = (BLUE, RED)[index % 2]
            for y, row in enumerate(rows_of(home[home["task"] == task])):
                _interval(ax, y + shift, row["mean"], row["low"], row["high"], colour, ("o", "s")[index % 2])
        labels = [f"damage on held-out {source_label(text)}" for text in texts]
        ax.set_yticks(range(len(texts)), labels)
        ax.set(xlim=(-1.05, 1.05), ylim=(len(texts) - 0.4, -0.6))
        ax.set_xlabel("rank correlation over calibration texts, with 95 % interval over draws")
        keys = [
            Line2D([], [], linestyle="", marker=("o", "s")[i % 2], color=(BLUE, RED)[i % 2]) for i in range(len(tasks))
        ]
        names = [f"with {measure_label(task)}" for task in tasks]
        figure.legend(keys, names, loc="outside lower center", ncols=len(keys))
    return figure


def describe_home(home: pd.DataFrame) -> str:
    """Return the alt text of `fig_home`."""
    parts = [
        f"damage on {row['text']} with {measure_label(row['task'])} {row['mean']:+.2f}{_limits(row, '', 2)}"
        for row in rows_of(home)
    ]
    best = home.drop_duplicates("text")
    return (
        f"Rank correlation over calibration texts: {'; '.join(parts)}. The least damage on a held-out text is done by "
        f"that text's own kind for {int(best['at_home'].sum())} of {len(best)}."
    )


def fig_reveal(reveal: pd.DataFrame) -> Figure:
    """Return what each measure tells of the loss on tasks: alone, and beyond damage.

    reveal: from `measuring_tables.reveal_table`.
    """
    need_rows(reveal, "fig_reveal")
    rows = rows_of(reveal)
    with canvas(len(rows) * 1.6 * ROW + 1.15) as (figure, (ax,)):
        ax.axvline(0, color=MUTED, linewidth=0.9)
        for y, row in enumerate(rows):
            _interval(ax, y - 0.17, row["alone"], row["alone_low"], row["alone_high"], MUTED, "o")
            if pd.notna(row["beyond"]):
                _interval(ax, y + 0.17, row["beyond"], row["beyond_low"], row["beyond_high"], BLUE, "s")
        ax.set_yticks(range(len(rows)), [measure_label(row["measure"]) for row in rows])
        ax.set(xlim=(-1.05, 1.05), ylim=(len(rows) - 0.4, -0.6))
        ax.set_xlabel("rank correlation with the loss on tasks over runs of a method, with 95 % interval")
        keys = [Line2D([], [], linestyle="", marker=m, color=c) for m, c in (("o", MUTED), ("s", BLUE))]
        figure.legend(keys, ["alone", "beyond damage"], loc="outside lower center", ncols=2)
    return figure


def describe_reveal(reveal: pd.DataFrame) -> str:
    """Return the alt text of `fig_reveal`."""
    parts = []
    for row in rows_of(reveal):
        said = f"{measure_label(row['measure'])} {row['alone']:+.2f}{_limits(row, 'alone_', 2)}"
        if pd.notna(row["beyond"]):
            said += f", beyond damage {row['beyond']:+.2f}{_limits(row, 'beyond_', 2)}"
        parts.append(said)
    return f"Rank correlation with the loss on tasks: {'; '.join(parts)}."


def fig_keeps(keep: pd.DataFrame) -> Figure:
    """Return how perplexity rises and accuracy falls with sparsity, one line for each method.

    keep: from `measuring_tables.keep_table`. The band is a rise of perplexity that counts as kept.
    """
    need_rows(keep, "fig_keeps")
    with canvas(3.3, 1, 2) as (figure, axes):
        panels = (("rise", "perplexity over the dense model's", LOWER), ("loss", "accuracy lost (points)", LOWER))
        for ax, (name, label, arrow) in zip(axes, panels, strict=True):
            factor, start = (1, 1) if name == "rise" else (100, 0)
            for method in unique(keep["method"]):
                here = keep[keep["method"] == method].sort_values("sparsity")
                x = 100 * here["sparsity"]
                middle = start + factor * here[name]
                ends = np.stack([np.abs(factor * (here[f"{name}_{end}"] - here[name])) for end in ("low", "high")])
                line = METHOD_STYLE[method]
                ax.errorbar(x, middle, yerr=ends, color=line.colour, linestyle=line.dash, marker="o", markersize=5,
                            elinewidth=1.3, capsize=3, label=method_label(method))  # fmt: skip
            ax.set_xlabel("sparsity (%)")
            ax.set_title(label)
            ax.set_ylabel(arrow)
        axes[0].set_yscale("log")
        axes[0].axhspan(1, 1 + KEPT_RISE, color="#E6E9ED", zorder=0)
        ticks = [t for t in (1, 1.5, 2, 5, 10, 20, 50, 100, 1000) if t <= 1.2 * axes[0].get_ylim()[1]]
        axes[0].set_yticks(ticks, [number(t) for t in ticks], minor=False)
        axes[0].minorticks_off()
        axes[1].axhline(0, color=MUTED, linewidth=0.9)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)))
    return figure


def describe_keeps(keep: pd.DataFrame) -> str:
    """Return the alt text of `fig_keeps`."""
    parts = [
        f"{method_label(row['method'])} at {100 * row['sparsity']:.0f} %: perplexity {1 + row['rise']:.2f} times the "
        f"dense model's, accuracy lost {100 * row['loss']:.1f} [{100 * row['loss_low']:.1f}, "
        f"{100 * row['loss_high']:.1f}] points"
        for row in rows_of(keep)
    ]
    return f"{'; '.join(parts)}."


def fig_noise(noise: pd.DataFrame) -> Figure:
    """Return by measure how far texts, draws and the evaluation move it, in per cent of its mean loss.

    noise: from `measuring_tables.noise_table`. A component estimated as zero is drawn at the left edge.
    """
    need_rows(noise, "fig_noise")
    rows = rows_of(noise)
    shares = {kind: [100 * row[kind] / abs(row["loss"]) for row in rows] for kind in KINDS}
    above = [value for values in shares.values() for value in values if value > 0]
    low, high = min(above) / 2, max(above) * 1.6
    with canvas(len(rows) * 1.3 * ROW + 1.15) as (figure, (ax,)):
        ax.set_xscale("log")
        for kind, (colour, marker) in KINDS.items():
            for y, value in enumerate(shares[kind]):
                ax.plot([max(value, low)], [y], marker, color=colour, markeredgecolor=TEXT, markeredgewidth=0.8,
                        clip_on=False)  # fmt: skip
        ax.set_yticks(range(len(rows)), [measure_label(row["measure"]) for row in rows])
        ax.set(xlim=(low, high), ylim=(len(rows) - 0.4, -0.6))
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high]
        ax.set_xticks(ticks, [number(t) for t in ticks], minor=False)
        ax.minorticks_off()
        ax.grid(True, axis="both")
        ax.set_xlabel("standard deviation, in per cent of the mean loss (logarithmic axis)")
        keys = [Line2D([], [], linestyle="", marker=marker, color=colour) for colour, marker in KINDS.values()]
        names = ["between texts", "between draws of a text", "from the evaluation"]
        figure.legend(keys, names, loc="outside lower center", ncols=3)
    return figure


def describe_noise(noise: pd.DataFrame) -> str:
    """Return the alt text of `fig_noise`."""
    parts = [
        f"{measure_label(row['measure'])}: texts {_share(row, 'text')}, draws {_share(row, 'draw')}, "
        f"evaluation {_share(row, 'evaluation')}"
        for row in rows_of(noise)
    ]
    return f"Standard deviations in per cent of the mean loss. {'; '.join(parts)}."


def describe_steadiness(noise: pd.DataFrame, measures: tuple[str, str] = ("damage", "accuracy_loss")) -> str:
    """Return how far draws move two measures, in per cent of their mean loss, with 95 % limits."""
    rows = {row["measure"]: row for row in rows_of(noise)}
    parts = []
    for name in measures:
        draw, low, high = (100 * rows[name][end] / rows[name]["loss"] for end in ("draw", "draw_low", "draw_high"))
        limits = f" [{low:.1f}, {high:.1f}]" if np.isfinite([low, high]).all() else ""
        parts.append(f"{measure_label(name)} {draw:.1f} %{limits}")
    return f"s.d. between draws: {', '.join(parts)}"


def _share(row: dict[str, Any], kind: str) -> str:
    return f"{number(100 * row[kind] / abs(row['loss']))} %"


def _interval(ax: Axes, y: float, mean: float, low: float | None, high: float | None, colour: str, mark: str) -> None:
    """Draw a mean with its limits, where it has any."""
    if low is not None and high is not None and np.isfinite([low, high]).all():
        ax.plot([max(low, -1.05), min(high, 1.05)], [y, y], color=colour, linewidth=1.6)
    ax.plot([mean], [y], mark, color=colour, markeredgecolor=TEXT, markeredgewidth=0.8, markersize=6)


def _limits(row: dict[str, Any], prefix: str, digits: int) -> str:
    """Return the limits as " [-0.10, +0.20]", or nothing where there are none."""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "" if pd.isna(low) or pd.isna(high) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
