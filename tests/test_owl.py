"""OWL: hand values, what the allocation ignores, and what it refuses."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calib_study.errors import InputError, NumericalError
from calib_study.methods import Pattern
from calib_study.owl import allocate, allocate_n_m, outlier_share

SHARES = st.lists(st.floats(0, 100), min_size=2, max_size=11)


def test_outlier_share_by_hand() -> None:
    # Scores 1 1 1 1 | 2 24 over two layers: mean 30 / 6 = 5. Above 4 * 5 = 20: one of six. Above 0.3 * 5 = 1.5: two.
    block = [torch.ones(2, 2), torch.tensor([[2.0, 24.0]])]
    assert outlier_share(block, 4) == pytest.approx(100 / 6)
    assert outlier_share(block, 0.3) == pytest.approx(200 / 6)
    # The mean is the block's, not the layer's: alone, the second layer has mean 13 and nothing above 2 * 13.
    assert outlier_share(block[1:], 2) == 0


def test_outlier_share_is_of_scores_above_the_limit_not_at_it() -> None:
    assert outlier_share([torch.full((3, 5), 2.0)], 1) == 0
    assert outlier_share([torch.zeros(3, 5)], 5) == 0


def test_outlier_share_equals_the_concatenated_definition_and_ignores_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    block = [torch.randn(7, 11, generator=generator).abs() ** 3, torch.randn(5, 3, generator=generator).abs()]
    together = torch.cat([scores.flatten() for scores in block]).double()
    assert outlier_share(block, 3) == pytest.approx(100 * (together > 3 * together.mean()).double().mean().item())
    assert outlier_share([64 * scores for scores in block], 3) == outlier_share(block, 3)


def test_allocation_by_hand() -> None:
    # D = 1 2 5 scaled to 0 .. 0.16: 0, 0.04, 0.16, mean 0.0667; 0.7 + 0.0667 - each.
    assert allocate([1, 2, 5], 0.7, lam=0.08) == pytest.approx([0.76667, 0.72667, 0.60667], abs=1e-5)


@given(outliers=SHARES, sparsity=st.floats(0.3, 0.7), lam=st.floats(0, 0.14))
def test_the_mean_is_the_sparsity_and_the_spread_twice_lambda(
    outliers: list[float], sparsity: float, lam: float
) -> None:
    shares = allocate(outliers, sparsity, lam=lam)
    assert sum(shares) / len(shares) == pytest.approx(sparsity, abs=1e-12)
    spread = 2 * lam if min(outliers) < max(outliers) else 0
    assert max(shares) - min(shares) == pytest.approx(spread, abs=1e-12)
    # a block with more outliers is never sparser
    by_outliers = [share for _, share in sorted(zip(outliers, shares, strict=True), key=lambda pair: pair[0])]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(by_outliers))


@given(
    outliers=st.lists(st.integers(0, 100), min_size=2, max_size=11),
    scale=st.floats(0.1, 10),
    offset=st.floats(-50, 50),
)
def test_unit_and_offset_of_the_outlier_shares_do_not_matter(outliers: list[int], scale: float, offset: float) -> None:
    other = [scale * share + offset for share in outliers]
    assert allocate(other, 0.6) == pytest.approx(allocate(outliers, 0.6), abs=1e-9)


@pytest.mark.parametrize(
    ("outliers", "sparsity", "lam"), [([3, 3, 3], 0.7, 0.08), ([1, 2, 5], 0.7, 0), ([1, 2, 5], 0, 0.08)]
)
def test_equal_shares_or_nothing_to_shift_give_the_uniform_allocation(
    outliers: list[float], sparsity: float, lam: float
) -> None:
    assert allocate(outliers, sparsity, lam=lam) == [sparsity] * 3


@pytest.mark.parametrize(
    ("sparsity", "block"),
    [
        # Scaled and centred, 1 2 5 become -5/12 -1/6 7/12, times 2 lam.
        # Block 2 falls from 0.1 to 0.01 at lam = 0.09 / (7 / 6) = 0.0771;
        (0.1, 2),
        # block 0 rises from 0.9 to 0.99 at lam = 0.09 / (5 / 6) = 0.108.
        (0.9, 0),
    ],
)
def test_a_lambda_that_does_not_fit_names_the_block_and_one_that_does(sparsity: float, block: int) -> None:
    with pytest.raises(InputError, match=f"gives block {block} a sparsity") as caught:
        allocate([1, 2, 5], sparsity, lam=0.3)
    largest = float(re.search(r"at most ([\d.]+)\.$", str(caught.value)).group(1))  # type: ignore[union-attr]
    assert largest == pytest.approx(0.0771 if block == 2 else 0.108, abs=1.5e-4)  # cut to four decimals
    assert all(0.01 <= share <= 0.99 for share in allocate([1, 2, 5], sparsity, lam=largest))
    with pytest.raises(InputError):
        allocate([1, 2, 5], sparsity, lam=largest + 2e-4)


def test_mixed_n_m_by_hand() -> None:
    # D = 0 5 10, lambda 2: 0 1 2, less the mean 1: -1 0 +1. More outliers, more kept.
    assert allocate_n_m([0, 5, 10], Pattern.parse("4:8")) == [Pattern(3, 8), Pattern(4, 8), Pattern(5, 8)]
    # D = 1 2 5, lambda 2: 0 0.5 2, less 0.8333: -0.8333 -0.3333 1.1667: 3 4 5.
    assert [one.kept for one in allocate_n_m([1, 2, 5], Pattern.parse("4:8"))] == [3, 4, 5]
    assert allocate_n_m([7, 7], Pattern.parse("2:4")) == [Pattern(2, 4)] * 2
    assert allocate_n_m([1, 2, 5], Pattern.parse("2:4"), lam=0) == [Pattern(2, 4)] * 3


@given(outliers=SHARES, lam=st.floats(0, 3))
def test_mixed_n_m_stays_within_half_a_weight_of_its_mean(outliers: list[float], lam: float) -> None:
    kept = [one.kept for one in allocate_n_m(outliers, Pattern.parse("8:16"), lam=lam)]
    assert abs(sum(kept) / len(kept) - 8) <= 0.5 + 1e-9
    assert max(kept) - min(kept) <= lam + 1


def test_mixed_n_m_refuses_a_block_that_keeps_all_or_nothing() -> None:
    # D = 0 0 0 0 10, lambda 2: -0.4 four times and +1.6, rounded 2: the last would be 4:4.
    # It is 3:4 below lambda 1.5 / 0.8 = 1.875.
    with pytest.raises(InputError, match=r"gives block 4 the pattern 4:4, .* below 1\.87\d*\."):
        allocate_n_m([0, 0, 0, 0, 10], Pattern.parse("2:4"))
    assert [one.kept for one in allocate_n_m([0, 0, 0, 0, 10], Pattern.parse("2:4"), lam=1.87)] == [2, 2, 2, 2, 3]
    with pytest.raises(InputError, match=r"gives block 0 the pattern 0:4, .* below 0\.625\."):
        allocate_n_m([0, 10, 10, 10, 10], Pattern.parse("1:4"), lam=1)


def test_bad_settings_are_refused() -> None:
    for lam in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="lam is"):
            allocate([1, 2], 0.5, lam=lam)
        with pytest.raises(InputError, match="lam is"):
            allocate_n_m([1, 2], Pattern.parse("2:4"), lam=lam)
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="sparsity is"):
            allocate([1, 2], sparsity)
    with pytest.raises(InputError, match=r"floor is 0\.5"):
        allocate([1, 2], 0.5, floor=0.5)
    with pytest.raises(InputError, match="at least one block"):
        allocate([], 0.5)
    with pytest.raises(InputError, match="needs an N:M pattern"):
        allocate_n_m([1, 2], Pattern())
    with pytest.raises(NumericalError, match="block 1 is nan"):
        allocate([1, float("nan")], 0.5)


def test_bad_scores_are_refused() -> None:
    for multiple in (0, -1, float("nan")):
        with pytest.raises(InputError, match="multiple M is"):
            outlier_share([torch.ones(3)], multiple)
    with pytest.raises(InputError, match="at least one linear layer"):
        outlier_share([], 5)
    with pytest.raises(NumericalError, match="sum to nan"):
        outlier_share([torch.tensor([1.0, float("nan")])], 5)
