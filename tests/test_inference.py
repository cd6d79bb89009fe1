"""Kendall's W, equivalence and exponents against hand-worked values and simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import integrate, stats

from calib_study.errors import InputError
from calib_study.inference import (
    Agreement,
    equivalence_test,
    kendalls_w,
    minimal_detectable_difference,
    sd_exponent,
)
from calib_study.statistics import Interval


def covered(interval: Interval, truth: float) -> bool:
    return interval.low is not None and interval.high is not None and interval.low <= truth <= interval.high


def coverage(draw: Callable[[np.random.Generator], Interval], truth: float, n: int = 400) -> float:
    """Return the share of n simulated studies whose interval holds the truth (s.d. 0.011 at n = 400)."""
    rng = np.random.default_rng(20)
    return float(np.mean([covered(draw(rng), truth) for _ in range(n)]))


# --- Kendall's W --------------------------------------------------------------------------------------------


def test_kendalls_w_by_hand() -> None:
    # ranks 123, 132, 213: sums 4, 6, 8, S = 8; W = 12 x 8 / (9 x 24) = 4/9
    # Spearman correlations 1/2, 1/2, -1/2: mean 1/6 = (3 x 4/9 - 1) / 2
    got = kendalls_w([[0.1, 0.2, 0.3], [1.0, 3.0, 2.0], [20.0, 10.0, 30.0]], seed=0, n_permutations=200)
    assert (got.w.mean, got.w.n, got.n_objects) == (pytest.approx(4 / 9), 3, 3)
    assert got.mean_correlation == pytest.approx(1 / 6)


def test_kendalls_w_with_ties_by_hand() -> None:
    # ranks 1.5, 1.5, 3 and 1, 2, 3: sums 2.5, 3.5, 6, S = 6.5; T = 2^3 - 2 = 6
    # W = 12 x 6.5 / (4 x 24 - 2 x 6) = 78 / 84
    assert kendalls_w([[5.0, 5.0, 9.0], [1.0, 2.0, 3.0]], seed=0, n_permutations=9).w.mean == pytest.approx(78 / 84)


@pytest.mark.parametrize("levels", [100, 4])
def test_kendalls_w_is_friedmans_chi_square(levels: int) -> None:
    x = np.random.default_rng(11).integers(levels, size=(7, 5)) + np.arange(5) * levels / 20
    friedman = stats.friedmanchisquare(*x.T)
    got = kendalls_w(x, seed=0, n_permutations=4000)
    assert got.w.mean == pytest.approx(friedman.statistic / (7 * 4))
    # chi-square is an approximation, good to about 0.02 with seven raters
    assert got.p_value == pytest.approx(friedman.pvalue, abs=0.03)


def test_the_permutation_p_value_is_exact_for_two_raters() -> None:
    # of the 24 orders of the second rater one agrees fully; 4,000 shufflings know 1/24 to 0.003
    got = kendalls_w([[1.0, 2.0, 3.0, 4.0]] * 2, seed=0, n_permutations=4000)
    assert got.p_value == pytest.approx(1 / 24, abs=0.01)
    assert got.w == Interval(1.0, None, None, 2)


def test_kendalls_w_p_values_are_uniform_when_rankings_are_random() -> None:
    rng = np.random.default_rng(12)
    p = np.array([kendalls_w(rng.normal(size=(4, 6)), seed=i, n_permutations=99).p_value for i in range(400)])
    assert abs(p.mean() - 0.5) < 0.05 and 0.02 <= np.mean(p <= 0.05) <= 0.085


@pytest.mark.parametrize(("n_raters", "spread"), [(3, 0.7), (5, 0.7), (5, 2.0)])
def test_kendalls_w_interval_covers_where_a_bootstrap_does_not(n_raters: int, spread: float) -> None:
    objects = spread * stats.norm.ppf((np.arange(6) + 0.5) / 6)
    rng = np.random.default_rng(13)

    def w(x: np.ndarray) -> np.ndarray:  # without ties
        ranks = x.argsort(axis=-1).argsort(axis=-1) - 2.5
        return np.sum(ranks.sum(axis=-2) ** 2, axis=-1) / (n_raters**2 * 17.5)

    truth = float(w(objects + rng.normal(size=(20_000, n_raters, 6))).mean())

    def draw(rng: np.random.Generator) -> Interval:
        return kendalls_w(objects + rng.normal(size=(n_raters, 6)), seed=0, n_permutations=1).w

    def percentile(rng: np.random.Generator) -> Interval:
        x = objects + rng.normal(size=(n_raters, 6))
        low, high = np.quantile(w(x[rng.integers(n_raters, size=(300, n_raters))]), [0.025, 0.975])
        return Interval(0.0, low, high, n_raters)

    assert coverage(draw, truth) >= 0.94  # measured 0.97 to 0.98
    assert coverage(percentile, truth) < 0.8


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(3, 6)), elements=st.integers(0, 4)))
def test_kendalls_w_lies_within_its_limits_and_in_zero_to_one(x: np.ndarray) -> None:
    if (np.ptp(x, axis=1) == 0).any():
        with pytest.raises(InputError, match="the same value; leave it out"):
            kendalls_w(x, seed=0, n_permutations=9)
        return
    got = kendalls_w(x, seed=0, n_permutations=9)
    assert -1e-12 <= got.w.mean <= 1 + 1e-12 and 0 < got.p_value <= 1
    if got.w.low is not None and got.w.high is not None:
        assert 0 <= got.w.low <= got.w.mean + 1e-9 and got.w.mean <= got.w.high + 1e-9 <= 1 + 2e-9
    assert kendalls_w(2 * x - 7, seed=0, n_permutations=9) == got


def test_kendalls_w_repeats_by_seed() -> None:
    x = np.random.default_rng(14).normal(size=(3, 5))

    def run(seed: int) -> Agreement:
        return kendalls_w(x, seed=seed, n_permutations=500)

    assert run(1) == run(1) and run(1).p_value != run(2).p_value and run(1).w == run(2).w


def test_kendalls_w_refuses_what_is_no_ranking() -> None:
    with pytest.raises(InputError, match=r"\(n_raters, n_objects\), got shape \(3,\)"):
        kendalls_w([1.0, 2.0, 3.0], seed=0)
    with pytest.raises(InputError, match=r"2 raters, 2 objects and a permutation, got \(1, 3\)"):
        kendalls_w([[1.0, 2.0, 3.0]], seed=0)
    with pytest.raises(InputError, match="rater 1 gives all 3 objects the same value"):
        kendalls_w([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]], seed=0)


# --- equivalence --------------------------------------------------------------------------------------------


def test_paired_equivalence_by_hand() -> None:
    # differences 0, 1, 2: mean 1, s.e. 1/sqrt(3) = 0.577350; margin 3: t = (1 + 3)/0.57735 = 6.928 and
    # (3 - 1)/0.57735 = 3.464 on 2 degrees of freedom; p = 1/2 - t / (2 sqrt(2 + t^2)): 0.01010 and 0.03709
    # 90 % interval 1 -/+ 2.919986 x 0.577350 = 1 -/+ 1.685855
    got = equivalence_test([5.0, 7.0, 9.0], [5.0, 6.0, 7.0], 3.0, paired=True)
    assert_allclose([got.p_lower, got.p_upper, got.p_value], [0.010102, 0.037090, 0.037090], atol=1e-6)
    assert_allclose([got.difference.low, got.difference.high], [1 - 1.685855, 1 + 1.685855], atol=1e-6)
    assert got.verdict == "equivalent"
    assert equivalence_test([5.0, 7.0, 9.0], [5.0, 6.0, 7.0], 2.5, paired=True).verdict == "inconclusive"


def test_equivalence_is_two_one_sided_tests_of_scipy() -> None:
    rng = np.random.default_rng(15)
    a, b = rng.normal(size=7), 0.3 + 2 * rng.normal(size=11)
    welch = equivalence_test(a, b, 0.8, paired=False)
    lower = stats.ttest_ind(a + 0.8, b, equal_var=False, alternative="greater").pvalue
    upper = stats.ttest_ind(a - 0.8, b, equal_var=False, alternative="less").pvalue
    assert_allclose([welch.p_lower, welch.p_upper], [lower, upper])
    limits = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert_allclose([welch.difference.low, welch.difference.high], [limits.low, limits.high])
    paired = equivalence_test(a, b[:7], 0.8, paired=True)
    assert_allclose(paired.p_lower, stats.ttest_rel(a + 0.8, b[:7], alternative="greater").pvalue)
    assert_allclose(paired.p_upper, stats.ttest_rel(a - 0.8, b[:7], alternative="less").pvalue)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(2, 6)), elements=st.floats(-3, 3, width=16)),
    st.floats(0.01, 5),
    st.booleans(),
)
def test_equivalence_is_the_interval_within_the_margin(x: np.ndarray, margin: float, paired: bool) -> None:
    got = equivalence_test(x[0], x[1], margin, paired=paired)
    assert got.difference.low is not None and got.difference.high is not None
    closest = min(margin - got.difference.high, got.difference.low + margin)
    if abs(closest) > 1e-9:
        assert (got.verdict == "equivalent") == (closest > 0)
    if got.verdict == "different":
        assert abs(got.difference.mean) > margin
    turned = equivalence_test(x[1], x[0], margin, paired=paired)
    assert_allclose([turned.p_lower, turned.p_upper], [got.p_upper, got.p_lower], atol=1e-12)


def rejections(n: int, difference: float, margin: float, paired: bool, studies: int = 1500) -> float:
    rng = np.random.default_rng(16)
    tests = (
        equivalence_test(rng.normal(difference, 1, n), rng.normal(0, 1, n), margin, paired=paired)
        for _ in range(studies)
    )
    return float(np.mean([test.verdict == "equivalent" for test in tests]))


@pytest.mark.parametrize("paired", [True, False])
def test_equivalence_has_its_size_at_the_margin(paired: bool) -> None:
    # s.d. of the share is 0.0056; the second test lowers it below 0.05 only where noise is large for the margin
    assert rejections(5, 3.0, 3.0, paired) == pytest.approx(0.05, abs=0.018)
    assert rejections(5, 1.0, 1.0, paired) <= 0.065


def test_equivalence_has_the_power_of_the_closed_form() -> None:
    # n pairs, differences of s.d. sqrt(2): given s, the mean must fall within margin - t s/sqrt(n) of zero
    n, margin = 5, 3.0
    t, scale = stats.t.ppf(0.95, n - 1), np.sqrt(2 / n)

    def given_spread(ratio: float) -> float:  # s over its expectation, squared: chi-square(4) / 4
        room = margin - t * scale * np.sqrt(ratio)
        inside = 2 * stats.norm.cdf(max(room, 0.0) / scale) - 1
        return float(inside * (n - 1) * stats.chi2.pdf((n - 1) * ratio, n - 1))

    power = integrate.quad(given_spread, 0, (margin / (t * scale)) ** 2)[0]
    assert rejections(n, 0.0, margin, paired=True) == pytest.approx(power, abs=0.035)  # s.d. 0.01
    assert 0.8 < power < 1


def test_equivalence_without_noise_and_far_apart() -> None:
    same = equivalence_test([1.0, 1.0], [1.0, 1.0], 0.1, paired=True)
    assert (same.verdict, same.p_value, same.difference.mean) == ("equivalent", 0.0, 0.0)
    assert equivalence_test([1.0, 1.0], [0.0, 0.0], 1.0, paired=False).verdict == "inconclusive"  # on the margin
    assert equivalence_test([9.0, 9.1], [1.0, 1.1], 1.0, paired=True).verdict == "different"
    assert equivalence_test([1.0, 1.1], [9.0, 9.1], 1.0, paired=True).verdict == "different"


def test_equivalence_refuses_what_it_cannot_test() -> None:
    with pytest.raises(InputError, match="as many values in both, at least 2 of each, got 3 and 2"):
        equivalence_test([1.0, 2.0, 3.0], [1.0, 2.0], 1.0, paired=True)
    with pytest.raises(InputError, match="two groups, at least 2 of each, got 3 and 1"):
        equivalence_test([1.0, 2.0, 3.0], [1.0], 1.0, paired=False)
    with pytest.raises(InputError, match="margin above 0 and alpha in"):
        equivalence_test([1.0, 2.0], [1.0, 2.0], 0.0, paired=True)
    with pytest.raises(InputError, match="margin above 0 and alpha in"):
        equivalence_test([1.0, 2.0], [1.0, 2.0], 1.0, paired=True, alpha=0.5)


def test_minimal_detectable_difference_matches_the_tables() -> None:
    # Cohen (1988): d = 0.5 with power 0.8 needs 64 in each group; d = 0.8 needs 26
    assert minimal_detectable_difference(1.0, 64, paired=False) == pytest.approx(0.5, abs=0.003)
    assert minimal_detectable_difference(2.0, 26, paired=False) == pytest.approx(1.6, abs=0.02)


def test_minimal_detectable_difference_has_its_power() -> None:
    effect = minimal_detectable_difference(1.0, 5)
    x = np.random.default_rng(17).normal(effect, 1, size=(4000, 5))
    t = x.mean(axis=1) / x.std(axis=1, ddof=1) * np.sqrt(5)
    assert np.mean(np.abs(t) > stats.t.ppf(0.975, 4)) == pytest.approx(0.8, abs=0.025)  # s.d. 0.006


def test_minimal_detectable_difference_refuses() -> None:
    with pytest.raises(InputError, match=r"sd > 0, n >= 2 and 0 < alpha < power < 1; got 1\.0, 1"):
        minimal_detectable_difference(1.0, 1)
    with pytest.raises(InputError, match="sd > 0"):
        minimal_detectable_difference(0.0, 5)


# --- exponent of the s.d. -----------------------------------------------------------------------------------


def test_sd_exponent_by_hand() -> None:
    # s.d. 8, 2, 2 at 1, 4, 16: in units of log 4 the amounts are -1, 0, 1, log s.d. 1.5, 0.5, 0.5: slope -1/2
    got = sd_exponent([1.0, 4.0, 16.0], [[-8.0, 0.0, 8.0], [1.0, 3.0, 5.0], [7.0, 9.0, 11.0]])
    assert (got.mean, got.n) == (pytest.approx(-0.5), 3)
    # each amount is its own copy of one shape, so leaving a seed out changes no slope
    assert_allclose([got.low, got.high], [-0.5, -0.5])


@pytest.mark.parametrize("n_seeds", [5, 20])
@pytest.mark.parametrize("dist", ["normal", "exponential", "nested"])
def test_sd_exponent_of_means_of_independent_samples(n_seeds: int, dist: str) -> None:
    amounts = np.array([1, 4, 16, 64])
    slopes = []

    def draw(rng: np.random.Generator) -> Interval:
        if dist == "nested":  # seed r uses the same text at the smaller amounts
            x = rng.normal(size=(64, n_seeds)).cumsum(axis=0)[amounts - 1] / amounts[:, None]
        else:
            noise = rng.normal if dist == "normal" else rng.exponential
            x = noise(size=(4, n_seeds)) / np.sqrt(amounts)[:, None]
        slopes.append(sd_exponent(amounts, x))
        return slopes[-1]

    share = coverage(draw, -0.5)
    assert (0.91 if dist == "exponential" else 0.925) <= share <= 0.985  # measured 0.93 to 0.97
    found = np.array([slope.mean for slope in slopes])
    assert abs(found.mean() + 0.5) < 3.5 * found.std() / 20


def test_sd_exponent_does_not_depend_on_units() -> None:
    x = np.random.default_rng(18).normal(size=(3, 5))
    one, other = sd_exponent([1, 2, 8], x), sd_exponent([100, 200, 800], 7 * x + 3)
    assert_allclose([one.mean, one.low, one.high], [other.mean, other.low, other.high])


def test_sd_exponent_pools_texts_by_hand() -> None:
    # variances at 1 and 4: text one 4 and 1, text two 12 and 1, pooled 8 and 1: slope -log 8 / (2 log 4) = -3/4
    x = np.array([[[-2.0, 0.0, 2.0], [-2.0, -2.0, 4.0]], [[-1.0, 0.0, 1.0], [6.0, 5.0, 7.0]]])
    got = sd_exponent([1.0, 4.0], x)
    assert (got.mean, got.n) == (pytest.approx(-0.75), 6)
    one, other = sd_exponent([1.0, 4.0], x[:, :1]), sd_exponent([1.0, 4.0], x[:, 0])
    assert one == other


@pytest.mark.parametrize("scales", [(1, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("nested", [False, True])
def test_sd_exponent_covers_with_few_seeds_of_several_texts(scales: tuple[int, ...], nested: bool) -> None:
    amounts = np.array([1, 8, 64])

    def draw(rng: np.random.Generator) -> Interval:
        if nested:
            x = rng.normal(size=(64, 3, 3)).cumsum(axis=0)[amounts - 1] / amounts[:, None, None]
        else:
            x = rng.normal(size=(3, 3, 3)) / np.sqrt(amounts)[:, None, None]
        return sd_exponent(amounts, x * np.array(scales)[None, :, None])

    assert 0.92 <= coverage(draw, -0.5) <= 0.985  # measured with 1,500: 0.949 to 0.963


def test_sd_exponent_refuses() -> None:
    with pytest.raises(InputError, match=r"one row for each of 3 amounts and at least 3 seeds, got shape \(2, 5\)"):
        sd_exponent([1, 2, 3], np.ones((2, 5)))
    with pytest.raises(InputError, match=r"at least 3 seeds, got shape \(2, 2\)"):
        sd_exponent([1, 2], np.ones((2, 2)))
    with pytest.raises(InputError, match="amounts above 0 that differ"):
        sd_exponent([2, 2], np.ones((2, 3)))
    with pytest.raises(InputError, match="have the same value"):
        sd_exponent([1, 2], [[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]])
