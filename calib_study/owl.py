"""OWL: how much of each block to remove. Blocks with more outlying scores keep more.

All functions are pure; "block" is a decoder block with all its linear layers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from calib_study.errors import InputError, NumericalError
from calib_study.methods import Pattern


def outlier_share(scores_of_block: Sequence[Tensor], multiple: float) -> float:
    """Return how many of a block's scores exceed `multiple` times their mean over the whole block, in per cent.

    Source: OWL (Yin et al., ICML 2024), layerwise outlier distribution; the scores are Wanda's, of the dense model.

    Args:
        scores_of_block: the scores of each linear layer of the block, of any shapes.
        multiple: M, above 0. The paper has 5 for 70 % unstructured, 6 for mixed N:M.

    Raises InputError for no scores or a bad multiple, NumericalError if a score is not finite.

    >>> outlier_share([torch.tensor([1.0, 1.0]), torch.tensor([[1.0, 9.0]])], 2)  # mean 3: one of four is above 6
    25.0
    """
    if not 0 < multiple < math.inf:
        raise InputError(f"OWL's multiple M is {multiple}; it must be a number above 0, for example 5.")
    count = sum(scores.numel() for scores in scores_of_block)
    if count == 0:
        raise InputError("OWL needs the scores of at least one linear layer of the block; it got none.")
    limit = multiple * sum(scores.sum(dtype=torch.float64).item() for scores in scores_of_block) / count
    if not math.isfinite(limit):
        raise NumericalError(f"the {count} scores of a block sum to {limit}: some are not finite.")
    return 100 * sum(int((scores > limit).sum()) for scores in scores_of_block) / count


def allocate(outliers: Sequence[float], sparsity: float, *, lam: float = 0.08, floor: float = 0.01) -> list[float]:
    """Return the sparsity of each block: `sparsity` on average, less where the outlier share is larger.

    The shares are scaled to run from 0 to 2 lam; a block gets `sparsity` plus their mean minus its own. So the blocks
    differ by 2 lam from end to end, and only the order and relative distances of the shares matter.

    Source: OWL (Yin et al., ICML 2024), section 4. Differs where the released code would set a sparsity of 0 or less
    to 0.01 and so miss the mean: that is an error here, as is one too close to 1. Equal shares, or a sparsity of 0,
    give the uniform allocation, where the released code divides 0 by 0.

    Args:
        outliers: the outlier share of each block (any unit).
        sparsity: mean over the blocks, 0 <= sparsity < 1. It is the model's if the blocks are of one size.
        lam: lambda, half the difference between the sparsest and the densest block, 0 or more.
        floor: every block's sparsity lies in [floor, 1 - floor].

    Raises InputError for a bad setting, naming the block and the largest lam that fits; NumericalError if a share is
    not finite.

    >>> [round(s, 4) for s in allocate([1, 2, 5], 0.7)]
    [0.7667, 0.7267, 0.6067]
    """
    _check_lam(lam)
    if not 0 <= sparsity < 1:
        raise InputError(f"OWL's sparsity is {sparsity}; it must be at least 0 and below 1.")
    if not 0 <= floor < 0.5:
        raise InputError(f"OWL's floor is {floor}; it must be at least 0 and below 0.5.")
    spread = [2 * place for place in _centred(outliers)]
    if sparsity == 0 or lam == 0 or not any(spread):
        return [sparsity] * len(spread)
    shares = [sparsity - lam * one for one in spread]
    for block, share in enumerate(shares):
        if not (floor <= share <= 1 - floor and 0 < share < 1):
            largest = min((sparsity - floor if one > 0 else 1 - floor - sparsity) / abs(one) for one in spread if one)
            raise InputError(
                f"OWL's lam {lam} at sparsity {sparsity} gives block {block} a sparsity of {share:.4f}, outside "
                f"[{floor}, {1 - floor}]. For these outlier shares use a lam of at most {_rounded_down(largest)}."
            )
    return shares


def allocate_n_m(outliers: Sequence[float], pattern: Pattern, *, lam: float = 2.0) -> list[Pattern]:
    """Return the pattern of each block: N of the M kept on average, more where the outlier share is larger.

    The shares are scaled to run from 0 to lam, their mean is taken off, and the rest, rounded to a whole number (a half
    to the even one), is added to N. Because of the rounding the mean of N is only nearly that of the pattern.

    Source: OWL (Yin et al., ICML 2024), mixed N:M sparsity. Here N counts the weights kept.

    Args:
        outliers: the outlier share of each block (any unit).
        pattern: N:M, what all blocks have on average.
        lam: lambda, the difference in N between the ends before rounding, 0 or more.

    Raises InputError for a bad setting, or if a block would keep none or all of a group; NumericalError if a share
    is not finite.

    >>> [p.kept for p in allocate_n_m([0, 5, 10], Pattern.parse("4:8"))]
    [3, 4, 5]
    """
    _check_lam(lam)
    if not pattern.structured:
        raise InputError("OWL's mixed N:M allocation needs an N:M pattern, for example 4:8; it got 'unstructured'.")
    places = _centred(outliers)
    kept = [pattern.kept + round(lam * place) for place in places]
    for block, n in enumerate(kept):
        if not 0 < n < pattern.group:
            room = {True: pattern.group - pattern.kept - 0.5, False: pattern.kept - 0.5}  # N up, N down, by rounding
            largest = min(room[place > 0] / abs(place) for place in places if place)
            raise InputError(
                f"OWL's lam {lam} at {pattern.kept}:{pattern.group} gives block {block} the pattern "
                f"{n}:{pattern.group}, which is not 0 < N < M. "
                f"For these outlier shares use a lam below {_rounded_down(largest)}."
            )
    return [Pattern(n, pattern.group) for n in kept]


def _centred(outliers: Sequence[float]) -> list[float]:
    """Return the shares scaled so that the largest is 1 above the smallest, less their mean; 0 if all are equal."""
    if not outliers:
        raise InputError("OWL needs the outlier share of at least one block; it got none.")
    for block, share in enumerate(outliers):
        if not math.isfinite(share):
            raise NumericalError(f"the outlier share of block {block} is {share}.")
    least, width = min(outliers), max(outliers) - min(outliers)
    if width == 0:
        return [0.0] * len(outliers)
    scaled = [(share - least) / width for share in outliers]
    mean = math.fsum(scaled) / len(scaled)
    return [one - mean for one in scaled]


def _check_lam(lam: float) -> None:
    """Raise InputError unless lam is a number of 0 or more."""
    if not 0 <= lam < math.inf:
        raise InputError(f"OWL's lam is {lam}; it must be a number of 0 or more, for example 0.08 (N:M: 2).")


def _rounded_down(value: float) -> float:
    """Return the value cut to four decimals, and 0 if it is negative: what a message may offer as a bound."""
    return max(0.0, math.floor(value * 1e4) / 1e4)
