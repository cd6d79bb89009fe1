"""SparseGPT against the textbook in float64, one row, one column and one inverse at a time; hand values; identities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from calib_study import masks
from calib_study import sparsegpt as solver
from calib_study.errors import InputError, NumericalError
from calib_study.methods import Pattern
from calib_study.sparsegpt import inverse_factor, reconstruction_error, sparsegpt

UNSTRUCTURED = Pattern()
LAYER = "model.layers.3.mlp.down_proj"


def random_weight(d_out: int, d_in: int, seed: int = 0) -> Tensor:
    return torch.randn(d_out, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_gram(d_in: int, n_tokens: int, seed: int = 0) -> Tensor:
    """Correlated inputs, so that the update matters."""
    x, mix = random_weight(n_tokens, d_in, seed + 1000), random_weight(d_in, d_in, seed + 2000)
    x = x @ (mix + 2 * torch.eye(d_in, dtype=torch.float64))
    return x.T @ x


def damped(gram: Tensor, damping: float) -> Tensor:
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def textbook(
    weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern, damping: float, block_size: int
) -> tuple[Tensor, Tensor, float]:
    """Remove w_i and move the later weights by the surgeon's formula, -w_i / [A]_00 [A]_0, A = (H[i:, i:])^-1.

    Returns the weight, the mask and the summed cost w_i^2 / [A]_00 of every removal.
    """
    weight, removed, cost = weight.clone(), torch.zeros(weight.shape, dtype=torch.bool), 0.0
    n_rows, d_in = weight.shape
    hessian = damped(gram, damping)
    inverses = [torch.linalg.inv(hessian[i:, i:]) for i in range(d_in)]

    def score(row: int, column: int) -> float:
        return float(weight[row, column] ** 2 / inverses[column][0, 0])

    for i in range(d_in):
        if pattern.structured and i % pattern.group == 0:
            for row in range(n_rows):
                ranked = sorted((score(row, j), j) for j in range(i, i + pattern.group))
                for _, j in ranked[: pattern.group - pattern.kept]:
                    removed[row, j] = True
        if not pattern.structured and i % block_size == 0:
            end = min(i + block_size, d_in)
            count = masks.n_removed(n_rows * end, sparsity) - masks.n_removed(n_rows * i, sparsity)
            ranked_all = sorted((score(row, j), j, row) for j in range(i, end) for row in range(n_rows))
            for _, j, row in ranked_all[:count]:
                removed[row, j] = True
        for row in range(n_rows):
            if removed[row, i]:
                cost += score(row, i)
                weight[row, i:] -= weight[row, i].clone() / inverses[i][0, 0] * inverses[i][0]
                weight[row, i] = 0
    return weight, removed, cost


def one(weight: Tensor, gram: Tensor, sparsity: float, pattern: Pattern = UNSTRUCTURED, **rest: float) -> tuple:
    return sparsegpt([weight], gram, sparsity, pattern, layer=LAYER, **rest)[0]


@pytest.mark.parametrize("d_out, d_in, block_size", [(7, 47, 128), (5, 47, 11), (3, 53, 31), (11, 13, 1)])
def test_equals_the_textbook_one_inverse_at_a_time(d_out: int, d_in: int, block_size: int) -> None:
    weight, gram = random_weight(d_out, d_in), random_gram(d_in, 101)
    new, removed = one(weight, gram, 0.53, damping=0.01, block_size=block_size)
    expected, gone, cost = textbook(weight, gram, 0.53, UNSTRUCTURED, 0.01, block_size)
    assert torch.equal(removed, gone)
    assert_close(new, expected)
    # the costs of the single removals add up to the whole change of the damped quadratic form
    assert reconstruction_error(weight, new, damped(gram, 0.01)) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("pattern, d_in", [("2:4", 44), ("1:4", 44), ("4:8", 40), ("3:5", 35), ("8:23", 46)])
def test_n_of_m_equals_the_textbook(pattern: str, d_in: int) -> None:
    weight, gram, chosen = random_weight(7, d_in), random_gram(d_in, 101), Pattern.parse(pattern)
    new, removed = one(weight, gram, 0.0, chosen)
    expected, gone, cost = textbook(weight, gram, 0.0, chosen, 0.01, 128)
    assert torch.equal(removed, gone)
    assert_close(new, expected)
    assert reconstruction_error(weight, new, damped(gram, 0.01)) == pytest.approx(cost, rel=1e-9)
    assert (~removed).reshape(7, -1, chosen.group).sum(2).eq(chosen.kept).all()
    assert not new[removed].any()


def test_two_weights_by_hand() -> None:
    # G = [[2, 1], [1, 2]]: G^-1 = [[2, -1], [-1, 2]] / 3, so U_00^2 = 2/3; G[1:, 1:]^-1 = 1/2 = U_11^2.
    # w = [1, 3]: scores 1 / (2/3) = 1.5 and 9 / (1/2) = 18; column 0 goes.
    # w_1 moves by -w_0 * (-1/3) / (2/3) = +1/2, to 3.5. The error is the score:
    # d = [1, -1/2]: 2 * 1 - 2 * 1/2 + 2 * 1/4 = 1.5, against 2 without the update.
    weight, gram = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    factor = inverse_factor(gram, 0.0, LAYER)
    assert_close(factor.diagonal().square(), torch.tensor([2 / 3, 1 / 2]))
    assert_close(factor[0, 1], torch.tensor(-1 / 3 / (2 / 3) ** 0.5))  # U_00 U_01 = -1/3
    new, removed = one(weight, gram, 0.5, damping=0.0)
    assert_close(new, torch.tensor([[0.0, 3.5]]))
    assert removed.tolist() == [[True, False]]
    assert reconstruction_error(weight, new, gram) == pytest.approx(1.5)
    assert reconstruction_error(weight, weight * ~removed, gram) == pytest.approx(2.0)


@pytest.mark.parametrize("d_in", [5, 97, 211, 401])
def test_factor_is_that_of_the_inverse_and_its_diagonal_that_of_the_trailing_inverses(d_in: int) -> None:
    gram = random_gram(d_in, 3 * d_in)
    factor, hessian = inverse_factor(gram, 0.01, LAYER), damped(gram, 0.01)
    assert torch.equal(factor, factor.triu())
    assert_close(factor.T @ factor @ hessian, torch.eye(d_in, dtype=torch.float64))
    for j in (0, 1, d_in // 2, d_in - 1):
        assert_close(factor[j, j].square(), torch.linalg.inv(hessian[j:, j:])[0, 0])
    single = inverse_factor(gram.float(), 0.01, LAYER)
    assert single.dtype == torch.float32
    assert_close(single.double(), factor, rtol=1e-3, atol=1e-4 * float(factor.abs().max()))


def test_with_equal_uncorrelated_inputs_it_is_magnitude_in_each_block_and_moves_nothing() -> None:
    weight, gram = random_weight(7, 33), 3.0 * torch.eye(33, dtype=torch.float64)
    new, removed = one(weight, gram, 0.5, block_size=11)
    assert torch.equal(new, weight * ~removed)
    for start in (0, 11, 22):  # 7 * 11 * 0.5 = 38.5: the cumulative counts are 38, 77, 115
        count = {0: 38, 11: 39, 22: 38}[start]
        block = weight[:, start : start + 11].abs()
        expected = masks.lowest_per_row(block.reshape(1, -1), count).reshape(7, 11)
        assert torch.equal(removed[:, start : start + 11], expected)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_uncorrelated_inputs_move_no_kept_weight(pattern: str) -> None:
    weight, energies = random_weight(5, 24).float(), torch.rand(24, generator=torch.Generator().manual_seed(1)) + 0.1
    new, removed = one(weight, energies.diag(), 0.5, Pattern.parse(pattern))
    assert torch.equal(new, weight * ~removed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_error_lies_between_the_best_for_the_mask_and_no_update(pattern: str, seed: int) -> None:
    weight, gram = random_weight(7, 44, seed), random_gram(44, 97, seed)
    new, removed = one(weight, gram, 0.5, Pattern.parse(pattern))
    best = weight * ~removed
    for row in range(len(weight)):  # least squares: G_kk w' = G_k: w over the kept columns k
        kept = ~removed[row]
        best[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
    optimum, plain = (reconstruction_error(weight, w, gram) for w in (best, weight * ~removed))
    assert optimum < reconstruction_error(weight, new, gram) < plain


def test_error_is_that_of_the_outputs() -> None:
    x, weight, new = random_weight(13, 7, 1), random_weight(5, 7, 2), random_weight(5, 7, 3)
    direct = (x @ weight.T - x @ new.T).square().sum()
    assert reconstruction_error(weight, new, x.T @ x) == pytest.approx(float(direct))


def test_block_size_changes_no_n_of_m_result() -> None:
    weight, gram, pattern = random_weight(7, 44), random_gram(44, 97), Pattern.parse("2:4")
    new, removed = one(weight, gram, 0.5, pattern)
    for block_size in (1, 6, 16, 43):
        other, gone = one(weight, gram, 0.5, pattern, block_size=block_size)
        assert torch.equal(gone, removed)
        assert_close(other, new)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_layers_given_together_come_out_as_each_alone(pattern: str) -> None:
    weights, gram = [random_weight(d_out, 44, d_out) * d_out for d_out in (7, 3, 11)], random_gram(44, 97)
    together = sparsegpt(weights, gram, 0.6, Pattern.parse(pattern), block_size=16, layer=LAYER)
    for weight, (new, removed) in zip(weights, together, strict=True):
        alone, gone = one(weight, gram, 0.6, Pattern.parse(pattern), block_size=16)
        assert torch.equal(removed, gone)
        assert_close(new, alone)
        assert new.is_contiguous() and removed.is_contiguous()


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    d_in=st.integers(1, 37),
    sparsity=st.floats(0, 1),
    block_size=st.integers(1, 40),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_whatever_the_ties(
    rows: list[int], d_in: int, sparsity: float, block_size: int, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randint(1, levels + 1, (d_out, d_in), generator=generator).float() for d_out in rows]
    pruned = sparsegpt(weights, torch.eye(d_in), sparsity, UNSTRUCTURED, block_size=block_size, layer=LAYER)
    for weight, (new, removed) in zip(weights, pruned, strict=True):
        assert removed.sum() == masks.n_removed(weight.numel(), sparsity)
        assert torch.equal(new == 0, removed)
        for stop in range(block_size, d_in, block_size):  # and so up to every block
            assert removed[:, :stop].sum() == masks.n_removed(len(weight) * stop, sparsity)


def test_ties_go_to_the_lower_column_then_to_the_lower_row() -> None:
    removed = one(torch.ones(3, 4), torch.eye(4), 5 / 12)[1]
    assert removed.long().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


@settings(max_examples=40, deadline=None)
@given(kept=st.integers(1, 6), more=st.integers(1, 5), n_groups=st.integers(1, 4), seed=st.integers(0, 99))
def test_uncorrelated_n_of_m_is_the_mask_of_the_magnitudes_ties_included(
    kept: int, more: int, n_groups: int, seed: int
) -> None:
    pattern = Pattern(kept, kept + more)
    d_in = pattern.group * n_groups
    weight = torch.randint(-3, 4, (5, d_in), generator=torch.Generator().manual_seed(seed)).float()
    removed = one(weight, torch.eye(d_in), 0.0, pattern)[1]
    assert torch.equal(removed, masks.lowest_n_of_m(weight.abs(), pattern.kept, pattern.group))


def test_columns_before_the_first_removal_of_a_row_stay_and_later_ones_move() -> None:
    weight, gram = random_weight(7, 31), random_gram(31, 97)
    new, removed = one(weight, gram, 0.1)
    for row in range(7):
        first = int(removed[row].long().argmax())
        assert removed[row, first] and torch.equal(new[row, :first], weight[row, :first])
        assert not torch.isclose(new[row, first + 1 :], weight[row, first + 1 :], rtol=1e-6, atol=0).any()


def test_nothing_goes_at_sparsity_zero_and_everything_at_one() -> None:
    weight, gram = random_weight(5, 13).float(), random_gram(13, 97).float()
    new, removed = one(weight, gram, 0.0)
    assert torch.equal(new, weight) and not removed.any()
    new, removed = one(weight, gram, 1.0)
    assert not new.any() and removed.all()


def test_dead_inputs_lose_their_weights_first_and_move_nothing() -> None:
    weight, gram = random_weight(5, 23), random_gram(23, 97)
    dead = torch.zeros(23, dtype=torch.bool)
    dead[[2, 3, 11]] = True
    gram[dead], gram[:, dead] = 0, 0
    new, removed = one(weight, gram, 0.5)
    assert removed.sum() == 57 and removed[:, dead].all() and not new[:, dead].any()  # 5 * 23 / 2 = 57.5
    without, gone = one(weight * ~dead, gram, 0.5)
    assert torch.equal(removed, gone) and torch.equal(new, without)
    new, removed = one(weight, gram, 0.0)  # no room in the mask: the weights go all the same, they do nothing
    assert not removed.any() and torch.equal(new, weight * ~dead)
    assert not one(weight, torch.zeros(23, 23), 0.2)[0].any()


def test_result_has_the_dtype_of_the_weight_and_the_arguments_are_untouched() -> None:
    weight, gram = random_weight(5, 13).bfloat16(), random_gram(13, 97)
    before = weight.clone(), gram.clone()
    new, removed = one(weight, gram, 0.5)
    assert new.dtype == torch.bfloat16 and removed.dtype == torch.bool
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])
    exact, gone = one(weight.double(), gram, 0.5)  # the same weights, in float64 throughout
    assert torch.equal(removed, gone)
    assert_close(new, exact.bfloat16())
    mixed = sparsegpt([weight, weight.float()], gram, 0.5, UNSTRUCTURED, layer=LAYER)
    assert [each.dtype for each, _ in mixed] == [torch.bfloat16, torch.float32]


def test_scale_of_the_gram_matrix_does_not_matter() -> None:
    weight, gram = random_weight(5, 13), random_gram(13, 97)
    new, removed = one(weight, gram, 0.5)
    other, gone = one(weight, gram / 64, 0.5)
    assert torch.equal(removed, gone)
    assert_close(new, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_tokens", [5, 22])
def test_fewer_tokens_than_inputs_and_no_damping_is_an_error(dtype: torch.dtype, n_tokens: int) -> None:
    for seed in range(10):  # rounding may leave the missing pivots slightly positive: still an error
        gram = random_gram(23, n_tokens, seed).to(dtype)
        with pytest.raises(NumericalError, match=rf"{LAYER}: .* 23 inputs .*more calibration tokens .*larger damping"):
            one(random_weight(3, 23).to(dtype), gram, 0.5, damping=0.0)
        new, _ = one(random_weight(3, 23).to(dtype), gram, 0.5, damping=0.01)
        assert torch.isfinite(new).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_tokens", [23, 390])
def test_a_singular_matrix_of_many_inputs_is_an_error_too(dtype: torch.dtype, n_tokens: int) -> None:
    # 401 inputs are factorised by halves. Rows are taken from the last: with 23 tokens the first half fails already.
    gram = random_gram(401, n_tokens).to(dtype)
    with pytest.raises(NumericalError, match=rf"{LAYER}: .* 401 inputs .*not positive definite"):
        inverse_factor(gram, 0.0, LAYER)
    assert torch.isfinite(inverse_factor(gram, 0.01, LAYER)).all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_columns_at_a_time_change_only_rounding(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = random_weight(7, 44), random_gram(44, 97)
    new, removed = one(weight, gram, 0.5, Pattern.parse(pattern))
    for columns in (1, 5, 16, 44):
        monkeypatch.setattr(solver, "COLUMNS_AT_A_TIME", columns)
        other, gone = one(weight, gram, 0.5, Pattern.parse(pattern))
        assert torch.equal(gone, removed)
        assert_close(other, new)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_errors_with_the_name_of_the_layer(bad: float) -> None:
    weight, gram = random_weight(3, 11), random_gram(11, 97)
    broken = weight.clone()
    broken[1, 2] = bad
    with pytest.raises(NumericalError, match=rf"{LAYER}: its weights: 1 of 33 entries"):
        one(broken, gram, 0.5)
    gram[4, 5] = bad
    with pytest.raises(NumericalError, match=rf"{LAYER}: the Gram matrix of its inputs: 1 of 121 entries"):
        one(weight, gram, 0.5)


def test_shapes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(InputError, match=rf"{LAYER}: weights \[\(3, 11\)\] and Gram matrix \(13, 13\) do not fit"):
        one(random_weight(3, 11), random_gram(13, 97), 0.5)
    with pytest.raises(InputError, match=rf"{LAYER}: pattern 2:4 needs a multiple of 4 inputs; the layer has 11"):
        one(random_weight(3, 11), random_gram(11, 97), 0.5, Pattern.parse("2:4"))
