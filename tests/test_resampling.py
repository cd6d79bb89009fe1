"""Resampling against closed forms, full enumeration, and simulation (coverage of the 95 % interval)."""

import itertools
from collections.abc import Callable
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from scipy import optimize, stats

from calib_study.errors import InputError
from calib_study.resampling import (
    hierarchical_bootstrap,
    item_groups,
    item_table,
    jackknife_variance,
    noise_in_differences,
    paired_bootstrap,
    paired_superiority,
)
from calib_study.statistics import Interval, mean_interval, probability_of_superiority

Z = float(stats.norm.ppf(0.975))


def coverage(draw: Callable[[np.random.Generator, int], Interval], truth: float = 0.0, n: int = 400) -> float:
    """Return the share of n simulated studies whose interval holds the truth (s.d. 0.011 at n = 400)."""
    rng = np.random.default_rng(20)
    intervals = [draw(rng, i) for i in range(n)]
    return float(np.mean([i.low is not None and i.high is not None and i.low <= truth <= i.high for i in intervals]))


def test_item_table_by_hand() -> None:
    # mean 3/4, s^2 = (3 x 1/16 + 9/16) / 3 = 1/4, squared standard error 1/16
    table = item_table([1.0, 0.0, 1.0, 1.0])
    assert float(table.means) == 0.75
    assert_allclose(table.noise**2 @ np.ones(4), 1 / 16)
    # tasks a: 1, 0 -> mean 1/2, s^2/n = 1/4; b: 1, 1, 0, 0, 0 -> mean 2/5, s^2/n = 0.3/5 = 0.06
    # mean (0.5 + 0.4) / 2 = 0.45; variance (0.25 + 0.06) / 4 = 0.0775
    grouped = item_table([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], groups=list("aabbbbb"))
    assert_allclose([float(grouped.means), np.sum(grouped.noise**2)], [0.45, 0.0775])
    assert_allclose(grouped.weights, [1 / 4] * 2 + [1 / 10] * 5)


def test_item_table_gives_the_covariance_of_means() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, 11))
    table = item_table(x)
    flat = table.noise.reshape(6, 11)
    assert_allclose(flat @ flat.T, np.cov(x.reshape(6, 11)) / 11)
    assert_allclose(table.means, x.mean(axis=-1))


def test_item_groups_are_named_when_they_are_too_small() -> None:
    with pytest.raises(InputError, match="at least 2 items of group 'b', got 1"):
        item_groups(3, ["a", "b", "a"])
    with pytest.raises(InputError, match="at least 2 items, got 1"):
        item_groups(1)
    with pytest.raises(InputError, match=r"one label for each of 3 items, but got shape \(2,\)"):
        item_groups(3, ["a", "b"])


# --- paired bootstrap ---------------------------------------------------------------------------------------


def test_paired_bootstrap_matches_student_for_many_items() -> None:
    rng = np.random.default_rng(1)
    common, a, b = rng.normal(size=(3, 400))
    got, student = paired_bootstrap(a + 9 * common, b + 9 * common, seed=0), mean_interval(a - b)
    assert (got.mean, got.n) == (pytest.approx(student.mean), 400)
    # the limits differ by the skewness and by the error of a 2.5 % quantile of 10,000 resamples, 0.03 s.e.
    assert student.low is not None and student.high is not None
    assert_allclose([got.low, got.high], [student.low, student.high], atol=0.1 * np.std(a - b) / 20)


def test_paired_bootstrap_gives_every_task_the_same_weight() -> None:
    # task a: differences 1, 1 -> 1; task b: 0, 0, 0, 0, -1 -> -1/5; mean 0.4 instead of 1/7
    a = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    b = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    got = paired_bootstrap(a, b, seed=0, groups=list("aabbbbb"))
    assert got.mean == pytest.approx(0.4)
    # only task b varies: s^2 = 0.2, standard error of the whole sqrt(0.2 / 5) / 2 = 0.1
    assert got.low is not None and got.high is not None
    assert_allclose(got.high - got.low, 2 * stats.t.ppf(0.975, 5) * 0.1, rtol=0.15)


def answers(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two models of equal skill, right or wrong on the same n items."""
    return np.asarray(rng.normal(size=n) + 0.5 * rng.normal(size=(2, n)) > 0, dtype=float)


@pytest.mark.parametrize("groups", [None, [0] * 60 + [1] * 40])
def test_paired_bootstrap_covers_95_percent(groups: list[int] | None) -> None:
    def draw(rng: np.random.Generator, i: int) -> Interval:
        return paired_bootstrap(*answers(rng, 100), seed=i, n_resamples=400, groups=groups)

    assert 0.91 <= coverage(draw) <= 0.98


def test_paired_bootstrap_repeats_by_seed_and_by_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = answers(np.random.default_rng(2), 50)
    first = paired_bootstrap(a, b, seed=1, n_resamples=500)
    assert first == paired_bootstrap(a, b, seed=1, n_resamples=500)
    assert first != paired_bootstrap(a, b, seed=2, n_resamples=500)
    monkeypatch.setattr("calib_study.resampling.CHUNK", 350)  # 7 resamples a piece; 500 is no multiple
    assert first == paired_bootstrap(a, b, seed=1, n_resamples=500)


def test_paired_bootstrap_refuses_what_does_not_pair() -> None:
    with pytest.raises(InputError, match=r"pairs by item, but got shapes \(3,\) and \(2,\)"):
        paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0], seed=0)
    with pytest.raises(InputError, match="n_resamples >= 100, got 99"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, n_resamples=99)
    with pytest.raises(InputError, match=r"in \(0, 1\)"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], seed=0, level=95)
    with pytest.raises(InputError, match="1 of 2 values are not finite"):
        paired_bootstrap([1.0, np.nan], [1.0, 2.0], seed=0)


# --- hierarchical bootstrap ---------------------------------------------------------------------------------


def test_hierarchical_bootstrap_against_all_resamples() -> None:
    # 3 seeds and 5 items have 27 x 3125 resamples; the stretch makes their s.d. the standard error times t / z
    x = np.random.default_rng(3).normal(size=(3, 5)) + np.array([[0.0], [1.0], [3.0]])
    seeds = np.array(list(itertools.product(range(3), repeat=3)))
    items = np.array(list(itertools.product(range(5), repeat=5)))
    means = np.array([x[rows][:, items].mean(axis=(0, 2)) for rows in seeds]).ravel()
    over_seeds = x.mean(axis=1).var(ddof=1) / 3
    over_items = x.mean(axis=0).var(ddof=1) / 5
    rest = x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()
    both = np.sum(rest**2) / (2 * 4) / 15
    variance = max(over_seeds + over_items - both, over_seeds, over_items)
    df = variance**2 / (over_seeds**2 / 2 + over_items**2 / 4 + both**2 / 8)
    factor = stats.t.ppf(0.975, df) / Z * np.sqrt(variance) / means.std()
    wanted = x.mean() + factor * (np.quantile(means, [0.025, 0.975]) - x.mean())
    got = hierarchical_bootstrap(x, np.zeros(5), seed=0, n_resamples=100_000)
    assert (got.mean, got.n) == (pytest.approx(x.mean()), 3)
    assert_allclose([got.low, got.high], wanted, atol=0.03 * np.sqrt(variance))


def test_hierarchical_bootstrap_of_unpaired_seeds_by_hand() -> None:
    # A: seed means 0, 2 (variance 2, over 2 seeds: 1); B: -1, 0, 1 (variance 1, over 3 seeds: 1/3); items add
    # -1, 0, 1 to both alike, which cancels. V = 4/3; df = (16/9) / (1/1 + (1/9)/2) = 32/19
    items = np.array([-1.0, 0.0, 1.0])
    a, b = items + np.array([[0.0], [2.0]]), items + np.array([[-1.0], [0.0], [1.0]])
    got = hierarchical_bootstrap(a, b, seed=0, paired_seeds=False, n_resamples=100_000)
    assert (got.mean, got.n) == (pytest.approx(1.0), 2)
    assert got.low is not None and got.high is not None
    # seed means drawn again: A is 0, 1, 2 with chance 1/4, 1/2, 1/4, B has s.d. sqrt(2/9), together
    # sqrt(1/2 + 2/9); the 97.5 % quantile of their difference is found by enumeration
    means = [
        (i + j) - (k + m + n) / 3
        for i, j in itertools.product((0, 1), repeat=2)
        for k, m, n in itertools.product((-1, 0, 1), repeat=3)
    ]
    stretch = stats.t.ppf(0.975, 32 / 19) / Z * np.sqrt(4 / 3) / np.std(means)
    assert_allclose([got.low, got.high], 1 + stretch * (np.quantile(means, [0.025, 0.975]) - 1), rtol=0.01)


def test_a_single_run_is_the_same_run_at_every_seed() -> None:
    rng = np.random.default_rng(4)
    a, dense = rng.normal(size=(3, 7)), rng.normal(size=7)
    repeated = np.stack([dense] * 3)
    wanted = hierarchical_bootstrap(a, repeated, seed=0, n_resamples=200)
    assert hierarchical_bootstrap(a, dense, seed=0, n_resamples=200) == wanted
    assert hierarchical_bootstrap(a, dense, seed=0, n_resamples=200, paired_seeds=False) == wanted


def test_hierarchical_bootstrap_is_wider_than_one_over_items_when_seeds_differ() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=200) + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None]
    both = hierarchical_bootstrap(a, np.zeros(200), seed=0)
    items = paired_bootstrap(a.mean(axis=0), np.zeros(200), seed=0)
    assert both.mean == pytest.approx(items.mean)
    assert both.low is not None and both.high is not None and items.low is not None and items.high is not None
    # seeds: s^2 = 0.625, over 5 is 0.125; items: 1/200: 0.354 against 0.071, and t(4) against 1.96
    assert both.high - both.low > 5 * (items.high - items.low)


@pytest.mark.parametrize(("n_seeds", "least"), [(3, 0.88), (5, 0.91)])
def test_hierarchical_bootstrap_covers_where_seeds_differ_most(n_seeds: int, least: float) -> None:
    def table(rng: np.random.Generator) -> np.ndarray:
        return rng.normal(size=(n_seeds, 1)) + rng.normal(size=67) + rng.normal(size=(n_seeds, 67))

    def draw(rng: np.random.Generator, i: int) -> Interval:
        return hierarchical_bootstrap(table(rng), np.zeros(67), seed=i, n_resamples=400)

    assert least <= coverage(draw) <= 0.98  # measured 0.92 and 0.94 with 1,000 studies

    def percentile(rng: np.random.Generator, _: int) -> Interval:
        x = table(rng)
        rows, columns = rng.integers(n_seeds, size=(300, n_seeds, 1)), rng.integers(67, size=(300, 1, 67))
        low, high = np.quantile(x[rows, columns].mean(axis=(1, 2)), [0.025, 0.975])
        return Interval(0.0, low, high, n_seeds)

    assert coverage(percentile) < 0.9


@pytest.mark.parametrize("paired", [True, False])
def test_hierarchical_bootstrap_covers_for_right_and_wrong_answers(paired: bool) -> None:
    def draw(rng: np.random.Generator, i: int) -> Interval:
        difficulty = 1.5 * rng.normal(size=83) + 0.5 * rng.normal(size=(2, 1, 83))
        skill = 0.15 * rng.normal(size=(2, 5, 1))
        a, b = np.asarray(difficulty + skill + 0.5 * rng.normal(size=(2, 5, 83)) > 0, dtype=float)
        return hierarchical_bootstrap(a, b, seed=i, n_resamples=400, paired_seeds=paired, groups=[0] * 53 + [1] * 30)

    assert 0.91 <= coverage(draw) <= 0.985


def test_hierarchical_bootstrap_repeats_by_seed() -> None:
    a, b = np.random.default_rng(6).normal(size=(2, 3, 11))
    first = hierarchical_bootstrap(a, b, seed=1, n_resamples=300)
    assert first == hierarchical_bootstrap(a, b, seed=1, n_resamples=300)
    assert first != hierarchical_bootstrap(a, b, seed=2, n_resamples=300)


def test_hierarchical_bootstrap_refuses_what_does_not_fit() -> None:
    x = np.ones((3, 5))
    with pytest.raises(InputError, match=r"pairs by seed and item, but got shapes \(3, 5\) and \(2, 5\)"):
        hierarchical_bootstrap(x, x[:2], seed=0)
    with pytest.raises(InputError, match=r"pairs by item, but got shapes \(3, 5\) and \(2, 4\)"):
        hierarchical_bootstrap(x, x[:2, :4], seed=0, paired_seeds=False)
    with pytest.raises(InputError, match=r"pairs by item, but got shapes \(3, 5\) and \(4,\)"):
        hierarchical_bootstrap(x, np.ones(4), seed=0)
    with pytest.raises(InputError, match="at least 2 seeds, got 1 and 1"):
        hierarchical_bootstrap(x[:1], x[:1], seed=0)
    with pytest.raises(InputError, match="at least 2 seeds, got 3 and 1"):
        hierarchical_bootstrap(x, x[:1], seed=0, paired_seeds=False)
    with pytest.raises(InputError, match=r"\(n_seeds, n_items\), got shape \(5,\)"):
        hierarchical_bootstrap(np.ones(5), x, seed=0)
    assert hierarchical_bootstrap(x, x, seed=0, n_resamples=100) == Interval(0.0, 0.0, 0.0, 3)


# --- probability of superiority -----------------------------------------------------------------------------


def pairs(wins: int, losses: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.array([1.0] * wins + [-1.0] * losses + [0.0] * (n - wins - losses))
    return a, np.zeros(n)


@pytest.mark.parametrize(("wins", "losses"), [(4, 1), (5, 0), (0, 5), (7, 6), (1, 19)])
def test_paired_superiority_without_ties_is_wilsons(wins: int, losses: int) -> None:
    n = wins + losses
    got = paired_superiority(*pairs(wins, losses, n))
    wilson = stats.binomtest(wins, n).proportion_ci(method="wilson")
    assert_allclose([got.mean, got.low, got.high], [wins / n, wilson.low, wilson.high], atol=1e-6)


def test_paired_superiority_of_ties_by_hand() -> None:
    # (n d)^2 = z^2 n d (1 - d) at d = z^2 / (n + z^2)
    d = Z**2 / (7 + Z**2)
    got = paired_superiority(*pairs(0, 0, 7))
    assert_allclose([got.mean, got.low, got.high], [0.5, (1 - d) / 2, (1 + d) / 2], atol=1e-6)
    # 3 wins, 1 loss, 3 ties: (1 + 2/7) / 2
    assert paired_superiority(*pairs(3, 1, 7)).mean == pytest.approx(9 / 14)


@pytest.mark.parametrize(("wins", "losses", "n"), [(3, 1, 7), (2, 5, 11), (4, 0, 13)])
def test_paired_superiority_limits_solve_the_score_equation(wins: int, losses: int, n: int) -> None:
    got = paired_superiority(*pairs(wins, losses, n))
    assert got.low is not None and got.high is not None
    for limit in (got.low, got.high):
        d = 2 * limit - 1

        def unlikely(loss: float, d: float = d) -> float:  # minus the log-likelihood given P(win) = P(loss) + d
            tie = 1 - d - 2 * loss
            counts = [(wins, loss + d), (losses, loss), (n - wins - losses, tie)]
            return -sum(k * np.log(max(p, 1e-300)) for k, p in counts if k)

        bounds = (max(0.0, -d), (1 - d) / 2)
        best = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
        assert_allclose((wins - losses - n * d) ** 2, Z**2 * n * (2 * best + d - d**2), rtol=1e-4)


@pytest.mark.parametrize(("n", "tie"), [(5, 0.0), (5, 0.2), (20, 0.2)])
def test_paired_superiority_covers_95_percent_exactly_counted(n: int, tie: float) -> None:
    counts = [(w, k) for w in range(n + 1) for k in range(n + 1 - w)]
    limits = np.array([[i.low, i.high] for i in (paired_superiority(*pairs(w, k, n)) for w, k in counts)])
    covered = []
    for truth in np.linspace(0.5, 0.95 - tie / 2, 10):
        win, lose = truth - tie / 2, 1 - truth - tie / 2
        chance = [comb(n, w) * comb(n - w, k) * win**w * lose**k * tie ** (n - w - k) for w, k in counts]
        assert sum(chance) == pytest.approx(1)
        covered.append(np.sum(chance * ((limits[:, 0] <= truth) & (truth <= limits[:, 1]))))
    assert min(covered) >= 0.9 and 0.94 <= np.mean(covered) <= 0.98


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.just(2), st.integers(1, 12)), elements=st.integers(-2, 2)))
def test_paired_superiority_is_mirrored_and_holds_its_estimate(x: np.ndarray) -> None:
    got, swapped = paired_superiority(x[0], x[1]), paired_superiority(x[1], x[0])
    assert got.low is not None and got.high is not None and swapped.low is not None and swapped.high is not None
    assert 0 <= got.low <= got.mean <= got.high <= 1
    assert_allclose([1 - swapped.mean, 1 - swapped.high, 1 - swapped.low], [got.mean, got.low, got.high], atol=1e-6)


def test_pairing_finds_what_a_common_effect_hides() -> None:
    common = 10.0 * np.arange(7)
    assert paired_superiority(common + 1, common).mean == 1.0
    assert probability_of_superiority(common + 1, common).mean < 0.6


def test_paired_superiority_refuses_what_does_not_pair() -> None:
    with pytest.raises(InputError, match=r"pairs its values, but got shapes \(3,\) and \(2,\)"):
        paired_superiority([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(InputError, match=r"in \(0, 1\)"):
        paired_superiority([1.0, 2.0], [1.0, 2.0], level=1.0)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, st.integers(3, 9), elements=st.integers(-5, 5)))
def test_the_jackknife_of_a_mean_is_its_squared_standard_error(x: np.ndarray) -> None:
    left_out = np.array([np.delete(x, i).mean() for i in range(len(x))])
    assert_allclose(jackknife_variance(left_out), x.var(ddof=1) / len(x), atol=1e-12)


# --- noise in differences ---------------------------------------------------------------------------------


def test_noise_in_differences_is_half_the_variance_of_a_difference() -> None:
    """Two runs: the difference 0 2 -2 0 has s^2 = 8/3 and, over 4 items, variance 2/3; half of it is 1/3."""
    assert_allclose(noise_in_differences([[1.0, 3.0, 0.0, 5.0], [1.0, 1.0, 2.0, 5.0]]), 1 / 3)


def test_noise_in_differences_is_the_average_over_pairs_and_within_groups() -> None:
    x = np.random.default_rng(0).normal(size=(5, 12))
    groups = np.repeat(["a", "b"], 6)
    pairs = [
        np.mean([np.var((x[i] - x[j])[groups == g], ddof=1) / 6 for g in "ab"]) / 2 / 2
        for i, j in itertools.combinations(range(5), 2)
    ]
    assert_allclose(noise_in_differences(x, groups), np.mean(pairs))


def test_what_all_runs_share_is_no_noise() -> None:
    hard = np.random.default_rng(1).normal(size=20)
    assert noise_in_differences(hard + np.arange(3.0)[:, None]) == pytest.approx(0, abs=1e-20)
    with pytest.raises(InputError, match="at least 2 are needed, got 1"):
        noise_in_differences([hard])
