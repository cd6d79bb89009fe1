"""Figures of crossed grids and of measures: what they hold, and what is said of them."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tiny_scores import LAYOUT, TEXTS, grid, measured, records

from calib_study import crossed_figures, measure_figures
from calib_study.crossed import component_table, crossed_components
from calib_study.errors import InputError
from calib_study.figure_style import measure_label
from calib_study.measures import MEASURES
from calib_study.measuring_tables import agreement_table, home_table, keep_table, noise_table, reveal_table

TABLE, ANSWERS = measured()
PARTS = crossed_components(TABLE, LAYOUT, records(grid()), ANSWERS)


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def test_losses_have_a_panel_for_each_measure_and_a_row_for_each_text() -> None:
    shown = ["damage", "accuracy_loss", "jensen_shannon"]
    figure = crossed_figures.fig_losses_by_text(TABLE, TEXTS, shown)
    axes = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in axes] == [MEASURES[name][0] for name in shown]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == list(TEXTS)
    means = [float(line.get_xdata()[0]) for line in axes[0].lines if len(line.get_xdata()) == 1]  # type: ignore[index,arg-type]
    runs = TABLE[TABLE["source"].isin(TEXTS)]
    assert sorted(means) == pytest.approx(sorted(runs.groupby(["method", "source"])["damage"].mean()))
    said = crossed_figures.describe_losses_by_text(TABLE, TEXTS, ["damage"])
    assert "texts from c4" in said and "to math" in said and "SparseGPT" in said


def test_components_fill_the_bar() -> None:
    shares = component_table(PARTS)
    (ax,) = crossed_figures.fig_components(shares).axes
    widths = [patch.get_width() for patch in ax.patches]  # type: ignore[attr-defined]
    assert sum(widths) == pytest.approx(100 * shares["measure"].nunique())
    assert "method" in crossed_figures.describe_components(shares)


def test_the_heat_map_names_measures_and_their_correlation_with_accuracy() -> None:
    agreement = agreement_table(TABLE, LAYOUT, list(MEASURES))
    (ax,) = measure_figures.fig_agreement(agreement).axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [measure_label(name) for name in MEASURES]
    assert len(ax.texts) == len(MEASURES) ** 2 - len(MEASURES)
    assert "damage, all texts +" in measure_figures.describe_agreement(agreement)


def test_home_and_reveal() -> None:
    home = home_table(TABLE, LAYOUT, ["accuracy_loss", "answer_loss"])
    assert len(measure_figures.fig_home(home).axes[0].get_yticks()) == 2
    assert "own kind for 2 of 2" in measure_figures.describe_home(home)
    rng = np.random.default_rng(0)
    told = TABLE.assign(jensen_shannon=rng.normal(size=len(TABLE)), accuracy_loss=rng.normal(size=len(TABLE)))
    reveal = reveal_table(told, LAYOUT, ["damage", "jensen_shannon"], "accuracy_loss")
    assert len(measure_figures.fig_reveal(reveal).axes) == 1
    assert "beyond damage" in measure_figures.describe_reveal(reveal)


def test_keeps_and_noise() -> None:
    chosen = TABLE["method"].isin(["dense", "magnitude", "wanda"]) & TABLE["source"].isin([None, "c4"])
    keep = keep_table(TABLE[chosen], ANSWERS, seed=0)
    left, right = measure_figures.fig_keeps(keep).axes
    assert left.get_yscale() == "log" and right.get_title(loc="left") == "accuracy lost (points)"
    assert "Wanda at 50 %: perplexity" in measure_figures.describe_keeps(keep)
    noise = noise_table(TABLE, LAYOUT, PARTS, list(PARTS))
    assert measure_figures.fig_noise(noise).axes[0].get_xscale() == "log"
    assert measure_figures.describe_noise(noise).count("evaluation") == len(PARTS)
    assert measure_figures.describe_steadiness(noise).startswith("s.d. between draws: damage, all texts")


@pytest.mark.parametrize("draw", [measure_figures.fig_home, measure_figures.fig_reveal, measure_figures.fig_keeps])
def test_an_empty_table_is_refused(draw: object) -> None:
    with pytest.raises(InputError, match="no rows to draw"):
        draw(TABLE.iloc[:0])  # type: ignore[operator]
