"""Statistics against hand-computed values, closed forms, and simulation (coverage, uniform p values)."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import stats

from calib_study.errors import InputError
from calib_study.statistics import (
    COMPONENTS,
    Interval,
    bootstrap_interval,
    mean_interval,
    paired_difference,
    probability_of_superiority,
    same_source_null,
    variance_shares,
    variance_shares_interval,
)

# A: method 1 -> 1, 3; method 2 -> 5, 7. B: method 1 -> 3, 5; method 2 -> 11, 13.
# Cell means 2, 6, 4, 12; grand mean 6. Source means 4, 8 (-/+ 2), method means 3, 9 (-/+ 3).
# Interaction 2 - 6 + 2 + 3 = 1 (and -1, -1, 1); seeds -/+ 1. Eight values:
# SS = 8 x 4 = 32, 8 x 9 = 72, 8 x 1 = 8, 8 x 1 = 8; total 120.
HAND = np.array([[[1.0, 3.0], [5.0, 7.0]], [[3.0, 5.0], [11.0, 13.0]]])


def covered(interval: Interval, truth: float) -> bool:
    assert interval.low is not None and interval.high is not None
    return interval.low <= truth <= interval.high


def coverage(draw: Callable[[np.random.Generator], bool], n: int = 400) -> float:
    """Return the share of n simulated studies whose interval holds the truth (s.d. 0.011 at n = 400)."""
    rng = np.random.default_rng(20)
    return float(np.mean([draw(rng) for _ in range(n)]))


def test_mean_interval_by_hand() -> None:
    # mean 2, s = 1, t(0.975, 2) = 4.302653; half width 4.302653 / sqrt(3) = 2.484138
    got = mean_interval([1.0, 2.0, 3.0])
    assert (got.mean, got.n) == (2.0, 3)
    assert_allclose([got.low, got.high], [2 - 2.484138, 2 + 2.484138], atol=1e-6)


def test_mean_interval_of_one_value_has_no_limits() -> None:
    assert mean_interval([3.5]) == Interval(3.5, None, None, 1)


def test_mean_interval_covers_95_percent_with_five_seeds_where_a_percentile_bootstrap_does_not() -> None:
    assert 0.92 <= coverage(lambda rng: covered(mean_interval(rng.normal(7, 3, size=5)), 7)) <= 0.98

    def percentile(rng: np.random.Generator) -> bool:
        x = rng.normal(size=5)
        low, high = np.quantile(x[rng.integers(5, size=(500, 5))].mean(axis=1), [0.025, 0.975])
        return bool(low <= 0 <= high)

    assert coverage(percentile) < 0.88  # the docstring says about 0.83


def test_paired_difference_by_hand_and_by_pairing() -> None:
    # differences 1, 2, 3: as above. The common seed effect of +-100 cancels.
    common = np.array([100.0, -100.0, 0.0])
    got = paired_difference(common + np.array([1.0, 2.0, 3.0]), common)
    assert_allclose([got.mean, got.low, got.high], [2, 2 - 2.484138, 2 + 2.484138], atol=1e-6)
    with pytest.raises(InputError, match=r"\(3,\) and \(2,\)"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_bootstrap_matches_student_for_a_mean_of_many() -> None:
    x = np.random.default_rng(1).normal(size=200)
    student, got = mean_interval(x), bootstrap_interval(x, np.mean, seed=0)
    assert got.mean == pytest.approx(student.mean)
    # 10,000 resamples: a 2.5 % quantile is known to about 0.004 s.e. x 2 x 14.1 wide; 0.01 is 0.14 s.e.
    assert_allclose([got.low, got.high], [student.low, student.high], atol=0.01)


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_bootstrap_covers_95_percent(statistic: Callable[..., np.ndarray]) -> None:
    def draw(rng: np.random.Generator) -> bool:
        return covered(bootstrap_interval(rng.normal(size=20), statistic, seed=3, n_resamples=500), 0.0)

    assert 0.91 <= coverage(draw, 300) <= 0.99


def test_bootstrap_resamples_rows_and_repeats_by_seed() -> None:
    x = np.random.default_rng(2).normal(size=(11, 3))

    def gap(rows: np.ndarray, axis: int) -> np.ndarray:  # largest minus smallest column mean
        return np.ptp(rows.mean(axis=axis), axis=-1)

    first = bootstrap_interval(x, gap, seed=5, n_resamples=300)
    assert first == bootstrap_interval(x, gap, seed=5, n_resamples=300)
    assert first != bootstrap_interval(x, gap, seed=6, n_resamples=300)
    assert first.mean == pytest.approx(np.ptp(x.mean(axis=0)))


def test_bootstrap_in_pieces_gives_all_resamples() -> None:
    x = np.ones((1000, 500))  # 8 resamples a piece
    got = bootstrap_interval(x, lambda rows, axis: rows.mean(axis=(axis, 2)), seed=0, n_resamples=100)
    assert got == Interval(1.0, 1.0, 1.0, 1000)


def test_bootstrap_refuses_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match="one number per resample"):
        bootstrap_interval(np.ones((4, 3)), np.mean, seed=0, n_resamples=100)
    with pytest.raises(InputError, match="n >= 2"):
        bootstrap_interval([1.0], np.mean, seed=0)
    with pytest.raises(InputError, match=r"in \(0, 1\)"):
        bootstrap_interval([1.0, 2.0], np.mean, seed=0, level=95)


def test_probability_of_superiority_by_hand() -> None:
    # pairs (1,1) tie = 1/2, (1,0) = 1, (2,1) = 1, (2,0) = 1: 3.5 / 4
    assert probability_of_superiority([1.0, 2.0], [1.0, 0.0]).mean == 0.875
    # equals the Mann-Whitney U over m n
    rng = np.random.default_rng(4)
    a, b = rng.integers(5, size=7).astype(float), rng.integers(5, size=11).astype(float)
    assert probability_of_superiority(a, b).mean == pytest.approx(stats.mannwhitneyu(a, b).statistic / 77)


def test_probability_of_superiority_stays_uncertain_when_five_beat_five() -> None:
    got = probability_of_superiority([6.0, 7.0, 8.0, 9.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    # p = 1: the lower limit q solves 1 - q = 1.96^2 q (1 + 4 ((1 - q)/(2 - q) + q/(1 + q))) / 25
    assert got.low is not None and (got.mean, got.high) == (1.0, 1.0)
    q = got.low
    spread = 1 + 4 * ((1 - q) / (2 - q) + q / (1 + q))
    assert_allclose(1 - q, stats.norm.ppf(0.975) ** 2 * q * spread / 25, rtol=1e-6)
    assert 0.6 < q < 0.75
    mirrored = probability_of_superiority([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0])
    assert_allclose([mirrored.mean, mirrored.low, mirrored.high], [0, 0, 1 - q], atol=1e-6)


@pytest.mark.parametrize("truth", [0.5, 0.75, 0.95])
def test_probability_of_superiority_covers_95_percent_with_five_seeds(truth: float) -> None:
    shift = float(stats.norm.ppf(truth)) * np.sqrt(2)  # P(N(shift, 1) > N(0, 1)) = truth

    def draw(rng: np.random.Generator) -> bool:
        return covered(probability_of_superiority(rng.normal(shift, 1, 5), rng.normal(0, 1, 5)), truth)

    assert 0.91 <= coverage(draw) <= 0.99


def test_variance_shares_by_hand() -> None:
    got = variance_shares(HAND)
    assert tuple(got) == COMPONENTS
    assert_allclose(list(got.values()), [32 / 120, 72 / 120, 8 / 120, 8 / 120])


def test_variance_shares_do_not_confuse_their_axes() -> None:
    x = np.random.default_rng(3).normal(size=(5, 3, 7)) + 10 * np.arange(5)[:, None, None]
    assert variance_shares(x)["source"] > 0.9
    turned = variance_shares(np.swapaxes(x, 0, 1))
    assert turned["method"] == pytest.approx(variance_shares(x)["source"])


layouts = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 5)),
    elements=st.integers(-9, 9),
)


@settings(max_examples=60, deadline=None)
@given(layouts, st.floats(0.1, 10), st.floats(-10, 10))
def test_variance_shares_sum_to_one_whatever_the_unit(x: np.ndarray, scale: float, shift: float) -> None:
    if np.ptp(x) == 0:
        with pytest.raises(InputError, match=r"all .* values are equal"):
            variance_shares(x)
        return
    shares = variance_shares(x)
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) >= 0
    assert_allclose(list(variance_shares(scale * x + shift).values()), list(shares.values()), atol=1e-9)


def test_variance_shares_intervals_cover_with_five_seeds() -> None:
    # six sources, two methods, noise of s.d. 1: the population shares follow from the cell means alone
    means = np.array([[-3.0, 1.0], [-1.0, 4.0], [0.0, 3.5], [0.5, 5.0], [2.0, 6.5], [3.0, 9.0]])
    source = means.mean(axis=1).var()
    method = means.mean(axis=0).var()
    parts = np.array([source, method, means.var() - source - method, 1.0])
    truth = parts / parts.sum()
    rng = np.random.default_rng(11)
    hits = np.zeros(4)
    for _ in range(300):
        got = variance_shares_interval(means[:, :, None] + rng.normal(size=(6, 2, 5)))
        hits += [covered(interval, t) for interval, t in zip(got.values(), truth, strict=True)]
        assert sum(i.mean for i in got.values()) == pytest.approx(1)
    # measured 0.90 to 0.97; the s.d. of each is 0.013
    assert (hits / 300).min() >= 0.87 and (hits / 300).max() <= 0.99


def test_variance_shares_interval_is_exact_without_noise_in_the_shares() -> None:
    # the same 2 x 2 table at every seed: leaving one out changes nothing, so the interval has no width
    table = np.array([[0.0, 2.0], [4.0, 6.0]])
    got = variance_shares_interval(np.stack([table] * 4, axis=2))
    # source effect -/+ 2 (SS 4), method -/+ 1 (SS 1): 0.8 and 0.2
    assert_allclose([(i.mean, i.low, i.high) for i in got.values()], [[0.8] * 3, [0.2] * 3, [0] * 3, [0] * 3])


@pytest.mark.parametrize("call", [variance_shares, variance_shares_interval])
def test_variance_shares_name_bad_shapes(call: Callable[[np.ndarray], object]) -> None:
    with pytest.raises(InputError, match=r"\(n_sources, n_methods, n_seeds\), got shape \(3, 5\)"):
        call(np.ones((3, 5)))
    with pytest.raises(InputError, match=r"seeds in every cell, got shape \(3, 2, 1\)"):
        call(np.ones((3, 2, 1)))
    with pytest.raises(InputError, match="all 30 values are equal"):
        call(np.full((3, 2, 5), 0.1))


def test_same_source_null_by_hand() -> None:
    # means 1, 4 -> range 3; within variances 2, 2 -> s.d. sqrt(2)
    got = same_source_null([[0.0, 2.0], [3.0, 5.0]], seed=0, n_draws=500)
    assert (got.observed, got.n_sources, got.n_seeds) == (3.0, 2, 2)
    assert_allclose([got.within_sd, got.relative], [2**0.5, 3 / 2**0.5])


def test_same_source_null_mean_matches_the_normal_range() -> None:
    # the expected range of six standard normal values is 2.534 (Tippett 1925); means of 100 have s.d. s / 10
    x = np.random.default_rng(8).normal(5.0, 3.0, size=(6, 100))
    got = same_source_null(x, seed=0, n_draws=4000)
    assert got.null_mean == pytest.approx(2.534 * got.within_sd / 10, rel=0.03)
    # 95 % quantile of the studentised range, k = 6, df = 594
    q95 = float(stats.studentized_range.ppf(0.95, 6, 594))
    assert got.null_q95 == pytest.approx(q95 * got.within_sd / 10, rel=0.04)


@pytest.mark.parametrize(("n_sources", "n_seeds"), [(6, 5), (5, 3)])
def test_p_values_are_uniform_when_all_sources_are_one(n_sources: int, n_seeds: int) -> None:
    rng = np.random.default_rng(12)
    p = np.array(
        [same_source_null(rng.normal(size=(n_sources, n_seeds)), seed=i, n_draws=199).p_value for i in range(400)]
    )
    # 400 studies: the s.d. of the mean is 0.014, of the share below 0.05 it is 0.011
    assert abs(p.mean() - 0.5) < 0.05
    assert 0.02 <= np.mean(p <= 0.05) <= 0.085
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_planted_source_is_found() -> None:
    x = np.random.default_rng(9).normal(size=(6, 5))
    x[2] += 4
    got = same_source_null(x, seed=0, n_draws=2000)
    assert got.p_value < 0.005 and got.observed > got.null_q95 > got.null_mean


def test_same_source_null_repeats_by_seed() -> None:
    x = np.random.default_rng(10).normal(size=(3, 5))
    first, again, other = (same_source_null(x, seed=s, n_draws=50).draws for s in (1, 1, 2))
    assert_allclose(first, again, rtol=0)
    assert not np.array_equal(first, other)


def test_same_source_null_keeps_infinite_ranges_out_of_the_drawing() -> None:
    # residuals -1, 1, -1, 1 (times sqrt 2): a deal of (1, 1), (-1, -1) has no spread within groups
    got = same_source_null([[0.0, 2.0], [3.0, 5.0]], seed=0, n_draws=500)
    assert np.isfinite(got.draws).all() and len(got.draws) < 500
    assert got.p_value > 0.2  # one deal in three is of that kind, and each counts as reaching the observed


def test_same_source_null_refuses_what_has_no_noise() -> None:
    with pytest.raises(InputError, match="no noise to compare with"):
        same_source_null([[0.1, 0.1], [0.3, 0.3]], seed=0)
    with pytest.raises(InputError, match=r"at least 2 sources and 2 seeds, got shape \(4, 1\)"):
        same_source_null(np.ones((4, 1)), seed=0)
    with pytest.raises(InputError, match=r"\(n_sources, n_seeds\), got shape \(4,\)"):
        same_source_null(np.ones(4), seed=0)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="1 of 3 values are not finite"):
        mean_interval([1.0, float("nan"), 2.0])
    with pytest.raises(InputError, match=r"got shape \(0,\)"):
        mean_interval([])
