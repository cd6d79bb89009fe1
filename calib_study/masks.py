"""Masks: from scores to the weights removed. Always an exact count; ties go to the lower column first.

`removed` is a boolean tensor of the weight's shape: True = set to zero.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calib_study.errors import InputError, NumericalError
from calib_study.methods import Group, Pattern


def n_removed(size: int, sparsity: float) -> int:
    """Return how many of `size` weights a sparsity removes: the product rounded down.

    A product that is whole up to rounding error counts as whole: 0.29 * 100 is 28.999999999999996 in binary.

    >>> n_removed(576, 0.6), n_removed(100, 0.29)
    (345, 29)
    """
    return int(size * sparsity + 1e-9)


def lowest_per_row(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` lowest scores of every row.

    Source: Wanda, section 3 (comparison group: one output). Raises NumericalError if a score is NaN.

    Args:
        scores: (n_rows, n_columns).
        count: weights to remove in each row, 0 <= count <= n_columns.
    """
    _check_numbers(scores)
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_lowest(scores, count)[:, None]
    removed = scores <= threshold
    if int(torch.count_nonzero(removed)) > count * len(scores):  # each row has `count` at least
        surplus = removed.sum(1) != count  # rows with ties at the threshold: the later columns stay
        below, tied = scores[surplus] < threshold[surplus], scores[surplus] == threshold[surplus]
        room = count - below.sum(1, keepdim=True)
        removed[surplus] = below | (tied & (tied.cumsum(1) <= room))
    return removed


def _kth_lowest(scores: Tensor, k: int) -> Tensor:
    """Return the k-th lowest value of each row (k = 1: the lowest). numpy's selection is the fastest on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.partition(scores.numpy(), k - 1, axis=1)[:, k - 1].copy())
    return torch.kthvalue(scores, k, dim=1).values


def lowest_n_of_m(scores: Tensor, kept: int, group: int) -> Tensor:
    """Return the mask that removes the `group - kept` lowest scores of every `group` consecutive columns.

    Source: Wanda, section 3.2 (semi-structured). Raises InputError if `group` does not divide the columns.
    """
    n_rows, n_columns = scores.shape
    if n_columns % group:
        raise InputError(f"pattern {kept}:{group} needs a multiple of {group} inputs; the layer has {n_columns}.")
    _check_numbers(scores)
    return lowest_lanes(scores.reshape(-1, group).T, group - kept).T.reshape(n_rows, n_columns)


def lowest_lanes(lanes: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` lowest of each column of (group, n), ties to the lower lane."""
    if lanes.device.type == "cpu":
        array = np.ascontiguousarray(lanes.numpy())
        return torch.from_numpy(_ranks(array, np.zeros(array.shape, np.int16)) < count)
    first: Tensor = _ranks(lanes, torch.zeros_like(lanes, dtype=torch.int16)) < count
    return first


def _ranks(lanes: Any, ranks: Any) -> Any:
    """Return how many of its column come before each entry; both are arrays, or both tensors, `ranks` 0 at first.

    On a CPU numpy does this several times faster than torch: its calls cost less, and there are many short ones.
    """
    for lane in range(len(lanes)):
        ranks[:lane] += lanes[lane] < lanes[:lane]
        ranks[lane + 1 :] += lanes[lane] <= lanes[lane + 1 :]
    return ranks


def _check_numbers(scores: Tensor) -> None:
    """Raise NumericalError if a score is NaN."""
    # one sum is far cheaper than a look at every entry, and a number only if all of them are
    if torch.isnan(scores.sum()) and torch.isnan(scores).any():
        raise NumericalError(f"{int(torch.isnan(scores).sum())} of {scores.numel()} scores are not a number.")


def lowest_mass_per_row(scores: Tensor, sparsity: float) -> Tensor:
    """Return the mask that takes the lowest scores of each row up to one share alpha of the row's sum of scores.

    A weight goes if the scores up to its own, from the lowest, add up to at most alpha of the row's total; alpha is one
    number for all rows. Rows with a few large scores lose more weights than rows with even ones.

    Source: Wanda's released code, the variant with a cumulative sum. Differs in the search: that code halves a
    bracket for alpha, [0, 0.8] from 0.4, until the sparsity of the layer is within 0.001 of what was asked or the
    bracket is narrower than 0.001, so it misses by a little, and by much where alpha would have to exceed 0.8. Here
    alpha is the n-th lowest share of the layer, n = its exact count. A row whose scores are all 0 goes first.

    Args:
        scores: (n_rows, n_columns), none negative.
        sparsity: fraction of all the scores, 0 <= sparsity <= 1; its share in a row varies.

    Raises NumericalError if a score is not finite.

    >>> lowest_mass_per_row(torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 7.0]]), 0.5).long()
    tensor([[1, 0, 0, 0],
            [1, 1, 1, 0]])
    """
    if not torch.isfinite(scores).all():
        raise NumericalError(f"{int((~torch.isfinite(scores)).sum())} of {scores.numel()} scores are not finite.")
    ordered, columns = scores.sort(dim=1, stable=True)
    mass = ordered.cumsum(1, dtype=torch.float64)
    total = mass[:, -1:]
    share = torch.empty_like(mass).scatter_(1, columns, mass / total.where(total > 0, 1.0))
    return lowest_per_row(share.reshape(1, -1), n_removed(scores.numel(), sparsity)).reshape(scores.shape)


def removed_by(scores: Tensor, sparsity: float, pattern: Pattern, group: Group) -> Tensor:
    """Return the mask for a pattern: N:M, or the lowest scores of each row or of the whole layer."""
    if pattern.structured:
        return lowest_n_of_m(scores, pattern.kept, pattern.group)
    if group == "layer":
        return lowest_per_row(scores.reshape(1, -1), n_removed(scores.numel(), sparsity)).reshape(scores.shape)
    return lowest_per_row(scores, n_removed(scores.shape[1], sparsity))
