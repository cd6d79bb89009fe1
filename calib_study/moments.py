"""What pruning methods know of a linear layer's input: sums over calibration tokens, kept for each sequence.

All of it is additive. Statistics of two sets of sequences are those of each, side by side; so norms, means and
variances of any subset or mixture of sequences come from the same numbers without another forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calib_study.errors import NumericalError

# Sums run in float32 over this many tokens, and beyond that in float64, so that they do not depend on the batch.
TOKENS_PER_SUM = 128


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


def moments_of(batches: Sequence[Tensor], *, gram: bool) -> InputMoments:
    """Return the moments of an input seen in batches (n, seq_len, d_in), in order, of any floating dtype."""
    pairs = [_sequence_sums(batch.float()) for batch in batches]
    products = sum((_gram(batch.float()) for batch in batches[1:]), _gram(batches[0].float())) if gram else None
    sums, squares = (torch.cat(column) for column in zip(*pairs, strict=True))
    return InputMoments(sums, squares, batches[0].shape[1], products)


def join(parts: Sequence[InputMoments]) -> InputMoments:
    """Return the moments of several sets of sequences of one length as one."""
    sums, squares = torch.cat([part.sums for part in parts]), torch.cat([part.squares for part in parts])
    grams = [part.gram for part in parts if part.gram is not None]
    gram = sum(grams[1:], grams[0]) if len(grams) == len(parts) else None
    return InputMoments(sums, squares, parts[0].seq_len, gram)


def _sequence_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum and the sum of squares over tokens of each sequence of (n, seq_len, d_in), float64."""
    if x.device.type != "cpu":
        wide = x.double()
        return wide.sum(1), wide.square().sum(1)
    # numpy's einsum is several times faster on a CPU than torch's
    pieces = np.split(x.numpy(), range(TOKENS_PER_SUM, x.shape[1], TOKENS_PER_SUM), axis=1)
    sums = np.sum([piece.sum(axis=1) for piece in pieces], axis=0, dtype=np.float64)
    squares = np.sum([np.einsum("ntc,ntc->nc", piece, piece) for piece in pieces], axis=0, dtype=np.float64)
    return torch.from_numpy(sums), torch.from_numpy(squares)


def _gram(x: Tensor) -> Tensor:
    """Return X^T X of (n, seq_len, d_in), float64 from a float32 product."""
    flat = x.reshape(-1, x.shape[-1])
    if flat.device.type != "cpu":
        return (flat.T @ flat).double()
    array = flat.numpy()
    return torch.from_numpy(array.T @ array).double()  # numpy calls the symmetric routine, twice as fast
