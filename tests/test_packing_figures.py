"""Figures of the chapter on packing from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from test_figures import LONG, drawn, words
from test_packing_tables import TEXTS, runs

from calib_study import figures, packing_figures, schedule_figures
from calib_study.errors import InputError
from calib_study.figure_style import SOURCE_STYLE
from calib_study.packing_tables import (
    CUTS,
    PAPERS,
    cut_differences,
    cut_runs,
    cut_shares,
    spread_table,
    text_means,
    values_of,
)
from calib_study.schedule_tables import change_table

EXTRA = {("wikipedia", "packed, all"): 0.3}


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def tables(damage: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return text_means(damage), spread_table(damage)


def test_texts_are_drawn_around_their_mean_in_each_row() -> None:
    means, spreads = tables(cut_runs(runs(EXTRA, methods=("wanda", "sparsegpt"))))
    figure = packing_figures.fig_texts_by_cut(means, spreads)
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["Wanda", "SparseGPT"]
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == [*CUTS, PAPERS]
    # packed from all: 0.5, 1.0, 0.9 around 0.8; else 0.5, 0.7, 0.9 around 0.7; the last row is as the first
    solid, dashed = (line for line in ax.lines if line.get_color() == SOURCE_STYLE["wikipedia"].colour)
    assert_allclose(solid.get_xdata(), [0.2, 0, 0, 0], atol=1e-12)
    assert_allclose(dashed.get_xdata(), [0, 0.2], atol=1e-12)
    assert [t.get_text() for t in ax.texts] == ["s.d. 0.265", *["s.d. 0.200"] * 3, "s.d. 0.265"]
    assert "lower is better" in words(figure)


def test_texts_in_words() -> None:
    said = packing_figures.describe_texts_by_cut(*tables(cut_runs(runs(EXTRA))))
    assert said.startswith(
        "Mean damage of the texts by cut, in nats per token. Wanda, packed, all: best c4, worst wikipedia, s.d. 0.265; "
        "Wanda, packed, long: best c4, worst math, s.d. 0.200; "
    )
    assert said.endswith("as the papers cut: best c4, worst wikipedia, s.d. 0.265, wikipedia +0.300 from the others.")


def test_effects_are_drawn_as_those_of_schedules() -> None:
    differences = cut_differences(cut_runs(runs({(text, "packed, all"): 0.04 for text in TEXTS})))
    changes = change_table(differences, "change")
    figure = schedule_figures.fig_schedule_changes(differences, changes, "change", "difference of damage")
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["Wanda: document − packed", "Wanda: long − all"]
    assert [ax.get_xlabel() for ax in figure.axes] == ["difference of damage (nats)\n← lower is better"] * 2
    assert schedule_figures.describe_schedule_changes(changes, "change", "Difference of damage") == (
        "Difference of damage, in nats per token, with 95 % interval: "
        "Wanda, document − packed: -0.020 [-0.020, -0.020]; Wanda, long − all: -0.020 [-0.020, -0.020]."
    )


def test_shares_of_other_factors_than_those_of_chapter_1_are_drawn() -> None:
    shares = cut_shares(values_of(cut_runs(runs(EXTRA)), "wanda")[1])
    figure = figures.fig_variance_shares(shares)
    drawn(figure)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels[:4] == ["text", "policy", "selection", "text × policy"] and labels[-1] == "draw"


@pytest.mark.parametrize("texts", [("c4", "code"), tuple(SOURCE_STYLE), ("c4", *LONG)])
def test_figures_survive_few_and_many(texts: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (method, text, seed, policy, least, 0.5 + 0.1 * rng.normal())
        for method in ("dsnot+owl", "magnitude_row+owl")
        for text in texts
        for seed in range(3)
        for policy in ("packed", "document")
        for least in (None, 384)
    ]
    columns = ["method", "source", "seed", "policy", "min_tokens", "damage"]
    drawn(packing_figures.fig_texts_by_cut(*tables(cut_runs(pd.DataFrame(rows, columns=columns)))))


def test_tables_without_rows_are_refused() -> None:
    means, spreads = tables(cut_runs(runs()))
    with pytest.raises(InputError, match="fig_texts_by_cut: the table has no rows"):
        packing_figures.fig_texts_by_cut(means[:0], spreads)


def test_the_same_table_gives_the_same_picture_and_is_left_alone() -> None:
    means, spreads = tables(cut_runs(runs()))
    before = means.copy()
    first, second = (drawn(packing_figures.fig_texts_by_cut(means, spreads)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(means, before)
