"""Variance components against hand-worked values, brute force and simulation (bias and coverage)."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from calib_study.components import (
    VarianceComponents,
    evaluation_variance,
    item_variance_components,
    variance_components,
)
from calib_study.errors import InputError
from calib_study.statistics import Interval, variance_shares

# A: method 1 -> 1, 3; method 2 -> 5, 7. B: method 1 -> 3, 5; method 2 -> 11, 13. Grand mean 6.
# Source means 4, 8 (-/+ 2): SS 8 x 4 = 32. Method means 3, 9 (-/+ 3): SS 8 x 9 = 72. Interaction -/+ 1: SS 8.
# Seeds -/+ 1, the same for both methods of a source: draw SS 8 on 2 degrees of freedom, draw x method SS 0 on 2.
HAND = np.array([[[1.0, 3.0], [5.0, 7.0]], [[3.0, 5.0], [11.0, 13.0]]])


def means(found: dict[str, Interval]) -> dict[str, float]:
    return {name: pytest.approx(interval.mean, abs=1e-12) for name, interval in found.items()}


def covered(interval: Interval, truth: float) -> bool:
    return interval.low is not None and interval.high is not None and interval.low <= truth <= interval.high


def test_components_of_shared_draws_by_hand() -> None:
    # MS: source 32, method 72, interaction 8, draw 8 / 2 = 4, draw x method 0
    # seed (4 - 0)/2 = 2, interaction (8 - 0)/2 = 4, source (32 - 4 - 8 + 0)/4 = 5, method (72 - 8)/4 = 16
    got = variance_components(HAND)
    wanted = {"source": 5, "method": 16, "source x method": 4, "seed": 2, "seed x method": 0, "evaluation": 0}
    assert wanted == means(got.estimates)
    assert {k: v / 27 for k, v in wanted.items()} == means(got.shares)
    assert got.estimates["source"].low is None  # two seeds


def test_components_of_separate_draws_by_hand() -> None:
    # MS(seed) = 8 / 4 = 2; interaction (8 - 2)/2 = 3, source (32 - 8)/4 = 6, method (72 - 8)/4 = 16
    got = variance_components(HAND, shared_draws=False)
    assert means(got.estimates) == {"source": 6, "method": 16, "source x method": 3, "seed": 2, "evaluation": 0}


def test_fixed_factors_by_hand() -> None:
    # separate draws, both fixed: source (32 - 2)/4 = 7.5, method (72 - 2)/4 = 17.5
    both = variance_components(HAND, shared_draws=False, fixed=("source", "method")).estimates
    assert (both["source"].mean, both["method"].mean) == (7.5, 17.5)
    # shared draws, methods fixed: source (32 - 4)/4 = 7, seed 4/2 = 2, method as for random
    method = variance_components(HAND, fixed=["method"]).estimates
    assert (method["source"].mean, method["seed"].mean, method["method"].mean) == (7, 2, 16)
    # sources fixed: method (72 - 0)/4 = 18, source as for random
    source = variance_components(HAND, fixed=["source"]).estimates
    assert (source["source"].mean, source["method"].mean) == (5, 18)


def test_evaluation_noise_is_taken_from_the_seeds_alone() -> None:
    # every mean square loses 0.5, which cancels except in the last: 2 - 0.5
    got = variance_components(HAND, 0.5, shared_draws=False)
    wanted = {"source": 6, "method": 16, "source x method": 3, "seed": 1.5, "evaluation": 0.5}
    assert means(got.estimates) == wanted
    assert means(variance_components(HAND, np.full(HAND.shape, 0.5), shared_draws=False).estimates) == wanted


def test_negative_estimates_are_shown_and_clipped_on_request() -> None:
    # more evaluation noise than there is spread between seeds: 2 - 3 = -1; the total 25 + 2 stays 27
    got = variance_components(HAND, 3.0, shared_draws=False)
    assert got.estimates["seed"].mean == pytest.approx(-1) and got.shares["seed"].mean == pytest.approx(-1 / 27)
    assert got.clipped["seed"].mean == 0 and got.clipped["source"] == got.estimates["source"]
    assert got.clipped_shares["seed"] == 0 and got.clipped_shares["method"] == pytest.approx(16 / 28)
    assert sum(got.clipped_shares.values()) == pytest.approx(1)
    with_limits = variance_components(np.random.default_rng(0).normal(size=(3, 2, 5)), 1.0).clipped["seed x method"]
    assert with_limits.low == 0 and with_limits.high is not None and with_limits.high > 0


def test_components_agree_with_the_sums_of_squares_of_the_shares() -> None:
    x = np.random.default_rng(1).normal(size=(5, 3, 7))
    total = np.sum((x - x.mean()) ** 2)
    source, method, both, seed = (share * total for share in variance_shares(x).values())
    got = variance_components(x, shared_draws=False).estimates
    residual, interaction = seed / (15 * 6), both / 8
    assert_allclose(got["seed"].mean, residual)
    assert_allclose(got["source x method"].mean, (interaction - residual) / 7)
    assert_allclose(got["source"].mean, (source / 4 - interaction) / 21)
    assert_allclose(got["method"].mean, (method / 2 - interaction) / 35)


def test_components_of_shared_draws_by_brute_force() -> None:
    # unbiased estimates from products of different draws, methods and sources, as a loop: with
    # c(same source, same method, same draw) the mean product of two different values of that kind,
    # seed x method = c(s, m, r) - c(s, m, .) - c(s, ., r) + c(s, ., .), and so on
    x = np.random.default_rng(2).normal(size=(3, 2, 5)) + np.random.default_rng(3).normal(size=(3, 1, 5))
    kinds: dict[tuple[bool, bool, bool], list[float]] = {}
    for one, two in itertools.product(np.ndindex(x.shape), repeat=2):
        same = (one[0] == two[0], one[1] == two[1], one[0] == two[0] and one[2] == two[2])
        kinds.setdefault(same, []).append(x[one] * x[two])
    c = {same: float(np.mean(products)) for same, products in kinds.items()}
    method = c[False, True, False] - c[False, False, False]
    source = c[True, False, False] - c[False, False, False]
    cell = c[True, True, False] - c[True, False, False] - method
    draw = c[True, False, True] - c[True, False, False]
    rest = c[True, True, True] - c[True, True, False] - draw
    got = means(variance_components(x).estimates)
    wanted = {"source": source, "method": method, "source x method": cell, "seed": draw, "seed x method": rest}
    assert wanted | {"evaluation": 0.0} == got


@pytest.mark.parametrize("shared", [True, False])
def test_components_are_recovered_with_their_coverage(shared: bool) -> None:
    # fixed cells, so that the truth is the components of the cells themselves; evaluation variance 0.16 known
    rng = np.random.default_rng(4)
    cells = rng.normal(size=(5, 1, 1)) + 0.7 * rng.normal(size=(1, 3, 1)) + 0.5 * rng.normal(size=(5, 3, 1))
    known = {k: i.mean for k, i in variance_components(np.repeat(cells, 2, axis=2)).estimates.items()}
    truth = known | ({"seed": 0.49, "seed x method": 0.25} if shared else {"seed": 0.74}) | {"evaluation": 0.16}
    if not shared:
        del truth["seed x method"]
    total = sum(truth.values())
    found, hits, share_hits = [], [], []
    for _ in range(400):
        draws = 0.7 * rng.normal(size=(5, 1 if shared else 3, 5))
        y = cells + draws + 0.5 * rng.normal(size=(5, 3, 5)) + 0.4 * rng.normal(size=(5, 3, 5))
        got = variance_components(y, 0.16, shared_draws=shared)
        assert sum(i.mean for i in got.shares.values()) == pytest.approx(1)
        found.append([got.estimates[name].mean for name in truth])
        hits.append([covered(got.estimates[name], v) for name, v in truth.items() if name != "evaluation"])
        share_hits.append([covered(got.shares[name], v / total) for name, v in truth.items()])
    error = np.mean(found, axis=0) - list(truth.values())
    assert np.all(np.abs(error) <= 3.5 * np.std(found, axis=0) / 20 + 1e-12)
    # measured 0.91 to 0.99 with 600 studies
    for share in (*np.mean(hits, axis=0), *np.mean(share_hits, axis=0)):
        assert 0.9 <= share <= 0.995


def test_shared_draws_taken_as_separate_bias_the_interaction() -> None:
    rng = np.random.default_rng(5)
    y = rng.normal(size=(200, 3, 1, 5)) + 0.1 * rng.normal(size=(200, 3, 2, 5))
    wrong = [variance_components(x, shared_draws=False).estimates["source x method"].mean for x in y]
    right = [variance_components(x).estimates["source x method"].mean for x in y]
    assert abs(np.mean(right)) < 0.005 and np.mean(wrong) < -0.05


def test_item_noise_equals_binomial_noise_when_models_answer_independently() -> None:
    rng = np.random.default_rng(6)
    items = np.asarray(rng.random(size=(5, 3, 4, 997)) < 0.6, dtype=float)
    got = item_variance_components(items)
    binomial = variance_components(items.mean(axis=-1), evaluation_variance(items.mean(axis=-1), 997))
    assert_allclose(got.estimates["evaluation"].mean, binomial.estimates["evaluation"].mean, rtol=0.02)
    assert_allclose(got.estimates["seed"].mean, binomial.estimates["seed"].mean, atol=3e-5)


def test_item_noise_by_hand() -> None:
    # all runs answer alike: no difference between runs has any noise, though each accuracy has
    rng = np.random.default_rng(7)
    alike = np.broadcast_to(np.asarray(rng.random(101) < 0.6, dtype=float), (2, 3, 3, 101)).copy()
    levels = np.arange(18.0).reshape(2, 3, 3, 1) ** 2
    got, plain = item_variance_components(alike + levels), variance_components(levels[..., 0])
    assert got.estimates["evaluation"].mean == pytest.approx(0, abs=1e-9)
    for name, interval in plain.estimates.items():
        assert_allclose(got.estimates[name].mean, interval.mean, atol=1e-9)
    # two sources, A always 0 and B right on 2 of 4: the difference of two runs has variance s^2/n = (1/3)/4 if
    # they are of A and B, else 0. Of 8 runs 28 pairs, 16 of A and B: half of 1/12 times 16/28
    two = np.zeros((2, 2, 2, 4))
    two[1] = [1.0, 1.0, 0.0, 0.0]
    two_sources = item_variance_components(two).estimates
    assert two_sources["evaluation"].mean == pytest.approx(16 / 28 / 24)
    # source: (1/2)^2 / 2 = 1/8 between the means, less half the variance of their difference, 1/24
    assert two_sources["source"].mean == pytest.approx(1 / 8 - 1 / 24)


def test_item_components_are_recovered_with_their_coverage() -> None:
    # items favour sources and methods (s.d. 0.5 each), so that seeds alone would leave most noise unseen
    rng = np.random.default_rng(8)
    cells = 0.3 * (np.array([-1.0, 0.2, 0.8])[:, None, None] + np.array([-0.6, 0.6])[:, None])
    truth = {k: i.mean for k, i in variance_components(np.repeat(cells, 2, axis=2)).estimates.items()}
    truth |= {"seed": 0.05**2, "seed x method": 0.0}
    hits, found = [], []
    for _ in range(120):
        x = cells[..., None] + 0.05 * rng.normal(size=(3, 1, 4, 1)) + rng.normal(size=101)
        x = x + 0.5 * rng.normal(size=(3, 1, 1, 101)) + 0.5 * rng.normal(size=(2, 1, 101))
        got = item_variance_components(x + 0.5 * rng.normal(size=(3, 2, 4, 101)), groups=[0] * 60 + [1] * 41)
        found.append([got.estimates[name].mean for name in truth if name != "evaluation"])
        hits.append([covered(got.estimates[name], v) for name, v in truth.items() if name != "evaluation"])
    error = np.mean(found, axis=0) - [v for k, v in truth.items() if k != "evaluation"]
    assert np.all(np.abs(error) <= 3.5 * np.std(found, axis=0) / np.sqrt(120))
    assert np.mean(hits, axis=0).min() >= 0.89  # s.d. 0.02; without the jackknife over items 0.4 to 0.6


def test_item_components_count_every_task_the_same_in_any_order() -> None:
    rng = np.random.default_rng(9)
    easy, hard = rng.normal(size=(2, 2, 3, 3, 1))
    task = np.array(["easy"] * 10 + ["hard"] * 30)
    # all runs answer alike within a task, so that only their levels count: the mean of the two tasks
    items = rng.normal(size=40) + np.concatenate([np.tile(easy, 10), np.tile(hard, 30)], axis=-1)
    got = item_variance_components(items, groups=task).estimates
    for name, interval in variance_components((easy + hard)[..., 0] / 2).estimates.items():
        assert_allclose(got[name].mean, interval.mean, atol=1e-9)
    items = rng.normal(size=(2, 3, 3, 40))
    tasks_swapped = np.roll(np.arange(40), 10)
    wanted = item_variance_components(items, groups=task).estimates
    for name, interval in item_variance_components(
        items[..., tasks_swapped], groups=task[tasks_swapped]
    ).estimates.items():
        assert_allclose([interval.mean, interval.high], [wanted[name].mean, wanted[name].high])


def test_evaluation_variance_is_unbiased() -> None:
    # E[p (1 - p)] / (n - 1) over the binomial distribution is P (1 - P) / n
    k = np.arange(12)
    expected = np.sum(stats.binom.pmf(k, 11, 0.3) * evaluation_variance(k / 11, 11))
    assert expected == pytest.approx(0.3 * 0.7 / 11)
    answers = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    assert evaluation_variance(0.6, 5) == pytest.approx(answers.var(ddof=1) / 5)
    with pytest.raises(InputError, match=r"accuracies in \[0, 1\]"):
        evaluation_variance(61.5, 100)
    with pytest.raises(InputError, match="2 items or more"):
        evaluation_variance(0.5, 1)


def test_variance_components_refuse_what_they_cannot_use() -> None:
    x = np.random.default_rng(10).normal(size=(3, 2, 5))
    with pytest.raises(InputError, match=r"\(n_sources, n_methods, n_seeds\), got shape \(3, 5\)"):
        variance_components(np.ones((3, 5)))
    with pytest.raises(InputError, match=r"2 seeds at least, got shape \(3, 2, 1\)"):
        variance_components(x[..., :1])
    with pytest.raises(InputError, match=r"of shape \(3, 2, 5\); got shape \(5,\)"):
        variance_components(x, np.ones(5))
    with pytest.raises(InputError, match="smallest -1"):
        variance_components(x, -1.0)
    with pytest.raises(InputError, match=r"unknown fixed factor 'methods'\. Did you mean 'method'"):
        variance_components(x, fixed=("methods",))
    with pytest.raises(InputError, match="all 30 values are equal"):
        variance_components(np.full((3, 2, 5), 0.1))
    with pytest.raises(InputError, match="at least 3 items of every task, got 2"):
        item_variance_components(np.ones((2, 2, 2, 5)), groups=list("aaabb"))
    with pytest.raises(InputError, match="one label for each of 5 items"):
        item_variance_components(np.ones((2, 2, 2, 5)), groups=list("aaab"))


def test_shares_that_are_not_defined_are_left_out() -> None:
    # without seed 1 all values are equal: components have limits, shares have none
    lonely = np.zeros((2, 2, 3))
    lonely[0, 0, 1] = 1.0
    got = variance_components(lonely)
    assert got.estimates["seed x method"].low is not None and {i.low for i in got.shares.values()} == {None}
    # rows and columns cancel: MS(SM) = 4 x 3 = 12, so interaction 4, source and method -12/6 = -2, their sum 0
    crossed = np.array([[1.0, -1.0], [-1.0, 1.0]])[..., None] * np.ones(3)
    cancelled = variance_components(crossed)
    assert [i.mean for i in cancelled.estimates.values()] == [-2, -2, 4, 0, 0, 0] and cancelled.shares == {}
    assert list(cancelled.clipped_shares.values()) == [0, 0, 1, 0, 0, 0]


def test_components_of_two_seeds_have_no_limits() -> None:
    got = variance_components(HAND)
    assert isinstance(got, VarianceComponents)
    assert {(i.low, i.high, i.n) for i in (*got.estimates.values(), *got.shares.values())} == {(None, None, 2)}
