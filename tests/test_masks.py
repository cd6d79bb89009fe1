"""Scores and masks: hand-checked values, exact counts, invariances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from calib_study import masks, scores
from calib_study.errors import InputError, NumericalError
from calib_study.methods import Pattern

UNSTRUCTURED = Pattern()
# One row by hand: |W| = 4 3 2 1; norms 1 2 8 8; Wanda scores 4 6 16 8.
ROW = torch.tensor([[4.0, -3.0, 2.0, 1.0]])
NORMS = torch.tensor([1.0, 2.0, 8.0, 8.0])


def columns(removed: torch.Tensor) -> list[int]:
    return removed[0].nonzero().flatten().tolist()


def test_wanda_and_magnitude_disagree_on_the_hand_example() -> None:
    assert_close(scores.wanda(ROW, NORMS), torch.tensor([[4.0, 6.0, 16.0, 8.0]]))
    assert columns(masks.removed_by(scores.wanda(ROW, NORMS), 0.5, UNSTRUCTURED, "row")) == [0, 1]
    assert columns(masks.removed_by(scores.magnitude(ROW), 0.5, UNSTRUCTURED, "row")) == [2, 3]


def test_one_to_four_keeps_one_of_four() -> None:
    # N is kept, not removed: 1:4 on scores 4 6 16 8 keeps column 2 alone.
    assert columns(masks.removed_by(scores.wanda(ROW, NORMS), 0.75, Pattern.parse("1:4"), "row")) == [0, 1, 3]


def test_layer_group_compares_across_rows() -> None:
    # 1..100 in 10 x 10, half removed: exactly the values 1..50, that is the first five rows.
    weight = torch.arange(1.0, 101.0).reshape(10, 10)
    removed = masks.removed_by(scores.magnitude(weight), 0.5, UNSTRUCTURED, "layer")
    assert removed[:5].all() and not removed[5:].any()


def test_ties_go_to_the_lower_column_and_the_count_stays_exact() -> None:
    tied = torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    removed = masks.lowest_per_row(tied, 3)
    assert removed.tolist() == [[True, True, True, False, False], [True, True, True, False, False]]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7),
    d_in=st.integers(1, 11),
    sparsity=st.floats(0, 0.99),
    levels=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_counts_are_exact_whatever_the_ties(rows: int, d_in: int, sparsity: float, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randint(0, levels, (rows, d_in), generator=generator).float()
    by_row = masks.removed_by(tied, sparsity, UNSTRUCTURED, "row")
    assert by_row.sum(1).tolist() == [masks.n_removed(d_in, sparsity)] * rows
    assert masks.removed_by(tied, sparsity, UNSTRUCTURED, "layer").sum() == masks.n_removed(rows * d_in, sparsity)
    # nothing removed is worth more than anything kept in its row
    for row, gone in zip(tied, by_row, strict=True):
        if gone.any() and not gone.all():
            assert row[gone].max() <= row[~gone].min()


@settings(max_examples=40, deadline=None)
@given(n_groups=st.integers(1, 5), group=st.integers(2, 8), data=st.data(), seed=st.integers(0, 999))
def test_every_group_of_an_n_m_pattern_keeps_n(n_groups: int, group: int, data: st.DataObject, seed: int) -> None:
    kept = data.draw(st.integers(1, group - 1))
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randint(0, 4, (3, n_groups * group), generator=generator).float()
    removed = masks.lowest_n_of_m(tied, kept, group)
    assert (~removed).reshape(3, n_groups, group).sum(2).eq(kept).all()
    # brute force: a stable sort of each group removes the same entries
    for r in range(3):
        for g in range(n_groups):
            order = tied[r, g * group : (g + 1) * group].argsort(stable=True)[: group - kept]
            assert removed[r, g * group : (g + 1) * group].nonzero().flatten().tolist() == sorted(order.tolist())


def test_lanes_by_hand_ties_to_the_lower_lane() -> None:
    # Columns 3 1 2 | 1 1 1 | 2 2 1: the two lowest are 1 2 | the first two 1s | 1 and the first 2.
    lanes = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 2.0], [2.0, 1.0, 1.0]])
    assert masks.lowest_lanes(lanes, 2).T.tolist() == [[False, True, True], [True, True, False], [True, False, True]]


def test_groups_may_be_wider_than_small_integers_count() -> None:
    values = torch.randn(3, 2 * 300, generator=torch.Generator().manual_seed(0))
    removed = masks.lowest_n_of_m(values, 100, 300)
    order = values.reshape(3, 2, 300).argsort(2)[..., :200]
    assert torch.equal(removed.reshape(3, 2, 300), torch.zeros(3, 2, 300, dtype=torch.bool).scatter(2, order, True))


def test_wanda_ignores_the_scale_of_the_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, norms = torch.randn(7, 11, generator=generator), torch.rand(11, generator=generator)
    one = masks.lowest_per_row(scores.wanda(weight, norms), 5)
    assert torch.equal(one, masks.lowest_per_row(scores.wanda(weight, 64 * norms), 5))
    # scaling input column 3 up and the weight's column 3 down by as much changes nothing either
    scaled, down = norms.clone(), weight.clone()
    scaled[3] *= 8
    down[:, 3] /= 8
    assert torch.equal(one, masks.lowest_per_row(scores.wanda(down, scaled), 5))


def test_wanda_is_magnitude_per_row_when_all_norms_are_equal() -> None:
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    one = masks.lowest_per_row(scores.wanda(weight, torch.full((11,), 3.0)), 4)
    assert torch.equal(one, masks.lowest_per_row(scores.magnitude(weight), 4))


def test_random_scores_depend_on_seed_and_layer_alone() -> None:
    weight = torch.zeros(3, 5)
    assert torch.equal(scores.random(weight, "a", 1), scores.random(weight + 7, "a", 1))
    assert not torch.equal(scores.random(weight, "a", 1), scores.random(weight, "a", 2))
    assert not torch.equal(scores.random(weight, "a", 1), scores.random(weight, "b", 1))


def test_nothing_is_removed_at_sparsity_zero() -> None:
    assert not masks.removed_by(torch.zeros(3, 5), 0.0, UNSTRUCTURED, "row").any()


def test_bad_scores_and_widths_are_errors() -> None:
    with pytest.raises(NumericalError, match="1 of 4 scores"):
        masks.lowest_per_row(torch.tensor([[1.0, float("nan"), 2.0, 3.0]]), 2)
    with pytest.raises(NumericalError, match="2 of 4 scores"):
        masks.lowest_n_of_m(torch.tensor([[1.0, float("nan"), float("nan"), 3.0]]), 2, 4)
    # infinite scores are compared as any others, though their sum may be no number
    infinite = torch.tensor([[float("inf"), -float("inf"), 2.0, 3.0]])
    assert masks.lowest_per_row(infinite, 2).tolist() == [[False, True, True, False]]
    with pytest.raises(InputError, match="multiple of 4 inputs; the layer has 10"):
        masks.lowest_n_of_m(torch.zeros(2, 10), 2, 4)


@pytest.mark.parametrize("text", ["3:2", "0:4", "4:4", "2-4", "two:four", "", ":"])
def test_bad_patterns_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="pattern"):
        Pattern.parse(text)


def test_lowest_mass_by_hand() -> None:
    # Shares of the row's total, added up from the lowest: 1/4 2/4 3/4 1, and 1/10 2/10 3/10 1.
    # The four lowest of the eight are 1/10 2/10 1/4 3/10: alpha = 0.3, one weight of the first row, three of the other.
    even_and_peaked = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 7.0, 1.0]])
    removed = masks.lowest_mass_per_row(even_and_peaked, 0.5)
    assert removed.tolist() == [[True, False, False, False], [True, True, False, True]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), sparsity=st.floats(0.05, 0.95))
def test_lowest_mass_is_one_alpha_for_all_rows_and_the_count_exact(seed: int, sparsity: float) -> None:
    values = torch.randn(7, 31, generator=torch.Generator().manual_seed(seed)).abs() ** 2
    removed = masks.lowest_mass_per_row(values, sparsity)
    assert removed.sum() == masks.n_removed(values.numel(), sparsity)
    # brute force: halve a bracket for alpha until it removes the same number, then compare the weights
    rows = values.double().tolist()
    low, high = 0.0, 1.0
    for _ in range(60):
        alpha = (low + high) / 2
        gone = [cut_at(row, alpha) for row in rows]
        low, high = (alpha, high) if sum(map(len, gone)) < removed.sum() else (low, alpha)
    assert [row.nonzero().flatten().tolist() for row in removed] == [sorted(cut_at(row, high)) for row in rows]


def cut_at(row: list[float], alpha: float) -> list[int]:
    """Return the columns whose scores, from the lowest, add up to at most alpha of the row's total."""
    order = sorted(range(len(row)), key=lambda j: row[j])
    return [j for i, j in enumerate(order) if sum(row[k] for k in order[: i + 1]) <= alpha * sum(row)]


def test_lowest_mass_ignores_the_scale_of_a_row_and_equals_the_row_rule_for_like_rows() -> None:
    row = torch.rand(31, generator=torch.Generator().manual_seed(0))
    alike = torch.stack([row, 4 * row, row.flip(0) / 8])
    counts = masks.lowest_mass_per_row(alike, 17 * 3 / 93).sum(1)
    assert counts.tolist() == [17, 17, 17]


def test_lowest_mass_takes_rows_of_zeros_first_and_refuses_what_is_not_finite() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert masks.lowest_mass_per_row(values, 0.5).tolist() == [[False] * 3, [True] * 3]
    assert not masks.lowest_mass_per_row(values, 0.0).any()
    assert masks.lowest_mass_per_row(values, 1.0).all()
    with pytest.raises(NumericalError, match="1 of 3 scores are not finite"):
        masks.lowest_mass_per_row(torch.tensor([[1.0, float("inf"), 2.0]]), 0.5)
