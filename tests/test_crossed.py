"""Spreads and components of a crossed grid whose effects are known."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny_scores import LAYOUT, METHODS, TEXTS, grid, measured, records

from calib_study.crossed import (
    component_table,
    crossed_components,
    index_of,
    spread_difference,
    spread_table,
    stack_seeds,
)
from calib_study.errors import InputError


def test_spread_by_hand() -> None:
    """Text means 1, 3, 5: s.d. 2. Method means 2, 4: s.d. sqrt 2. The same in both seeds."""
    x = np.array([0.0, 2.0, 4.0])[:, None, None] + np.array([0.0, 2.0])[None, :, None] + np.zeros(2)
    found = spread_difference(x)
    assert_allclose([found.mean, found.low, found.high], 2 - 2**0.5)


def test_a_spread_needs_two_of_each() -> None:
    with pytest.raises(InputError, match="2 sources and 2 methods"):
        spread_difference(np.ones((3, 1, 2)))


def test_texts_and_methods_are_compared_measure_by_measure() -> None:
    """Wanda is 0.5 worse than SparseGPT: s.d. of the methods 0.5 / sqrt 2, and texts differ less."""
    table, _ = measured()
    found = spread_table(table, LAYOUT, ["damage", "jensen_shannon"]).set_index("measure")
    assert found.loc["damage", "by_method"] == pytest.approx(0.5 / 2**0.5)
    assert_allclose(found.loc["jensen_shannon", ["by_text", "mean"]].astype(float) * 10,
                    found.loc["damage", ["by_text", "mean"]].astype(float))  # fmt: skip
    assert found["verdict"].tolist() == ["not supported"] * 2


def test_cells_are_found_by_their_run() -> None:
    table, _ = measured()
    which = index_of(table, LAYOUT)
    assert which.shape == (3, 2, 3) and which[1, 0, 2] == "wanda-code-2-0.5"


def test_components_of_a_known_grid() -> None:
    """The method makes most of the damage; noise of windows is that of the wobble, which half of the windows have."""
    table, answered = measured()
    parts = crossed_components(table, LAYOUT, records(grid()), answered)
    assert list(parts) == ["damage", "jensen_shannon", "answer_loss", "accuracy_loss"]
    damage = parts["damage"].estimates
    assert damage["method"].mean == pytest.approx(0.125, rel=0.05)  # 0.5^2 / 2
    assert 0 < damage["evaluation"].mean < 1e-4
    assert parts["answer_loss"].estimates["evaluation"].mean == pytest.approx(0, abs=1e-12)  # no item differs
    shares = component_table(parts)
    assert_allclose(shares.groupby("measure")["share"].sum(), 1)
    assert set(shares["part"]) == {"source", "method", "source x method", "seed", "seed x method", "evaluation"}


def test_seeds_come_first_for_rank_correlations() -> None:
    x = np.arange(30).reshape(5, 3, 2)
    assert stack_seeds(x)[1, 2, 4] == x[4, 2, 1] and stack_seeds(x).shape == (2, 3, 5)
    assert len(TEXTS) == 3 and len(METHODS) == 2
