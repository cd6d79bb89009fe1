"""SparseGPT: remove weights column by column and let the columns to the right make up for each removal.

Source: Frantar & Alistarh 2023, algorithm 1. A linear layer Y = X W^T with Gram matrix G = X^T X loses
tr(dW G dW^T) of its output when W changes by dW. All functions are pure. In the column loop the weights lie
transposed, (d_in, d_out): a column of the layer is then one contiguous row of memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from calib_study.errors import InputError, NumericalError
from calib_study.masks import lowest_lanes, lowest_per_row, n_removed
from calib_study.methods import Pattern

# Columns updated one at a time before the rest of their block is, by one matrix product. Changes only the speed.
COLUMNS_AT_A_TIME = 32
# Matrices up to this size are factorised by a library, larger ones by halves. Changes only the speed.
FACTORISED_DIRECTLY = 192


def inverse_factor(gram: Tensor, damping: float, layer: str) -> Tensor:
    """Return the upper triangular U with H^-1 = U^T U, where H is the damped Gram matrix.

    H is `gram` with 1 on the diagonal of dead inputs (those whose diagonal is 0) and damping * mean(diagonal)
    added to every diagonal entry. U_jj^2 is the first diagonal entry of the inverse of H[j:, j:]. The order of
    rows and columns is reversed for a Cholesky factorisation, which gives H = R R^T with R upper, and U = R^-1.

    Source: Frantar & Alistarh 2023, section 3.2; differs in needing one factorisation instead of two and an inverse.

    Args:
        gram: (d_in, d_in), X^T X in any scale. The scale cancels, except that dead inputs count 1 in the mean.
        damping: fraction of the mean diagonal, >= 0.
        layer: name for the message of an error.
    Returns:
        (d_in, d_in), float32, or float64 if `gram` is.
    Raises:
        NumericalError: H is not finite, or not positive definite to working precision.
    """
    hessian = gram.to(torch.float64 if gram.dtype == torch.float64 else torch.float32, copy=True)
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    _check_finite(hessian, "the Gram matrix of its inputs", layer)
    inverse = _inverse_of_cholesky(hessian.flip(0, 1))
    factor = None if inverse is None else inverse.flip(0, 1)
    if factor is None or _is_singular(hessian, factor):
        n_inputs = len(gram)
        raise NumericalError(
            f"{layer}: the Gram matrix of its {n_inputs} inputs with damping {damping:g} is not positive definite. "
            f"Use more calibration tokens (well over {n_inputs}) or a larger damping (0.01 is usual)."
        )
    return factor


def sparsegpt(
    weights: Sequence[Tensor],
    gram: Tensor,
    sparsity: float,
    pattern: Pattern,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    layer: str,
) -> list[tuple[Tensor, Tensor]]:
    """Return the pruned weight and the mask of each linear layer of those that read one input.

    Column i, once some of its weights are removed, spreads the error e = w_removed / U_ii over the later columns
    j > i by W[:, j] -= e U_ij. Columns to the left never change. Scores are |W_ij| / U_jj: unstructured, over all rows
    of one layer times one block of columns, weights as they are when the block is reached; N:M, over every M columns
    of one row, weights as they are when the first of the M is reached.

    Source: Frantar & Alistarh 2023, algorithm 1. Differs from its code in exact counts (there, everything up to and
    including the k-th lowest score goes, so at least k + 1 weights of each block): after each block, n_removed() of
    all the weights up to there are gone. Ties go to the lower column first, and inside a column to the lower row.

    Args:
        weights: each (d_out, d_in), of one d_in and device; only speed depends on their being given together.
        gram: (d_in, d_in), the Gram matrix X^T X of the input, in any scale.
        sparsity: fraction of each layer's weights to remove, in [0, 1]; not used by an N:M pattern.
        damping: see `inverse_factor`.
        block_size: columns that share one threshold; rounded up to whole groups of an N:M pattern, whose
            result does not depend on it.
        layer: name for the message of an error.
    Returns:
        For each weight, the new one in its dtype (computed in float32, or in float64 if all weights are), zero
        where removed and in the columns of dead inputs; and the mask, True = removed.
    Raises:
        InputError: shapes that do not fit, or M does not divide d_in.
        NumericalError: weights or Gram matrix not finite, or the latter singular.
    """
    _check_shapes(weights, gram, pattern, layer)
    dtype = torch.float64 if all(weight.dtype == torch.float64 for weight in weights) else torch.float32
    factor = inverse_factor(gram.to(dtype), damping, layer)
    dead = gram.diagonal() == 0
    columns = torch.cat([weight.detach().to(dtype).T for weight in weights], dim=1).contiguous()  # (d_in, all d_out)
    _check_finite(columns, "its weights", layer)
    columns[dead] = 0
    removed = torch.zeros_like(columns, dtype=torch.bool)
    sizes = [len(weight) for weight in weights]
    width = _whole_groups(block_size, pattern)
    for start in range(0, len(columns), width):
        stop = min(start + width, len(columns))
        block, inner = columns[start:stop], factor[start:stop, start:stop]
        if not pattern.structured:
            scores = (block / inner.diagonal()[:, None]).abs()
            removed[start:stop] = _lowest_in_block(scores, sizes, start, sparsity)
        errors = _sweep_(block, inner, removed[start:stop], pattern)
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    columns.mul_(~removed).add_(0)  # on a CPU six times as fast as masked_fill_; adding 0 makes -0 into 0
    columns[dead] = 0
    _check_finite(columns, "its weights after the update", layer)
    return [
        (new.T.to(weight.dtype).contiguous(), mask.T.contiguous())
        for weight, new, mask in zip(
            weights, columns.split_with_sizes(sizes, 1), removed.split_with_sizes(sizes, 1), strict=True
        )
    ]


def reconstruction_error(weight: Tensor, new_weight: Tensor, gram: Tensor) -> float:
    """Return ||X W^T - X W'^T||^2 = tr((W - W') G (W - W')^T), summed over outputs and over the tokens in G.

    >>> reconstruction_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]]), torch.eye(2) * 5)
    5.0
    """
    change = weight.double() - new_weight.double()
    return float(((change @ gram.double()) * change).sum())


def _sweep_(block: Tensor, factor: Tensor, removed: Tensor, pattern: Pattern) -> Tensor:
    """Update a block's columns in place, left to right; return the errors to spread over the columns after it.

    Removed weights are left as they were when their column was reached: nothing reads them again.

    Args:
        block: (n_columns, n_rows), the transposed weights.
        factor: (n_columns, n_columns), the block's part of U.
        removed: like `block`; the mask, which an N:M pattern fills in on the way.
    Returns:
        (n_columns, n_rows), w / U_ii where removed, else 0.
    """
    errors = torch.empty_like(block)
    pivots = factor.diagonal()[:, None]
    share = removed / pivots  # what a weight's error is to the weight
    rows, shares, found, spread = (_quick(each) for each in (block, share, errors, factor.T.contiguous()))
    step = _whole_groups(COLUMNS_AT_A_TIME, pattern)
    for start in range(0, len(block), step):
        stop = min(start + step, len(block))
        for first in range(start, stop, pattern.group or step):
            last = min(first + (pattern.group or step), stop)
            if first > start:
                rows[first:last] -= spread[first:last, start:first] @ found[start:first]
            if pattern.structured:
                lanes = slice(first, last)
                removed[lanes] = lowest_lanes((block[lanes] / pivots[lanes]).abs_(), pattern.group - pattern.kept)
                torch.div(removed[lanes], pivots[lanes], out=share[lanes])
            for i in range(first, last):
                if i > first:
                    rows[i] -= spread[i, first:i] @ found[first:i]
                found[i] = rows[i] * shares[i]
        block[stop:].addmm_(factor[start:stop, stop:].T, errors[start:stop], alpha=-1)
    return errors


def _quick(tensor: Tensor) -> Any:
    """Return a tensor on the CPU as a numpy array, which shares its memory and whose short calls cost far less."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _lowest_in_block(scores: Tensor, sizes: list[int], start: int, sparsity: float) -> Tensor:
    """Return the mask of a block of columns, (n_columns, all d_out), each layer's rows by themselves."""
    n_columns = len(scores)
    masks = []
    for part, n_rows in zip(scores.split_with_sizes(sizes, 1), sizes, strict=True):
        count = n_removed(n_rows * (start + n_columns), sparsity) - n_removed(n_rows * start, sparsity)
        masks.append(lowest_per_row(part.reshape(1, -1), count).reshape(n_columns, n_rows))
    return torch.cat(masks, 1)


def _is_singular(hessian: Tensor, factor: Tensor) -> bool:
    """Return whether H is singular up to rounding, which a Cholesky factorisation may pass over by luck.

    That is when its smallest eigenvalue, by a step of inverse iteration from the column of H^-1 with the largest
    diagonal, is below one rounding of its trace. With damping d it cannot be where d > d_in * epsilon.
    """
    column = factor.T @ factor[:, factor.square().sum(0).argmax()]
    inverse_eigenvalue = (factor.T @ (factor @ (column / column.norm()))).norm()
    return bool(inverse_eigenvalue * hessian.trace() * torch.finfo(hessian.dtype).eps > 1)


def _inverse_of_cholesky(matrix: Tensor) -> Tensor | None:
    """Return L^-1 of a symmetric matrix L L^T, of which the lower triangle is read; None if a pivot is not positive.

    By halves, so that nearly all of it is matrix products: L21 = A21 L11^-T, L22 L22^T = A22 - L21 L21^T, and the lower
    left part of the inverse is -L22^-1 L21 L11^-1.
    """
    size, half = len(matrix), len(matrix) // 2
    if size <= FACTORISED_DIRECTLY:
        lower, first_bad = torch.linalg.cholesky_ex(matrix)
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False) if int(first_bad) == 0 else None
    first = _inverse_of_cholesky(matrix[:half, :half])
    if first is None:
        return None
    across = matrix[half:, :half] @ first.T
    last = _inverse_of_cholesky(torch.addmm(matrix[half:, half:], across, across.T, alpha=-1))
    if last is None:
        return None
    inverse = matrix.new_zeros(size, size)
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = last @ (across @ first).neg_()
    return inverse


def _whole_groups(width: int, pattern: Pattern) -> int:
    """Return `width` rounded up to a multiple of the pattern's group: all columns of one are chosen at once."""
    return -(-width // pattern.group) * pattern.group if pattern.structured else width


def _check_shapes(weights: Sequence[Tensor], gram: Tensor, pattern: Pattern, layer: str) -> None:
    d_in = len(gram)
    shapes = [tuple(weight.shape) for weight in weights]
    if tuple(gram.shape) != (d_in, d_in) or any(len(shape) != 2 or shape[1] != d_in for shape in shapes):
        raise InputError(
            f"{layer}: weights {shapes} and Gram matrix {tuple(gram.shape)} do not fit; "
            f"(d_out, d_in) and (d_in, d_in) are needed."
        )
    if pattern.structured and d_in % pattern.group:
        raise InputError(
            f"{layer}: pattern {pattern.kept}:{pattern.group} needs a multiple of {pattern.group} inputs; "
            f"the layer has {d_in}."
        )


def _check_finite(values: Tensor, what: str, layer: str) -> None:
    # one sum is far cheaper than a look at every entry, and finite only if all of them are
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        bad = int((~torch.isfinite(values)).sum())
        raise NumericalError(
            f"{layer}: {what}: {bad} of {values.numel()} entries are not finite numbers. "
            "Check the calibration text and the model's weights, or run the model in float32."
        )
