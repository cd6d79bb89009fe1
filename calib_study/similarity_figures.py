"""Figures of the chapter on likeness to training text: tables of `similarity_tables`, `likeness_tables` in, Figure out.

Beside each `fig_<claim>` stands a `describe_<claim>` that says in words, from the same data, what it shows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from calib_study.figure_style import (
    BLUE,
    MUTED,
    RED,
    TEXT,
    canvas,
    method_label,
    need_rows,
    rows_of,
    source_label,
    source_marks,
    unique,
)
from calib_study.glassbox_reports import Report
from calib_study.similarity_tables import LEAST
from calib_study.sources import UNSEEN

BAND = "#E6E9ED"  # what is too small to matter
LESS = "share of the damage"


def fig_training(reports: Mapping[str, Report]) -> Figure:
    """Return the curves of training: one panel a model; its training text, and every held-out corpus."""
    if not reports:
        need_rows(pd.DataFrame(), "fig_training")
    columns = min(3, len(reports))
    rows = -(-len(reports) // columns)
    marks = source_marks(name for report in reports.values() for name in report.held_out)
    with canvas(2.1 * rows + 0.7, rows, columns, sharex=True, sharey=True) as (figure, axes):
        for ax in axes[len(reports) :]:
            ax.set_axis_off()
        for ax, (name, report) in zip(axes, reports.items(), strict=False):
            ax.plot(report.curve.steps, report.curve.loss, color=TEXT, linestyle=":", label="training text")
            for corpus, curve in report.held_out.items():
                known = corpus in report.recipe.sources
                ax.plot(curve.steps, curve.loss, color=marks[corpus].colour, linewidth=2.0 if known else 1.0,
                        marker=marks[corpus].marker, markevery=[-1], label=source_label(corpus))  # fmt: skip
            ax.set_title(name)
        for ax in axes[-columns:]:
            ax.set_xlabel("step")
        for ax in axes[::columns]:
            ax.set_ylabel("nats per token")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def describe_training(reports: Mapping[str, Report]) -> str:
    """Return the alt text of `fig_training`."""
    parts = [
        f"{name}, {report.recipe.n_tokens / 1e6:.1f} million tokens: perplexity "
        + ", ".join(f"{value:.0f} on held-out {corpus}" for corpus, value in report.perplexity.items())
        for name, report in reports.items()
    ]
    return f"Curves of training. {'; '.join(parts)}."


def crossed_means(cells: pd.DataFrame, models: Mapping[str, Sequence[str]], corpora: Sequence[str]) -> pd.DataFrame:
    """Return the mean logarithm of damage by model and text evaluated (rows) and by text that calibrated (columns).

    Minus the mean of the row. Rows: every model of one corpus on its own held-out text, then the model of all on each.
    """
    unseen = cells[cells["view"] == UNSEEN]
    single = {texts[0]: name for name, texts in models.items() if len(texts) == 1}
    rows = [(single[corpus], corpus) for corpus in corpora if corpus in single]
    rows += [(name, corpus) for name, texts in models.items() if len(texts) > 1 for corpus in corpora]
    table = unseen.groupby(["model", "evaluated", "calibrated"])["log_damage"].mean().unstack()[list(corpora)]
    need_rows(table, "crossed_means")
    chosen = table.loc[rows]
    return chosen.sub(chosen.mean(axis=1), axis=0)


def fig_crossed(cells: pd.DataFrame, models: Mapping[str, Sequence[str]], corpora: Sequence[str]) -> Figure:
    """Return a map of damage by model and calibration text, with each model's own text framed.

    Args:
        cells: of one method and sparsity.
    """
    means = crossed_means(cells, models, corpora)
    singles = sum(len(texts) == 1 for texts in models.values())
    labels = [f"{model}, on {corpus}" for model, corpus in means.index]
    reach = float(np.abs(means.to_numpy()).max())
    with canvas(0.42 * len(means) + 1.2) as (figure, (ax,)):
        picture = ax.imshow(means, cmap=sns.color_palette("vlag", as_cmap=True), vmin=-reach, vmax=reach, aspect="auto")
        for (row, column), value in np.ndenumerate(means.to_numpy()):
            dark = abs(value) > 0.7 * reach
            ax.text(column, row, f"{value:+.2f}", ha="center", va="center", color="white" if dark else TEXT)
        ax.set_yticks(range(len(means)), labels)
        ax.set_xticks(range(len(corpora)), [source_label(name) for name in corpora])
        figure.colorbar(picture, ax=ax, label="ln damage minus the row's mean\n← lower is better")
        for row, (_, corpus) in enumerate(means.index):
            corner = (list(corpora).index(corpus) - 0.47, row - 0.46)
            dash = "-" if row < singles else ":"
            ax.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor=TEXT, linewidth=1.8, linestyle=dash))
        ax.set_xlabel("calibrated with (unseen part)")
        ax.tick_params(left=False, bottom=False)
    return figure


def describe_crossed(cells: pd.DataFrame, models: Mapping[str, Sequence[str]], corpora: Sequence[str]) -> str:
    """Return the alt text of `fig_crossed`."""
    means = crossed_means(cells, models, corpora)
    parts = [
        f"{' on '.join(row)}: " + ", ".join(f"{name} {value:+.2f}" for name, value in zip(corpora, values, strict=True))
        for row, values in zip(means.index, means.to_numpy(), strict=True)
    ]
    return f"Logarithm of damage by calibration text, minus the row's mean. {'; '.join(parts)}."


CONTRAST_LABEL = {
    "own text": "own corpus, not another",
    "matching text": "text that is evaluated\n(model of all corpora)",
    "own beyond matching": "own corpus, beyond that",
    "best text": "best corpus for all, not the worst",
    "own beyond best": "own corpus, beyond that",
    "seen text": "seen part, not the unseen",
}


def fig_contrasts(table: pd.DataFrame) -> Figure:
    """Return what likeness is worth, with intervals: one row a contrast, one panel a sparsity.

    Args:
        table: from `similarity_tables.contrast_table`.
    """
    need_rows(table, "fig_contrasts")
    names = [name for name in CONTRAST_LABEL if name in set(table["contrast"])]
    levels, methods = sorted(set(table["sparsity"])), unique(table["method"])
    colours = dict(zip(methods, (BLUE, RED, MUTED), strict=False))
    with canvas(0.55 * len(names) + 1.1, 1, len(levels), sharex=True, sharey=True) as (figure, axes):
        for ax, level in zip(axes, levels, strict=True):
            ax.axvspan(-LEAST, LEAST, color=BAND, zorder=0)
            ax.axvline(0, color=MUTED, linewidth=0.8)
            for place, method in enumerate(methods):
                shift = 0.24 * (place - (len(methods) - 1) / 2)
                for row in rows_of(table[(table["sparsity"] == level) & (table["method"] == method)]):
                    y = names.index(row["contrast"]) + shift
                    ax.plot([row["low"], row["high"]], [y, y], color=colours[method], linewidth=1.8)
                    ax.plot(row["mean"], y, "o", color=colours[method], markeredgecolor=TEXT, markeredgewidth=0.9)
            ax.set(title=f"{level:.0%} sparsity", xlabel=f"{LESS} saved")
            ax.set_yticks(range(len(names)), [CONTRAST_LABEL[name] for name in names])
            ax.set_ylim(len(names) - 0.5, -0.5)
        keys = [axes[0].plot([], [], "o-", color=colours[name])[0] for name in methods]
        figure.legend(keys, [method_label(name) for name in methods], loc="outside lower right", ncols=len(methods))
    return figure


def describe_contrasts(table: pd.DataFrame) -> str:
    """Return the alt text of `fig_contrasts`."""
    need_rows(table, "describe_contrasts")
    parts = [
        f"{method_label(row['method'])} at {row['sparsity']:.0%}, {row['contrast']}: {row['mean']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        for row in rows_of(table)
    ]
    return f"Differences in the logarithm of damage. {'; '.join(parts)}."


MEASURE_LABEL = {
    "log_perplexity": "ln perplexity\nunder the dense model",
    "min_k_plus_plus": "Min-50 %++\n(higher: more familiar)",
    "unigram_divergence": "unigram divergence\nfrom the reference (nats)",
    "norm_distance": "distance of norms\nfrom the reference",
}


def fig_likeness(texts: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    """Return damage against every measure of likeness, a point for each text.

    Args:
        texts: from `likeness_tables.likeness_table`. correlations: from `correlation_table`.
    """
    need_rows(texts, "fig_likeness")
    names = [name for name in MEASURE_LABEL if name in texts.columns]
    marks = source_marks(texts["source"])
    rho = correlations.set_index("measure")
    with canvas(4.9, 2, 2, sharey=True) as (figure, axes):
        for ax, name in zip(axes, names, strict=False):
            for row in rows_of(texts.dropna(subset=name)):
                mark = marks[row["source"]]
                ax.plot(row[name], row["damage"], mark.marker, color=mark.colour, markersize=7, linestyle="")
            found = rho.loc[name]
            ax.set_title(f"rank correlation {found['mean']:+.2f}")
            ax.set_xlabel(MEASURE_LABEL[name])
        for ax in axes[::2]:
            ax.set_ylabel("damage (nats per token)\n← lower is better")
        keys = [axes[0].plot([], [], m.marker, color=m.colour, linestyle="")[0] for m in marks.values()]
        figure.legend(keys, [source_label(name) for name in marks], loc="outside lower center", ncols=5)
    return figure


def describe_likeness(texts: pd.DataFrame, correlations: pd.DataFrame) -> str:
    """Return the alt text of `fig_likeness`."""
    need_rows(texts, "describe_likeness")
    order = ", ".join(f"{row['source']} {row['damage']:.3f}" for row in rows_of(texts.sort_values("damage")))
    parts = [
        f"{row['measure'].replace('_', ' ')} {row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        for row in rows_of(correlations)
    ]
    return f"Damage by text: {order}. Rank correlation with damage: {'; '.join(parts)}."


def fig_membership(scores: pd.DataFrame) -> Figure:
    """Return the Min-K %++ of windows that a model was trained on, of unseen ones, and of text that it wrote.

    Args:
        scores: from `likeness_tables.membership_scores_table`: model, group, score.
    """
    need_rows(scores, "fig_membership")
    models, groups = unique(scores["model"]), unique(scores["group"])
    colours = dict(zip(groups, (BLUE, MUTED, RED, "#009E73"), strict=False))
    by_window = scores.groupby(["model", "group"])["score"]
    with canvas(0.75 * len(models) + 1.2) as (figure, (ax,)):
        for place, group in enumerate(groups):
            shift = 0.26 * (place - (len(groups) - 1) / 2)
            ax.boxplot(
                [by_window.get_group((model, group)) for model in models],
                positions=[row + shift for row in range(len(models))], orientation="horizontal", widths=0.2,
                patch_artist=True, manage_ticks=False, flierprops={"markersize": 2}, label=group,
                boxprops={"facecolor": colours[group]}, medianprops={"color": TEXT},
            )  # fmt: skip
        ax.set_yticks(range(len(models)), models)
        ax.set_ylim(len(models) - 0.5, -0.5)
        ax.set_xlabel("Min-50 %++ of a window (higher: more familiar)")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def describe_membership(scores: pd.DataFrame) -> str:
    """Return the alt text of `fig_membership`."""
    need_rows(scores, "describe_membership")
    means = scores.groupby(["model", "group"], sort=False)["score"].median().reset_index()
    parts = [f"{row['model']}, {row['group']}: {row['score']:.2f}" for row in rows_of(means)]
    return f"Median Min-50 %++ of windows. {'; '.join(parts)}."
