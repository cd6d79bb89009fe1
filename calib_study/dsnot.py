"""DSnoT: refine any mask without training, by exchanging removed weights for kept ones in each output row.

Removing weights shifts the mean of an output; each cycle gives back one removed weight that undoes the shift and
takes away one of little worth. All functions are pure; `removed` is True where a weight is set to zero.
"""

import torch
from torch import Tensor

from calib_study.errors import InputError, NumericalError
from calib_study.masks import lowest_per_row
from calib_study.methods import Pattern


def output_shift(weight: Tensor, removed: Tensor, input_mean: Tensor) -> Tensor:
    """Return, for each output, its mean over tokens before minus after removal: the sum of W_ij * mean(x_j) removed.

    Source: DSnoT (Zhang et al., ICLR 2024), the expected reconstruction error of a row. Shape (d_out,), in units of
    the output per token.

    >>> output_shift(torch.tensor([[3.0, -1.0, 2.0]]), torch.tensor([[True, True, False]]), torch.ones(3)).item()
    2.0
    """
    return (_mean_terms(weight, input_mean) * removed).sum(1, dtype=torch.float64)


def _mean_terms(weight: Tensor, input_mean: Tensor) -> Tensor:
    """Return what each weight adds to the mean of its output, (d_out, d_in), in float32 or wider."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().to(dtype) * input_mean.to(dtype)


def dsnot(
    weight: Tensor,
    removed: Tensor,
    score: Tensor,
    input_mean: Tensor,
    input_variance: Tensor,
    *,
    pattern: Pattern,
    max_cycles: int = 50,
    threshold: float = 0.1,
    same_sign: bool | None = None,
    variance_power: float = 1.0,
    tokens_per_sum: int = 1,
) -> Tensor:
    """Return the refined mask: as many weights removed in every row (N:M: in every group) as in `removed`.

    Let D_ij = W_ij * mean(x_j), and let a row's error be the sum of D over its removed weights. While the error exceeds
    the threshold, a cycle gives back the removed weight whose D has the error's sign and whose |D| / variance^p is the
    largest, and removes a kept one: unstructured, the lowest score among those whose D has the other sign; N:M, the
    lowest score in the group of the weight given back. No weight moves twice.

    Source: DSnoT (Zhang et al., ICLR 2024), algorithm 1 and its released code. Differs in three things:

    - The threshold is a mean shift of the output *per token*. The released code sums over the tokens of a sequence
      before it averages over sequences, so its 0.1 means 0.1 / 2048 per token for sequences of 2,048 tokens, and
      something else for any other length. `tokens_per_sum=seq_len` reproduces that.
    - A row with nothing left to exchange stays as it is. In the released code the pointers run on, into weights that
      were never candidates, and the number removed drifts. A group with nothing left to remove is passed over, at
      the price of the cycle.
    - Ties go to the lower column.

    Args:
        weight: (d_out, d_in).
        removed: (d_out, d_in), the mask to refine, from any method.
        score: (d_out, d_in), the worth of each weight (Wanda's), which chooses the kept weight that goes.
        input_mean: (d_in,), mean of each input feature over tokens.
        input_variance: (d_in,), variance of each input feature. The released code takes it inside each sequence and
            averages over sequences. A feature that never varies comes first.
        pattern: which weights may be exchanged: any two of a row, or two of one N:M group.
        max_cycles: exchanges allowed in a row, 0 or more.
        threshold: rows whose |error| * tokens_per_sum is at most this are left alone; in units of the output.
        same_sign: stop a row for good at the first exchange that would turn its error's sign. With it the |error| of
            an unstructured row never grows; that of an N:M row may, since the weight that goes is not chosen by sign.
            None is the released code's practice: off for unstructured, on for N:M.
        variance_power: p; 0 ignores the variance.
        tokens_per_sum: tokens over which the original sums the error; see above.

    Raises InputError for shapes or settings that do not fit, or a mask that removes nothing; NumericalError for values
    that are not finite.

    >>> weight, ones = torch.tensor([[3.0, -1.0, -2.0, 1.0]]), torch.ones(4)
    >>> first = torch.tensor([[True, True, False, False]])
    >>> dsnot(weight, first, weight.abs(), ones, ones, pattern=Pattern(), max_cycles=1).tolist()
    [[False, True, True, False]]
    """
    _check_shapes(weight, removed, score, input_mean, input_variance, pattern)
    _check_settings(max_cycles, threshold, variance_power, tokens_per_sum)
    terms = _mean_terms(weight, input_mean)
    for name, values in (("scores", score), ("weights times input means", terms), ("variances", input_variance)):
        if not torch.isfinite(values).all():
            raise NumericalError(f"{int((~torch.isfinite(values)).sum())} of {values.numel()} {name} are not finite.")
    error = output_shift(weight, removed, input_mean)
    limit = threshold / tokens_per_sum
    rows = (error.abs() > limit).nonzero().flatten()
    refined = removed.clone()
    if max_cycles and len(rows):
        keep_sign = pattern.structured if same_sign is None else same_sign
        gain = terms[rows].abs() / input_variance.to(terms.dtype) ** variance_power
        worth = score[rows].to(terms.dtype)
        refined[rows] = _exchange(
            removed[rows], terms[rows], gain, worth, error[rows], pattern, max_cycles, limit, keep_sign
        )
    return refined


def _exchange(
    removed: Tensor,
    terms: Tensor,
    gain: Tensor,
    score: Tensor,
    error: Tensor,
    pattern: Pattern,
    max_cycles: int,
    limit: float,
    same_sign: bool,
) -> Tensor:
    """Return the mask after the cycles, all rows at once; the arguments are those of `dsnot`, D = terms."""
    up, down = terms > 0, terms < 0
    growing = _Queues(-gain, (removed & up, removed & down), max_cycles)
    shrinking: _Queues | _Groups
    if pattern.structured:
        shrinking = _Groups(score, ~removed, pattern.group)
    else:
        shrinking = _Queues(score, (~removed & down, ~removed & up), max_cycles)
    result, row = removed.clone(), torch.arange(len(removed), device=removed.device)
    stopped = torch.zeros_like(error, dtype=torch.bool)
    for _ in range(max_cycles):
        side = (error < 0).long()
        grown, growable = growing.take(side)
        stopped |= ~growable | (error.abs() <= limit)
        if stopped.all():
            break
        gone, removable = shrinking.take(side, grown)
        after = error + terms[row, gone] - terms[row, grown]
        swap = removable & ~stopped
        if same_sign:
            stopped |= swap & (after * error <= 0)
            swap &= ~stopped
        result[row[swap], grown[swap]] = False
        result[row[swap], gone[swap]] = True
        error = torch.where(swap, after, error)
    return result


class _Queues:
    """Two queues of columns for each row, lowest key first: side 0 serves a positive error, side 1 a negative one."""

    def __init__(self, keys: Tensor, eligible: tuple[Tensor, Tensor], max_cycles: int) -> None:
        depth = min(max_cycles, keys.shape[1])  # one column at most is taken in a cycle
        self._columns = torch.stack([_first_columns(keys.masked_fill(~one, torch.inf), depth) for one in eligible])
        self._length = torch.stack([one.sum(1) for one in eligible]).clamp(max=depth)
        self._taken = torch.zeros_like(self._length)
        self._row = torch.arange(keys.shape[0], device=keys.device)

    def take(self, side: Tensor, _grown: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the next column of each row's queue, and whether there was one."""
        position = self._taken[side, self._row]
        self._taken[side, self._row] += 1
        last = self._columns.shape[2] - 1
        return self._columns[side, self._row, position.clamp(max=last)], position < self._length[side, self._row]


class _Groups:
    """The kept weights of each N:M group, to be taken lowest score first."""

    def __init__(self, score: Tensor, kept: Tensor, group: int) -> None:
        self._left = score.masked_fill(~kept, torch.inf).reshape(len(score), -1, group)
        self._row = torch.arange(len(score), device=score.device)

    def take(self, _side: Tensor, grown: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each row, the next column in the group of column `grown`, and whether there was one."""
        size = self._left.shape[2]
        group = grown // size
        value, lane = self._left[self._row, group].min(1)
        self._left[self._row, group, lane] = torch.inf
        return group * size + lane, value < torch.inf


def _first_columns(keys: Tensor, count: int) -> Tensor:
    """Return the columns of the `count` lowest keys of each row, lowest first, ties by column: (n_rows, count)."""
    columns = lowest_per_row(keys, count).nonzero()[:, 1].reshape(len(keys), count)
    return columns.gather(1, keys.gather(1, columns).argsort(dim=1, stable=True))


def _check_shapes(
    weight: Tensor, removed: Tensor, score: Tensor, input_mean: Tensor, input_variance: Tensor, pattern: Pattern
) -> None:
    """Raise InputError unless the shapes agree, the pattern's groups fit, and some weight is removed."""
    if not weight.shape == removed.shape == score.shape or removed.dtype != torch.bool:
        raise InputError(
            f"DSnoT needs a weight, a boolean mask and scores of one shape; got {tuple(weight.shape)}, "
            f"{tuple(removed.shape)} ({removed.dtype}) and {tuple(score.shape)}."
        )
    d_in = weight.shape[1]
    if not input_mean.shape == input_variance.shape == (d_in,):
        raise InputError(
            f"DSnoT needs one mean and one variance for each of {d_in} inputs; got shapes "
            f"{tuple(input_mean.shape)} and {tuple(input_variance.shape)}."
        )
    if pattern.structured and d_in % pattern.group:
        raise InputError(
            f"pattern {pattern.kept}:{pattern.group} needs a multiple of {pattern.group} inputs; the layer has {d_in}."
        )
    if not removed.any():
        raise InputError("DSnoT refines a mask, and this one removes nothing: give it one from wanda or magnitude.")


def _check_settings(max_cycles: int, threshold: float, variance_power: float, tokens_per_sum: int) -> None:
    """Raise InputError for a setting out of its range."""
    for name, value, least in (
        ("max_cycles", max_cycles, 0),
        ("threshold", threshold, 0),
        ("variance_power", variance_power, 0),
        ("tokens_per_sum", tokens_per_sum, 1),
    ):
        if not value >= least:
            raise InputError(f"DSnoT's {name} is {value}; it must be {least} or more.")
