"""Perplexity on held-out text: how surprised the model is, named by text, window length and tokens scored."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from calib_study.errors import NumericalError
from calib_study.models import next_token_logits
from calib_study.windows import Tokens

# Windows are scored a few at a time: the logits of 1,024 tokens over 49,152 ids already take 200 MB in float32.
TOKENS_PER_CALL = 1024
LARGEST_NLL = 700.0  # nats; its exponential is about the largest number that a float holds


@dataclass(frozen=True)
class Perplexity:
    """Mean negative log-likelihood of held-out tokens, and its exponential.

    Attributes:
        nll: nats per token, the mean over all scored tokens.
        nll_stderr: standard error of `nll` over windows (0 for a single window). It says how far another
            piece of text could move the number; differences between models on the same text are far more exact.
        n_tokens: tokens scored: every token of a window but its first, which has no context.
        by_window: the mean of each window, nats per token, in order, so that two models can be compared on
            each piece of text.
    """

    nll: float
    nll_stderr: float
    n_tokens: int
    by_window: tuple[float, ...]

    @property
    def value(self) -> float:
        """exp(nll); dimensionless, 1 is perfect, lower is better."""
        return math.exp(self.nll)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: Tokens) -> Perplexity:
    """Return the perplexity of `model` on windows (n_windows, seq_len) of token ids.

    exp of the mean over scored tokens of -ln p(token | tokens before it in its window), in float32 log-space
    whatever the model's dtype. Raises NumericalError if a log-likelihood is not finite.
    """
    per_call = max(1, TOKENS_PER_CALL // tokens.shape[1])
    means: list[float] = []
    batches = torch.from_numpy(tokens).to(model.device).split(per_call)  # type: ignore[no-untyped-call]
    for batch in batches:
        logits = next_token_logits(model, batch)
        for row, targets in zip(logits, batch, strict=True):
            means.append(functional.cross_entropy(row[:-1].float(), targets[1:]).item())
    if not np.isfinite(means).all() or np.mean(means) > LARGEST_NLL:
        raise NumericalError("the model's log-likelihoods are not finite, or below -700; its weights may be damaged.")
    spread = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Perplexity(float(np.mean(means)), spread, tokens.shape[0] * (tokens.shape[1] - 1), tuple(means))
