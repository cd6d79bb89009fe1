"""What pruning methods know of a linear layer's input: sums over calibration tokens, kept for each sequence.

All of it is additive. Statistics of two sets of sequences are those of each, side by side; so norms, means and
variances of any subset or mixture of sequences come from the same numbers without another forward.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calib_study.errors import NumericalError

# Sums run in float32 over this many tokens, and beyond that in float64, so that they do not depend on the batch.
TOKENS_PER_SUM = 128
# The same for the products of two features, of which one more in float64 costs as much as hundreds of tokens do.
ROWS_PER_PRODUCT = 8192
# Panels of a Gram matrix: narrower ones waste less below the diagonal, wider ones multiply faster.
COLUMNS_PER_PANEL = 144


@dataclass(frozen=True)
class InputMoments:
    """Sums over the tokens of each calibration sequence, of one linear input.

    Attributes:
        sums: (n_samples, d_in) float64, the sum of each feature over the sequence's tokens.
        squares: (n_samples, d_in) float64, the sum of its squares.
        seq_len: tokens in a sequence.
        gram: (d_in, d_in) float64, X^T X over all tokens; None where no method asked for it.
    """

    sums: Tensor
    squares: Tensor
    seq_len: int
    gram: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens summed over."""
        return len(self.sums) * self.seq_len

    def norms(self) -> Tensor:
        """Return ||X_j||_2 over all tokens, (d_in,) float32. Source: Wanda, equation 1."""
        return self.squares.sum(0).sqrt().float()

    def mean(self) -> Tensor:
        """Return the mean of each feature over all tokens, (d_in,) float64."""
        return self.sums.sum(0) / self.n_tokens

    def variance(self) -> Tensor:
        """Return the population variance within a sequence, averaged over sequences, (d_in,) float64.

        Source: DSnoT's code, whose variance has no term between sequences.
        """
        within = self.squares / self.seq_len - (self.sums / self.seq_len).square()
        return within.clamp(min=0).mean(0)

    def check_finite(self, layer: str) -> None:
        """Raise NumericalError naming the layer if the activations were not all finite."""
        if not torch.isfinite(self.squares).all():
            raise NumericalError(
                f"{layer}: its calibration inputs are not all finite. Check the model's weights, or use float32."
            )


class MomentsSum:
    """The moments of one input, added up batch by batch.

    Sums are taken in float32, or in the input's dtype where that is wider, over at most TOKENS_PER_SUM tokens or
    ROWS_PER_PRODUCT rows, and beyond that in float64. So no batch size changes them by more than rounding.

    Args:
        gram: whether the Gram matrix is wanted too.
    """

    def __init__(self, *, gram: bool) -> None:
        self.n_batches = 0
        self._seq_len = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._gram = _GramSum() if gram else None

    def add(self, batch: Tensor) -> None:
        """Add an input (n, seq_len, d_in) of any floating dtype."""
        x = batch.to(torch.promote_types(batch.dtype, torch.float32))
        self.n_batches += 1
        self._seq_len = x.shape[1]
        self._pairs.append(_sequence_sums(x))
        if self._gram is not None:
            self._gram.add(x.reshape(-1, x.shape[-1]))

    def total(self) -> InputMoments:
        """Return the moments of all batches so far, sequences in the order they came."""
        sums, squares = (torch.cat(column) for column in zip(*self._pairs, strict=True))
        return InputMoments(sums, squares, self._seq_len, None if self._gram is None else self._gram.total())


class _GramSum:
    """X^T X, added up batch by batch. Only panels on and above the diagonal are multiplied, for it is symmetric."""

    def __init__(self) -> None:
        self._partial: Tensor | None = None  # float32, at most ROWS_PER_PRODUCT rows
        self._total: Tensor | None = None  # float64, all rows before those
        self._n_rows = 0

    def add(self, rows: Tensor) -> None:
        """Add the products of rows (n_rows, d_in)."""
        for some in rows.split(ROWS_PER_PRODUCT):  # type: ignore[no-untyped-call]
            if self._n_rows + len(some) > ROWS_PER_PRODUCT:
                self._flush()
            if self._partial is None:
                self._partial = some.new_zeros(some.shape[1], some.shape[1])
            for panel in _panels(self._partial):
                self._partial[panel, panel.start :].addmm_(some[:, panel].T, some[:, panel.start :])
            self._n_rows += len(some)

    def total(self) -> Tensor:
        """Return the whole matrix in float64."""
        self._flush()
        assert self._total is not None
        for panel in _panels(self._total):
            corner = self._total[panel, panel]
            self._total[panel, panel] = corner.triu() + corner.triu(1).T  # equal already, but for rounding
            self._total[panel.stop :, panel] = self._total[panel, panel.stop :].T
        return self._total

    def _flush(self) -> None:
        """Move the partial sums to the total."""
        if self._partial is not None:
            self._total = self._partial.double() if self._total is None else self._total.add_(self._partial)
        self._partial, self._n_rows = None, 0


def _panels(square: Tensor) -> list[slice]:
    """Return the column ranges in which a Gram matrix is computed."""
    size = len(square)
    return [slice(start, min(start + COLUMNS_PER_PANEL, size)) for start in range(0, size, COLUMNS_PER_PANEL)]


def _sequence_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum and the sum of squares over tokens of each sequence of (n, seq_len, d_in), float64."""
    if x.device.type != "cpu":
        wide = x.double()
        return wide.sum(1), wide.square().sum(1)
    # numpy's einsum is several times faster on a CPU than torch's
    pieces = np.split(x.numpy(), range(TOKENS_PER_SUM, x.shape[1], TOKENS_PER_SUM), axis=1)
    sums = np.sum([np.einsum("ntc->nc", piece) for piece in pieces], axis=0, dtype=np.float64)
    squares = np.sum([np.einsum("ntc,ntc->nc", piece, piece) for piece in pieces], axis=0, dtype=np.float64)
    return torch.from_numpy(sums), torch.from_numpy(squares)
