"""Rank correlations by hand, and how often their intervals hold the truth in simulations."""

import numpy as np
import pytest
from scipy import stats

from calib_study.association import mean_rank_correlation, partial_rank_correlation, rank_correlation
from calib_study.errors import InputError


def test_correlations_are_averaged_over_groups_then_over_seeds() -> None:
    """Seed 0: orders equal (1) and reversed (-1), mean 0; seed 1: equal twice, mean 1. Mean 0.5, s.d. 0.7071, n 2."""
    a = [[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0], [0.0, 1.0, 9.0]]]
    b = [[[7.0, 8.0, 9.0], [3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]]
    found = mean_rank_correlation(a, b)
    assert found.mean == pytest.approx(0.5) and found.n == 2
    half = float(stats.t.ppf(0.975, 1)) * 0.5**0.5 / 2**0.5
    assert found.low == pytest.approx(0.5 - half) and found.high == pytest.approx(0.5 + half)


def test_a_measure_that_does_not_differ_ranks_nothing() -> None:
    assert mean_rank_correlation([[[1.0, 1.0, 1.0]]], [[[1.0, 2.0, 3.0]]]).mean == 0


def test_ties_share_their_rank_as_in_scipy() -> None:
    x, y = [1.0, 1.0, 2.0, 5.0, 4.0], [2.0, 3.0, 3.0, 9.0, 1.0]
    expected = float(stats.spearmanr(x, y).statistic)
    assert mean_rank_correlation([[x]], [[y]]).mean == pytest.approx(expected)
    assert partial_rank_correlation(x, y, clusters=range(5)).mean == pytest.approx(expected)


def test_the_partial_correlation_is_that_of_the_three_plain_ones() -> None:
    """(r_ab - r_ag r_bg) / sqrt((1 - r_ag^2) (1 - r_bg^2)), Kendall 1942."""
    a, b, given = np.random.default_rng(0).normal(size=(3, 23))
    b, given = a + b, a + given
    ab, ag, bg = (float(stats.spearmanr(*pair).statistic) for pair in ((a, b), (a, given), (b, given)))
    expected = (ab - ag * bg) / ((1 - ag**2) * (1 - bg**2)) ** 0.5
    assert partial_rank_correlation(a, b, given, clusters=range(23)).mean == pytest.approx(expected)


def test_differences_between_groups_do_not_count() -> None:
    """Within both groups the order is reversed; over all it would seem to agree."""
    a, b = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0], [3.0, 2.0, 1.0, 13.0, 12.0, 11.0]
    grouped = partial_rank_correlation(a, b, clusters=[0, 1, 2, 0, 1, 2], groups=list("xxxyyy"))
    assert grouped.mean == pytest.approx(-1) and grouped.n == 3
    assert partial_rank_correlation(a, b, clusters=range(6)).mean > 0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """18 draws of 4 runs that share a part of b; a is independent of b, so the truth is 0."""
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(18), 4)
    inside = 0
    for _ in range(150):
        a, given = rng.normal(size=(2, 72))
        b = rng.normal(size=18)[clusters] + given + rng.normal(size=72)
        found = partial_rank_correlation(a, b, given, clusters=clusters)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0 <= found.high
    assert 0.90 <= inside / 150 <= 0.99


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="two alike shapes with 3 objects"):
        mean_rank_correlation(np.ones((2, 2, 2)), np.ones((2, 2, 2)))
    with pytest.raises(InputError, match="at least 3 clusters, got 2"):
        partial_rank_correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], clusters=[0, 0, 1])
    with pytest.raises(InputError, match="one value, cluster and group for each run"):
        partial_rank_correlation([1.0, 2.0, 3.0], [1.0, 3.0], clusters=[0, 1, 2])
    with pytest.raises(InputError, match="constant, or says the same"):
        partial_rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0], clusters=range(4))


# --- over objects -------------------------------------------------------------------------------------------


def test_rank_correlation_by_hand() -> None:
    # ranks 1 2 3 4 5 against 2 1 3 5 4: squared differences sum to 4, 1 - 6 * 4 / (5 * 24) = 0.8
    found = rank_correlation([1.0, 2.0, 3.0, 4.0, 5.0], [20.0, 10.0, 30.0, 50.0, 40.0])
    half = 1.959964 * np.sqrt(1.06 / 2)
    assert found.mean == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((np.tanh(np.arctanh(0.8) - half), np.tanh(np.arctanh(0.8) + half)))
    perfect = rank_correlation([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert perfect.mean == 1.0 and perfect.low is not None and perfect.high is not None
    assert 0.3 < perfect.low < 1 and perfect.high == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "rho"), [(8, 0.0), (8, 0.5), (12, 0.5), (12, 0.8)])
def test_the_interval_of_a_rank_correlation_covers(n: int, rho: float) -> None:
    rng = np.random.default_rng(n)
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's rho of two normal variables
    hits = 0
    for _ in range(2000):
        x, z = rng.normal(size=(2, n))
        found = rank_correlation(x, rho * x + np.sqrt(1 - rho**2) * z)
        assert found.low is not None and found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.92 < hits / 2000 < 0.975


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [([1.0, 2, 3], [1.0, 2, 3], "4 objects or more"), ([1.0, 1, 1, 1], [1.0, 2, 3, 4], "the same for all objects")],
)
def test_rank_correlation_refuses(a: list[float], b: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        rank_correlation(a, b)
