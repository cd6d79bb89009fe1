"""Moments of an input: by hand, against float64, whatever the batches, the panels and the dtype."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from calib_study import moments
from calib_study.errors import NumericalError
from calib_study.moments import InputMoments, MomentsSum

# Relative to the norms of the features concerned: Gram matrices of the real model's inputs are within 5e-7.
ROUNDING = 1e-6
# A product that oneDNN adds up in one float32 sum of 393 terms: 1.34e-6 was measured, with torch's default 2e-7.
PRODUCT_ROUNDING = 2e-6


def inputs(n: int, seq_len: int, d_in: int, seed: int = 0) -> Tensor:
    """Features of very different sizes, with means and correlations, as a model's are; float32."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, seq_len, d_in, generator=generator)
    x = x + 0.5 * x.roll(1, 2) + torch.randn(d_in, generator=generator)
    return x * torch.logspace(-2, 2, d_in)


def moments_of(batches: Sequence[Tensor], *, gram: bool) -> InputMoments:
    found = MomentsSum(gram=gram)
    for batch in batches:
        found.add(batch)
    assert found.n_batches == len(batches)
    return found.total()


def brute_force(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums and squares of each sequence, and X^T X, in float64."""
    wide = x.double()
    flat = wide.reshape(-1, x.shape[2])
    return wide.sum(1), wide.square().sum(1), flat.T @ flat


def assert_within_rounding(found: InputMoments, x: Tensor) -> None:
    sums, squares, gram = brute_force(x)
    norms = squares.sum(0).sqrt()
    of_sequence = squares.sqrt() * x.shape[1] ** 0.5  # |sum| is at most that, by Cauchy and Schwarz
    assert found.gram is not None
    assert_close(found.sums / of_sequence, sums / of_sequence, rtol=0, atol=ROUNDING)
    assert_close(found.squares, squares, rtol=ROUNDING, atol=0)
    scale = norms[:, None] * norms
    assert_close(found.gram / scale, gram / scale, rtol=0, atol=PRODUCT_ROUNDING)


def test_moments_by_hand() -> None:
    # Sequences [[1, 2], [3, 0]] and [[0, 1], [2, -1]]: sums 4 2 | 2 0, squares 10 4 | 4 2, over all tokens 14 6.
    # X^T X off the diagonal: 1*2 + 3*0 + 0*1 + 2*-1 = 0. Means 6/4 2/4.
    # Variances inside the sequences: 10/2 - 2^2 = 1, 4/2 - 1^2 = 1 | 4/2 - 1^2 = 1, 2/2 - 0 = 1; on average 1 1.
    x = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [2.0, -1.0]]])
    found = moments_of([x], gram=True)
    assert found.sums.tolist() == [[4, 2], [2, 0]] and found.squares.tolist() == [[10, 4], [4, 2]]
    assert found.gram is not None and found.gram.tolist() == [[14, 0], [0, 6]]
    assert found.n_tokens == 4 and found.mean().tolist() == [1.5, 0.5] and found.variance().tolist() == [1, 1]
    assert_close(found.norms(), torch.tensor([14.0, 6.0]).sqrt())
    assert moments_of([x], gram=False).gram is None


# 131 tokens are more than one float32 sum, 293 features more than two panels.
@pytest.mark.parametrize(("n", "seq_len", "d_in"), [(3, 131, 293), (1, 5, 7), (5, 257, 144)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_moments_are_those_of_float64_for_inputs_of_any_dtype(
    dtype: torch.dtype, n: int, seq_len: int, d_in: int
) -> None:
    x = inputs(n, seq_len, d_in).to(dtype)
    found = moments_of([x], gram=True)
    assert found.sums.dtype == found.squares.dtype == torch.float64
    assert found.gram is not None and found.gram.dtype == torch.float64
    assert torch.equal(found.gram, found.gram.T)
    assert_within_rounding(found, x)
    if dtype == torch.float64:
        assert_close(found.gram, brute_force(x)[2], rtol=1e-12, atol=1e-12)


def test_bfloat16_inputs_are_not_summed_in_bfloat16() -> None:
    # There 256 + 1 = 256: a sum of 1,000 ones would stop at 256.
    found = moments_of([torch.ones(1, 1000, 3, dtype=torch.bfloat16)], gram=True)
    assert found.sums.eq(1000).all() and found.squares.eq(1000).all() and found.gram is not None
    assert found.gram.eq(1000).all()


def test_squares_too_large_for_float16_are_finite() -> None:
    found = moments_of([torch.full((1, 7, 3), 300.0, dtype=torch.float16)], gram=True)  # 300^2 is above 65,504
    assert found.squares.eq(7 * 300**2).all() and found.gram is not None and found.gram.eq(7 * 300**2).all()


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 10), max_size=10),
    rows=st.sampled_from([1, 13, 100, 8192]),
    columns=st.sampled_from([1, 11, 23, 144]),
    seed=st.integers(0, 99),
)
def test_neither_batches_nor_panels_matter(cuts: set[int], rows: int, columns: int, seed: int) -> None:
    x = inputs(11, 19, 23, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "ROWS_PER_PRODUCT", rows)
        patch.setattr(moments, "COLUMNS_PER_PANEL", columns)
        assert_within_rounding(moments_of(x.tensor_split(sorted(cuts)), gram=True), x)


def test_a_sum_of_many_rows_keeps_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of one sign: the sum of 20,000 rows is about 10^5 times an entry, which float32 then adds to two digits.
    x = torch.rand(20000, 1, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    monkeypatch.setattr(moments, "ROWS_PER_PRODUCT", 1000)
    assert_within_rounding(moments_of(x.split(1000), gram=True), x)


def test_inputs_that_are_not_finite_are_named() -> None:
    x = inputs(2, 5, 7)
    moments_of([x], gram=False).check_finite("model.layers.3.mlp.down_proj")
    for bad in (float("nan"), float("inf"), 1e30):  # 1e30 squared is beyond float32
        x[1, 3, 4] = bad
        with pytest.raises(NumericalError, match=r"model\.layers\.3\.mlp\.down_proj: its calibration inputs are not"):
            moments_of([x], gram=False).check_finite("model.layers.3.mlp.down_proj")
