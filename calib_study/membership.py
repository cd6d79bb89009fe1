"""How a model scores text that it may have been trained on: the membership scores Min-K % and Min-K %++.

A window's score is a mean over the share k of its tokens that look least like training text. Higher means more likely
seen. They compare windows of one length under one model, and tell little of a single window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from calib_study.errors import InputError, NumericalError
from calib_study.models import next_token_logits
from calib_study.windows import Tokens

# Nats. Below it all but about 4e-9 of the probability is on one token, or all tokens are alike: float32 tells no more.
SMALLEST_SD = 1e-3
# Positions scored at once, with a few arrays of 25 MB for 49,152 ids.
POSITIONS_PER_CALL = 128
IMPOSSIBLE = -1e4  # nats: what stands for a logit of -inf where its probability, 0, multiplies it

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class MembershipScores:
    """Scores of each window, (n_windows,) float64, in order; every token of a window counts but the first.

    Attributes:
        nll: mean -ln p(token | tokens before it), nats; lower for text that was seen.
        min_k: mean of the lowest share k of ln p, nats; higher for text that was seen.
        min_k_plus_plus: the same of standardised ln p, dimensionless; higher for text that was seen.
    """

    nll: Scores
    min_k: Scores
    min_k_plus_plus: Scores


@torch.no_grad()
def membership_scores(model: PreTrainedModel, tokens: Tokens, k: float = 0.5, batch_size: int = 8) -> MembershipScores:
    """Return the membership scores of windows (n_windows, seq_len) of token ids, `batch_size` windows a forward.

    Args:
        k: share of a window's tokens, in (0, 1]. Ji et al. (2025) have 0.5.
        batch_size: windows whose logits are in memory at once: 25 MB each for 128 tokens over 49,152 ids.
    Raises InputError for bad arguments, NumericalError naming the window if a token's log-likelihood is not finite.
    """
    _check_share(k)
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2 or batch_size < 1:
        raise InputError(
            f"membership_scores takes windows (n_windows, seq_len), seq_len 2 or more, and a batch_size of 1 or more; "
            f"got shape {tokens.shape} and {batch_size}."
        )
    found = np.empty((3, len(tokens)))
    for start in range(0, len(tokens), batch_size):
        ids = torch.from_numpy(tokens[start : start + batch_size]).to(model.device)
        for row, logits in enumerate(next_token_logits(model, ids)):
            log_p, standardised = _window_scores(logits[:-1], ids[row, 1:])
            if not log_p.isfinite().all():
                raise NumericalError(
                    f"window {start + row}: a token's log-likelihood is not finite; check the weights."
                )
            means = log_p.double().mean(), lowest_mean(log_p, k), lowest_mean(standardised, k)
            found[:, start + row] = [float(mean) for mean in means]
    return MembershipScores(-found[0], found[1], found[2])


def min_k(logits: Tensor, ids: Tensor, k: float = 0.5) -> Tensor:
    """Return the mean of the lowest share k of ln p(token | tokens before it) of each window, in nats.

    Source: Shi et al. (2024), ICLR, Min-K % Prob.

    Args:
        logits: (..., seq_len, d_vocab), as a causal model gives them: those at t are of token t + 1.
        ids: (..., seq_len), 2 tokens or more. k: in (0, 1]; of n tokens it takes floor(k n), at least one.
    Returns: (...) float64. Raises InputError for shapes that do not fit, or a k out of range.
    """
    return _of_windows(logits, ids, k, lambda some, targets: _token_scores(some, targets)[0])


def min_k_plus_plus(logits: Tensor, ids: Tensor, k: float = 0.5) -> Tensor:
    """Return the mean of the lowest share k of (ln p(token) - mu) / sigma of each window, dimensionless.

    mu and sigma are mean and standard deviation of ln p under p itself, over the vocabulary at that position: how the
    token compares with what the model would draw there. Computed from logits less their largest, which standardising
    removes again, so that nothing cancels where one token has nearly all probability. There sigma goes to 0, and
    the ratio of a token that came all the same to minus infinity: sigma is held at SMALLEST_SD = 0.001 nats or
    more. Where all tokens are alike, or the certain one came, the ratio is 0.
    Source: Zhang et al. (2024), arXiv:2404.02936, Min-K %++. Differs from the released code, which holds sigma at
    nothing, and takes it from the mean of squares less the square of the mean.

    Args, returns and raises as `min_k`.
    """
    return _of_windows(logits, ids, k, lambda some, targets: _token_scores(some, targets)[1])


def lowest_mean(values: Tensor, k: float) -> Tensor:
    """Return the mean of the floor(k n), at least one, lowest of n values along the last axis, in float64.

    >>> lowest_mean(torch.tensor([4.0, 1.0, 2.0]), 0.7)
    tensor(1.5000, dtype=torch.float64)
    """
    _check_share(k)
    count = max(1, math.floor(k * values.shape[-1] + 1e-9))  # 0.29 * 100 is a little below 29
    return values.double().topk(count, dim=-1, largest=False, sorted=False).values.mean(-1)


def _check_share(k: float) -> None:
    if not 0 < k <= 1:
        raise InputError(f"k is a share of a window's tokens in (0, 1], for example 0.5; got {k}.")


def _of_windows(logits: Tensor, ids: Tensor, k: float, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    _check_share(k)
    if logits.shape[:-1] != ids.shape or ids.ndim < 1 or ids.shape[-1] < 2:
        raise InputError(
            f"membership scores take logits (..., seq_len, d_vocab) and ids (..., seq_len), seq_len 2 or more; "
            f"got {tuple(logits.shape)} and {tuple(ids.shape)}."
        )
    return lowest_mean(score(logits[..., :-1, :], ids[..., 1:]), k)


def _window_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return `_token_scores` of one window, a few positions at a time."""
    parts = [slice(start, start + POSITIONS_PER_CALL) for start in range(0, len(targets), POSITIONS_PER_CALL)]
    log_p, standardised = zip(*(_token_scores(logits[part], targets[part]) for part in parts), strict=True)
    return torch.cat(log_p), torch.cat(standardised)


def _token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return ln p and (ln p - mu) / sigma of targets (...), in float32, from the logits (..., d_vocab) before them."""
    above = logits.float()
    above = above - above.amax(-1, keepdim=True)  # ln p but for a constant, 0 for the likeliest token
    target = above.gather(-1, targets[..., None])[..., 0]
    weights = above.exp()
    total = weights.sum(-1)
    above = above.clamp(min=IMPOSSIBLE)
    mu = (weights * above).sum(-1) / total
    variance = (weights * (above - mu[..., None]).square()).sum(-1) / total
    return target - total.log(), (target - mu) / variance.sqrt().clamp(min=SMALLEST_SD)
