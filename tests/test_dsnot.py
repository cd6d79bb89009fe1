"""DSnoT: the hand value, a row-by-row reference, counts that never change, the sign rule and the threshold's unit."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calib_study.dsnot import dsnot, output_shift
from calib_study.errors import InputError, NumericalError
from calib_study.masks import lowest_n_of_m, lowest_per_row
from calib_study.methods import Pattern

UNSTRUCTURED = Pattern()
# By hand, all means and variances 1, so D = W. Removed: +3 and -1, so the error is 2. Kept: -2 (score 1), +1 (score 2).
HAND = {
    "weight": torch.tensor([[3.0, -1.0, -2.0, 1.0]]),
    "removed": torch.tensor([[True, True, False, False]]),
    "score": torch.tensor([[9.0, 9.0, 1.0, 2.0]]),
    "input_mean": torch.ones(4),
    "input_variance": torch.ones(4),
}


def by_hand(**changed: Any) -> list[int]:
    removed = dsnot(**{"pattern": UNSTRUCTURED, **HAND, **changed})
    return removed[0].nonzero().flatten().tolist()


def problem(seed: int, d_out: int, d_in: int, pattern: Pattern, sparsity: float) -> dict[str, Any]:
    """Return arguments in float64; the mask follows scores of its own, so that it differs from the one to refine by."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    mean = torch.randn(d_in, generator=generator, dtype=torch.float64)
    variance = torch.rand(d_in, generator=generator, dtype=torch.float64) + 0.1
    score = weight.abs() * (mean**2 + variance).sqrt()
    first = score * torch.rand(d_out, d_in, generator=generator, dtype=torch.float64)
    removed = (
        lowest_n_of_m(first, pattern.kept, pattern.group)
        if pattern.structured
        else lowest_per_row(first, int(d_in * sparsity))
    )
    return {
        "weight": weight,
        "removed": removed,
        "score": score,
        "input_mean": mean,
        "input_variance": variance,
        "pattern": pattern,
    }


def refine_row(
    w: list[float],
    gone: list[bool],
    score: list[float],
    mean: list[float],
    variance: list[float],
    pattern: Pattern,
    max_cycles: int,
    threshold: float,
    same_sign: bool,
) -> list[bool]:
    """The same algorithm for one row, with lists, written from its description."""
    columns = range(len(w))
    d = [w[j] * mean[j] for j in columns]
    error = sum(d[j] for j in columns if gone[j])
    may_grow = {j for j in columns if gone[j]}
    may_go = {j for j in columns if not gone[j]}
    result = list(gone)
    for _ in range(max_cycles):
        if abs(error) <= threshold:
            break
        sign = 1 if error > 0 else -1
        back = [j for j in may_grow if sign * d[j] > 0]
        if not back:
            break
        grown = max(back, key=lambda j: (abs(d[j]) / variance[j], -j))
        may_grow.remove(grown)
        if pattern.structured:
            there = [j for j in may_go if j // pattern.group == grown // pattern.group]
        else:
            there = [j for j in may_go if sign * d[j] < 0]
        if not there:
            continue
        taken = min(there, key=lambda j: (score[j], j))
        may_go.remove(taken)
        after = error + d[taken] - d[grown]
        if same_sign and sign * after <= 0:
            break
        result[grown], result[taken], error = False, True, after
    return result


def refine_rows(given: dict[str, Any], **settings: Any) -> Tensor:
    rows = zip(given["weight"].tolist(), given["removed"].tolist(), given["score"].tolist(), strict=True)
    mean, variance = given["input_mean"].tolist(), given["input_variance"].tolist()
    return torch.tensor([refine_row(*row, mean, variance, given["pattern"], **settings) for row in rows])


def test_hand_value_overshoots_without_the_sign_rule() -> None:
    # Error 2 > 0: give back +3, remove -2; the error is then 2 - 2 - 3 = -3.
    assert by_hand(max_cycles=1) == [1, 2]
    after = output_shift(HAND["weight"], torch.tensor([[False, True, True, False]]), HAND["input_mean"])
    assert after.tolist() == [-3.0]


def test_hand_value_goes_on_until_nothing_is_left_to_give_back() -> None:
    # Error -3 < 0: give back -1, remove +1; error -3 + 1 + 1 = -1. Then no removed weight below 0 is left: stop.
    assert by_hand() == [2, 3]


def test_the_sign_rule_refuses_the_overshoot() -> None:
    assert by_hand(same_sign=True) == [0, 1]


def test_variance_decides_which_weight_comes_back() -> None:
    # Removed +3 (variance 9) and +1 (variance 1): 3 / 9 < 1 / 1, so +1 returns; with power 0, or at equal variance, +3.
    weight = torch.tensor([[3.0, 1.0, -2.0, 1.0]])
    variance = torch.tensor([9.0, 1.0, 1.0, 1.0])
    assert by_hand(weight=weight, input_variance=variance, max_cycles=1) == [0, 2]
    assert by_hand(weight=weight, input_variance=variance, max_cycles=1, variance_power=0) == [1, 2]
    assert by_hand(weight=weight, max_cycles=1) == [1, 2]


def test_a_feature_that_never_varies_comes_back_first() -> None:
    weight = torch.tensor([[3.0, 0.5, -2.0, 1.0]])
    assert by_hand(weight=weight, input_variance=torch.tensor([1.0, 0.0, 1.0, 1.0]), max_cycles=1) == [0, 2]
    # ... unless its mean is 0 as well: then it shifts nothing
    silent = {"input_mean": torch.tensor([1.0, 0.0, 1.0, 1.0]), "input_variance": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    assert by_hand(weight=weight, max_cycles=1, **silent) == [1, 2]


def test_ties_go_to_the_lower_column() -> None:
    weight = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    assert by_hand(weight=weight, score=torch.ones(1, 4), max_cycles=1) == [1, 2]


def test_an_n_m_row_exchanges_within_the_group_and_may_grow_its_error() -> None:
    # 1:2, groups {3, 4} and {0.5, -9}, removed 3 and 0.5: error 3.5. The best to give back is 3, whose partner is 4;
    # error 3.5 + 4 - 3 = 4.5: the same sign, so the exchange is made although the error grew.
    weight = torch.tensor([[3.0, 4.0, 0.5, -9.0]])
    removed = torch.tensor([[True, False, True, False]])
    changed = {"weight": weight, "removed": removed, "pattern": Pattern(1, 2)}
    assert by_hand(**changed, max_cycles=1) == [1, 2]
    # Then +0.5 for -9: 4.5 - 9 - 0.5 = -5 turns the sign: refused, unless the rule is off.
    assert by_hand(**changed) == [1, 2]
    assert by_hand(**changed, same_sign=False) == [1, 3]


def test_a_group_with_nothing_left_to_remove_is_passed_over() -> None:
    # 1:4, removed +5 +4 and 0 | +1 and 0s; kept 2 | -1. Error 10. Cycle 1: 5 for 2, error 10 + 2 - 5 = 7.
    # Cycle 2: 4 has no partner left. Cycle 3: 1 for -1 in the other group, error 7 - 1 - 1 = 5.
    weight = torch.tensor([[5.0, 4.0, 2.0, 0.0, 1.0, -1.0, 0.0, 0.0]])
    removed = torch.tensor([[True, True, False, True, True, False, True, True]])
    ones = torch.ones(8)
    given = (weight, removed, weight.abs(), ones, ones)
    two = dsnot(*given, pattern=Pattern(1, 4), max_cycles=2)
    three = dsnot(*given, pattern=Pattern(1, 4), max_cycles=3)
    assert (~two)[0].nonzero().flatten().tolist() == [0, 5]
    assert (~three)[0].nonzero().flatten().tolist() == [0, 4]


@pytest.mark.parametrize("same_sign", [False, True])
@pytest.mark.parametrize("max_cycles", [1, 3, 50])
@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:4", "4:8", "5:7"])
def test_equals_the_row_by_row_reference(text: str, max_cycles: int, same_sign: bool) -> None:
    pattern = Pattern.parse(text)
    changed = 0
    for seed in range(5):
        d_in = 5 * pattern.group if pattern.structured else 31
        given = problem(seed, 13, d_in, pattern, 0.6)
        rules = {"max_cycles": max_cycles, "threshold": 0.05, "same_sign": same_sign}
        refined = dsnot(**given, **rules)
        assert torch.equal(refined, refine_rows(given, **rules))
        changed += int((refined != given["removed"]).sum())
    assert changed > 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    text=st.sampled_from(["unstructured", "2:4", "1:4", "3:4", "4:8"]),
    sparsity=st.floats(0.1, 0.95),
    max_cycles=st.integers(0, 60),
    same_sign=st.booleans(),
)
def test_the_number_removed_never_changes(
    seed: int, text: str, sparsity: float, max_cycles: int, same_sign: bool
) -> None:
    pattern = Pattern.parse(text)
    given = problem(seed, 7, 16, pattern, sparsity)
    refined = dsnot(**given, max_cycles=max_cycles, threshold=0.0, same_sign=same_sign)
    width = pattern.group if pattern.structured else 16
    assert torch.equal(refined.reshape(7, -1, width).sum(2), given["removed"].reshape(7, -1, width).sum(2))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), sparsity=st.floats(0.1, 0.95), max_cycles=st.integers(1, 40))
def test_with_the_sign_rule_the_error_of_an_unstructured_row_never_grows(
    seed: int, sparsity: float, max_cycles: int
) -> None:
    given = problem(seed, 7, 31, UNSTRUCTURED, sparsity)
    refined = dsnot(**given, max_cycles=max_cycles, threshold=0.0, same_sign=True)
    before = output_shift(given["weight"], given["removed"], given["input_mean"])
    after = output_shift(given["weight"], refined, given["input_mean"])
    assert (after.abs() <= before.abs() + 1e-12).all()
    assert (after * before >= -1e-12).all()


def test_rows_within_the_threshold_are_unchanged() -> None:
    given = problem(3, 13, 31, UNSTRUCTURED, 0.6)
    error = output_shift(given["weight"], given["removed"], given["input_mean"]).abs()
    middle = error.median().item()
    moved = (dsnot(**given, threshold=middle) != given["removed"]).any(1)
    assert not moved[error <= middle].any()
    assert moved[error > middle].any()


def test_no_cycles_returns_the_initial_mask() -> None:
    given = problem(0, 13, 31, UNSTRUCTURED, 0.6)
    refined = dsnot(**given, max_cycles=0)
    assert torch.equal(refined, given["removed"])
    assert refined is not given["removed"]


def test_tokens_per_sum_scales_the_error_that_meets_the_threshold() -> None:
    # Error 2 per token: over 128 tokens it is 256, above 255 and not above 256.
    assert by_hand(max_cycles=1, threshold=2.0) == [0, 1]
    assert by_hand(max_cycles=1, threshold=256.0, tokens_per_sum=128) == [0, 1]
    assert by_hand(max_cycles=1, threshold=255.0, tokens_per_sum=128) == [1, 2]


def test_the_sign_rule_is_on_for_n_m_alone() -> None:
    for text, default in (("unstructured", False), ("2:4", True)):
        given = problem(1, 13, 32, Pattern.parse(text), 0.6)
        masks = {rule: dsnot(**given, same_sign=rule) for rule in (None, False, True)}
        assert torch.equal(masks[None], masks[default])
        assert not torch.equal(masks[None], masks[not default])


def test_the_arguments_are_left_alone_and_half_precision_is_widened() -> None:
    given = problem(2, 13, 31, UNSTRUCTURED, 0.6)
    narrow = {
        name: value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }
    before = narrow["removed"].clone()
    wide = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in narrow.items()
    }
    assert torch.equal(dsnot(**narrow), dsnot(**wide))
    assert torch.equal(before, narrow["removed"])


def test_a_fully_removed_layer_has_nothing_to_exchange() -> None:
    assert by_hand(removed=torch.ones(1, 4, dtype=torch.bool)) == [0, 1, 2, 3]


def test_nothing_to_grow_is_an_error() -> None:
    with pytest.raises(InputError, match="this one removes nothing"):
        by_hand(removed=torch.zeros(1, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score": torch.ones(1, 5)}, r"one shape; got \(1, 4\)"),
        ({"removed": torch.ones(1, 4)}, r"torch\.float32"),
        ({"input_mean": torch.ones(5)}, "for each of 4 inputs"),
        ({"pattern": Pattern(2, 3)}, "pattern 2:3 needs a multiple of 3 inputs; the layer has 4"),
        ({"max_cycles": -1}, "max_cycles is -1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"variance_power": -1.0}, "variance_power is -1.0"),
        ({"tokens_per_sum": 0}, "tokens_per_sum is 0; it must be 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_hand(**changed)


@pytest.mark.parametrize("name", ["weight", "score", "input_mean", "input_variance"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    broken = HAND[name].clone()
    broken.flatten()[1] = float("nan")
    with pytest.raises(NumericalError, match=r"1 of 4 .* are not finite"):
        by_hand(**{name: broken})
