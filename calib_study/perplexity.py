"""Perplexity on held-out text: how surprised the model is, named by text, window length and tokens scored.

Windows may be of one length, or documents of unequal lengths padded to the longest (`padded`) with a mask of the
tokens that are scored. Perplexity depends on the tokenizer; bits per byte do not.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from calib_study.errors import InputError, NumericalError
from calib_study.models import next_token_logits
from calib_study.windows import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Windows are scored a few at a time: the logits of 1,024 tokens over 49,152 ids already take 200 MB in float32.
TOKENS_PER_CALL = 1024
LARGEST_NLL = 700.0  # nats; its exponential is about the largest number that a float holds

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class WindowMean:
    """A mean over windows, its standard error over windows (0 for a single one), and each window's own value."""

    value: float
    stderr: float
    by_window: tuple[float, ...]


@dataclass(frozen=True)
class Perplexity:
    """Mean negative log-likelihood of held-out tokens, and its exponential.

    Attributes:
        nll: nats per token, the mean over all scored tokens.
        nll_stderr: standard error of `nll` over windows (0 for a single window). It says how far another
            piece of text could move the number; differences between models on the same text are far more exact.
        n_tokens: tokens scored: by default every token of a window but its first, which has no context.
        by_window: the mean of each window, nats per token, in order, so that two models can be compared on
            each piece of text.
        tokens_by_window: how many tokens are scored in each window.
    """

    nll: float
    nll_stderr: float
    n_tokens: int
    by_window: tuple[float, ...]
    tokens_by_window: tuple[int, ...]

    @property
    def value(self) -> float:
        """exp(nll), of the corpus as a whole; dimensionless, 1 is perfect, lower is better."""
        return math.exp(self.nll)

    @property
    def mean_window_perplexity(self) -> WindowMean:
        """The mean of the windows' own perplexities, each exp of its mean; one weight for each, whatever its length.

        Source: the code of Ji et al. (2025) for Alpaca, with one example a window. It is at least the perplexity
        of the corpus when windows are equally long, since exp is convex. Raises NumericalError if a window's is
        too large for a float.
        """
        if max(self.by_window) > LARGEST_NLL:
            raise NumericalError(
                "a window's mean log-likelihood is below -700: its perplexity is too large for a float."
            )
        return mean_over_windows(np.exp(self.by_window), np.ones(len(self.by_window)))


def mean_over_windows(values: Sequence[float] | NDArray[np.float64], sizes: Sequence[int] | NDArray[Any]) -> WindowMean:
    """Return the mean of windows' means, each weighted by its size, with the standard error over windows.

    With equal sizes these are the plain mean and s / sqrt(n). Else the mean is a ratio of two sums, and to first
    order its squared error is n / (n - 1) * sum of (size * (value - mean))^2 / (sum of sizes)^2.
    Source: Cochran, Sampling Techniques (1977), section 6.4, without the correction for a finite population.

    Args:
        values: one mean for each window.
        sizes: how many tokens (or bytes) each is a mean over; above zero.

    >>> mean_over_windows([1.0, 4.0], [2, 1])
    WindowMean(value=2.0, stderr=1.3333333333333333, by_window=(1.0, 4.0))
    """
    n, weights = len(values), np.asarray(sizes, dtype=np.float64)
    by_window = tuple(float(value) for value in values)
    if (weights == weights[0]).all():
        spread = float(np.std(by_window, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
        return WindowMean(float(np.mean(by_window)), spread, by_window)
    mean = float(weights @ by_window / weights.sum())
    squares = float(np.square(weights * (np.asarray(by_window) - mean)).sum())
    return WindowMean(mean, math.sqrt(n / (n - 1) * squares) / float(weights.sum()), by_window)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: Tokens, scored: Mask | None = None) -> Perplexity:
    """Return the perplexity of `model` on windows (n_windows, seq_len) of token ids.

    exp of the mean over scored tokens of -ln p(token | tokens before it in its window), in float32 log-space
    whatever the model's dtype. Raises NumericalError if a log-likelihood is not finite.

    Args:
        scored: (n_windows, seq_len), True where a token is scored; by default everywhere. The first token of a
            window never is. What follows the last scored token, as padding does, has no influence.
    """
    means = np.zeros(len(tokens))
    for batch, logits in forwards(model, tokens, scored):
        for row, index in enumerate(batch.windows):
            means[index] = negative_log_likelihood(batch.predicting(row, logits), batch.targets(row))
    return perplexity_of(means, tokens, scored)


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Return the mean over positions of -ln p(target), in nats, from logits (n, d_vocab) and ids (n)."""
    return functional.cross_entropy(logits.float(), targets).item()


def perplexity_of(means: NDArray[np.float64], tokens: Tokens, scored: Mask | None) -> Perplexity:
    """Return the perplexity that windows' mean negative log-likelihoods make together.

    Raises NumericalError if one is not finite, or the mean is so large that its exponential is not.
    """
    if not np.isfinite(means).all() or np.mean(means) > LARGEST_NLL:
        raise NumericalError("the model's log-likelihoods are not finite, or below -700; its weights may be damaged.")
    counts = scored_mask(tokens, scored).sum(1)
    mean = mean_over_windows(means, counts)
    return Perplexity(mean.value, mean.stderr, int(counts.sum()), mean.by_window, tuple(counts.tolist()))


# --- windows through the model ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Windows that go through the model in one call.

    Attributes:
        windows: their indices among all windows.
        tokens: ids (n, length), cut after the last scored token.
        scored: (n, length), True where a token is scored; on the CPU.
    """

    windows: list[int]
    tokens: Tensor
    scored: Tensor

    def predicting(self, row: int, outputs: Tensor) -> Tensor:
        """Return, of outputs (n, length, width), a window's (n_scored, width): those just before its scored tokens."""
        return self._chosen(row, outputs[row, :-1])

    def targets(self, row: int) -> Tensor:
        """Return the ids of a window's scored tokens."""
        return self._chosen(row, self.tokens[row, 1:])

    def _chosen(self, row: int, values: Tensor) -> Tensor:
        chosen = self.scored[row, 1:]
        return values if chosen.all() else values[chosen.to(values.device)]


def forwards(model: PreTrainedModel, tokens: Tokens, scored: Mask | None) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches of windows, longest windows first, each with its logits (n, length, d_vocab) from one forward."""
    mask = scored_mask(tokens, scored)
    lengths = tokens.shape[1] - mask[:, ::-1].argmax(1)
    order = np.argsort(-lengths, kind="stable")  # windows of one length stay in their order
    ids = torch.from_numpy(tokens).to(model.device)
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        windows = order[start : start + max(1, TOKENS_PER_CALL // longest)]
        batch = Batch(windows.tolist(), ids[windows, :longest], torch.from_numpy(mask[windows, :longest]))
        yield batch, next_token_logits(model, batch.tokens)
        start += len(windows)


def scored_mask(tokens: Tokens, scored: Mask | None) -> Mask:
    """Return (n_windows, seq_len), True where a token is scored, never for the first of a window.

    Raises InputError if the shapes differ, or a window has no token to score.
    """
    mask = np.ones(tokens.shape, np.bool_) if scored is None else scored.astype(np.bool_)
    if mask.shape != tokens.shape:
        raise InputError(f"the mask of scored tokens has shape {mask.shape}, the windows have {tokens.shape}.")
    mask[:, 0] = False
    if not mask.any(1).all():
        empty = int(np.flatnonzero(~mask.any(1))[0])
        raise InputError(
            f"window {empty} of {len(mask)} has no token to score; the first has no context and is not scored."
        )
    return mask


def padded(documents: Sequence[Tokens], *, seq_len: int) -> tuple[Tokens, Mask]:
    """Return documents as windows (n_documents, longest), and the mask of their tokens: one window for each document.

    Those longer than `seq_len` tokens are cut after it. Padding is id 0, after the document, where it is neither
    scored nor seen. Raises InputError for a document of fewer than two tokens.
    """
    short = [index for index, ids in enumerate(documents) if len(ids) < 2]
    if short or seq_len < 2 or not documents:
        what = (
            f"document {short[0]} has {len(documents[short[0]])}"
            if short
            else f"{len(documents)} documents, {seq_len=}"
        )
        raise InputError(f"a window needs two tokens or more, one of them to score: {what}.")
    cut = [ids[:seq_len] for ids in documents]
    lengths = np.array([len(ids) for ids in cut])
    mask = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(mask.shape, np.int64)
    tokens[mask] = np.concatenate(cut)
    return tokens, mask


# --- bits per byte ----------------------------------------------------------------------------------------


def bits_per_byte(
    score: Perplexity, tokens: Tokens, tokenizer: "PreTrainedTokenizerBase", scored: Mask | None = None
) -> WindowMean:
    """Return total negative log-likelihood / (ln 2 * UTF-8 bytes of the scored tokens' text); lower is better.

    Unlike perplexity it can be compared between tokenizers. `by_window` holds each window's own; the mean weights
    windows by their bytes. Special tokens (end of text) are scored but are no text: they count 0 bytes.

    Args:
        score: the perplexity of a model on these tokens, with this mask.

    Raises InputError if the score is of other tokens, or a window has no text.
    """
    mask = scored_mask(tokens, scored)
    if score.tokens_by_window != tuple(mask.sum(1).tolist()):
        raise InputError(f"the score is of {score.n_tokens} tokens, but {int(mask.sum())} are given (or others).")
    n_bytes = scored_bytes(tokens, tokenizer, scored)
    if not n_bytes.all():
        raise InputError(
            f"window {int(np.flatnonzero(n_bytes == 0)[0])} decodes to no text: bits per byte are not defined."
        )
    bits = np.multiply(score.by_window, score.tokens_by_window) / math.log(2)
    return mean_over_windows(bits / n_bytes, n_bytes)


def scored_bytes(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase", scored: Mask | None = None) -> NDArray[np.int64]:
    """Return, for each window, how many UTF-8 bytes its scored tokens stand for.

    For byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) it is exact: each character of a token is one byte, even
    where a window begins or ends inside a character. For other tokenizers it is what the scored tokens add to
    the decoded window, which is inexact, by up to 3 bytes, only at a cut inside a character.
    """
    mask = scored_mask(tokens, scored)
    table = _bytes_of_tokens(tokenizer)
    if table is not None:
        return np.asarray((table[tokens] * mask).sum(1))
    return np.array([_added_bytes(ids.tolist(), chosen, tokenizer) for ids, chosen in zip(tokens, mask, strict=True)])


def _bytes_of_tokens(tokenizer: "PreTrainedTokenizerBase") -> NDArray[np.int64] | None:
    """Return the bytes of every id, 0 for special tokens; None if the tokenizer is not byte-level."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    if "ByteLevel" not in [part["type"] for part in decoder.get("decoders", [decoder]) if part]:
        return None
    vocabulary = tokenizer.get_vocab()
    table = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for text, index in vocabulary.items():
        table[index] = len(text)
    for index, added in tokenizer.added_tokens_decoder.items():
        table[index] = 0 if added.special else len(added.content.encode())
    return table


def _added_bytes(ids: list[int], scored: Mask, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the sum over runs of scored tokens of (bytes decoded up to the run's end - up to its start)."""

    def decoded(end: int) -> int:
        text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return len(str(text).encode())

    borders = np.flatnonzero(np.diff(scored, append=False)) + 1  # where a run starts, and where it ends, in turn
    return sum(decoded(end) - decoded(start) for start, end in zip(borders[::2], borders[1::2], strict=True))
