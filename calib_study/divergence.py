"""How far a pruned model's next-token distributions are from the dense model's, on the same tokens.

Perplexity asks what a model gives to the one token that came; divergence compares all that it gives to the whole
vocabulary. Logits of one call are in memory at a time, never those of a corpus.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.models import next_token_logits
from calib_study.perplexity import (
    TOKENS_PER_CALL,
    Mask,
    Perplexity,
    WindowMean,
    forwards,
    mean_over_windows,
    negative_log_likelihood,
    perplexity,
    perplexity_of,
    scored_mask,
)
from calib_study.windows import Tokens

LogitsOf = Callable[[Tensor], Tensor]
LN_2 = math.log(2)
# Positions whose dense logits are computed at once: 25 MB for 49,152 ids in float32.
POSITIONS_PER_CALL = 128
# Entries of the vocabulary axis compared at once on a CPU: 1 MB for each side, so that ten passes stay in its cache.
ENTRIES_PER_CHUNK = 2**18


# --- distributions ----------------------------------------------------------------------------------------


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) = sum of p * (ln p - ln q) over the last axis, in nats; infinite where q excludes what p has.

    What p excludes counts 0, as does what it gives less than the smallest number of the dtype. Rounding can make
    the sum of equal distributions a little negative, so it is cut at 0.

    Args:
        log_p, log_q: logarithms of probabilities, (..., d_vocab); -inf where a probability is 0.

    >>> kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log())  # (ln 2 + ln 2/3) / 2
    tensor(0.1438)
    """
    return _mean_under(log_p.exp(), log_p - log_q).clamp(min=0)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, in nats.

    Symmetric; 0 for equal distributions and ln 2 for disjoint ones, within which rounding is cut.
    Source: Lin (1991), eq. 3.1 with equal weights; for pruned models Khanal and Capone (2024).

    Args:
        log_p, log_q: logarithms of probabilities, (..., d_vocab); -inf where a probability is 0.

    >>> jensen_shannon(torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log())
    tensor(0.6931)
    """
    return _jensen_shannon(log_p, log_p.exp(), log_q, log_q.exp())


def _jensen_shannon(log_p: Tensor, p: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    log_m = torch.logaddexp(log_p, log_q).sub_(LN_2)
    return ((_mean_under(p, log_p - log_m) + _mean_under(q, log_q - log_m)) / 2).clamp(0, LN_2)


def _mean_under(p: Tensor, values: Tensor) -> Tensor:
    """Return the sum of p * value over the last axis, where probability 0 times anything is 0. Overwrites `values`."""
    terms = values.mul_(p)
    mean = terms.sum(-1)
    if not mean.isfinite().all():  # so that the usual case is one pass
        mean = terms.masked_fill_(p == 0, 0).sum(-1)
    return mean


# --- a pruned model beside the dense one ------------------------------------------------------------------


@dataclass(frozen=True)
class Divergence:
    """Means over the positions that predict a scored token: the same positions as perplexity's.

    Attributes:
        jensen_shannon: nats, from 0 to ln 2.
        kl_dense_pruned: KL(dense || pruned), nats: large where the pruned model misses what the dense one expects.
        kl_pruned_dense: KL(pruned || dense), nats: large where it expects what the dense one excludes.
        agreement: fraction of positions with the same most likely token (of equally likely ones, the first).
        n_tokens: positions compared.
    """

    jensen_shannon: WindowMean
    kl_dense_pruned: WindowMean
    kl_pruned_dense: WindowMean
    agreement: WindowMean
    n_tokens: int


class DenseOutputs:
    """The dense model's next-token distributions on windows, held as what enters its output head.

    That is d_model numbers for each token instead of d_vocab: 38 MB for 16,384 tokens of width 576 in float32, on
    the CPU. The head, which pruning leaves alone, makes logits of them again. So neither a second copy of the model
    nor a second forward is needed when the same model object is then pruned in place, and pruned again.

    Args:
        model: the dense model as it is now.
        tokens: (n_windows, seq_len) token ids.
        scored: (n_windows, seq_len), True where a token is scored; by default everywhere but the first.

    Raises StudyError if the model's logits are not a function of what enters an output head, NumericalError if
    they are not numbers.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, tokens: Tokens, scored: Mask | None = None) -> None:
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if not isinstance(head, nn.Module):
            raise StudyError(f"{type(model).__name__} has no output head; its distributions cannot be kept.")
        self._vocabulary = _vocabulary(model)
        self._tokens, self._mask = tokens.copy(), scored_mask(tokens, scored)
        self._hidden: list[Tensor] = [torch.empty(0)] * len(tokens)  # of each window (n_scored, d_model)
        self._top: list[Tensor] = [torch.empty(0)] * len(tokens)  # the most likely token at the same positions
        self._logits: LogitsOf = head
        with _seen_by(head) as seen:
            for number, (batch, logits) in enumerate(forwards(model, tokens, scored)):
                hidden = seen.pop()
                if number == 0:
                    self._logits = _logits_again(model, head, hidden, logits)
                for row, index in enumerate(batch.windows):
                    self._hidden[index] = batch.predicting(row, hidden).cpu()
                    self._top[index] = batch.predicting(row, logits).argmax(-1).cpu()
        self._per_call = POSITIONS_PER_CALL if self._logits is head else TOKENS_PER_CALL

    def check(self, model: PreTrainedModel, tokens: Tokens, scored: Mask | None) -> None:
        """Raise InputError unless a model has this vocabulary, and the windows and their mask are these."""
        _check_same(self._vocabulary, _vocabulary(model))
        if not np.array_equal(tokens, self._tokens) or not np.array_equal(scored_mask(tokens, scored), self._mask):
            raise InputError(
                f"the dense outputs are of other windows: {self._tokens.shape} with {self._mask.sum()} tokens scored, "
                f"now {tokens.shape}. Make them again for these."
            )

    def compare(self, index: int, logits: Tensor) -> Tensor:
        """Return a window's means of JS, KL(dense || pruned), KL(pruned || dense) and top-1 agreement, (4,) float64.

        Args:
            logits: (n_scored, d_vocab) of the pruned model, at the positions that predict the window's scored tokens.
        """
        distances = []
        hidden = self._hidden[index].to(logits.device)
        for states, pruned in _side_by_side(hidden, logits, self._per_call):
            dense = self._logits(states[None])[0]
            on_cpu = dense.device.type == "cpu"
            per_chunk = max(1, ENTRIES_PER_CHUNK // dense.shape[1]) if on_cpu else self._per_call
            distances += [_distances(*pair) for pair in _side_by_side(dense, pruned, per_chunk)]
        agree = logits.argmax(-1).cpu() == self._top[index]
        return torch.cat([torch.cat(distances, 1).cpu(), agree[None]]).double().mean(1)


def _logits_again(model: PreTrainedModel, head: nn.Module, hidden: Tensor, logits: Tensor) -> LogitsOf:
    """Return what makes a model's logits (n, length, d_vocab) of the inputs of its head, tried on one batch.

    It is the head itself where that gives the same logits bit by bit. Some families then scale or cap what the head
    returns (Cohere, Granite, Gemma 2); there what the model does after its head is replayed.
    """
    if logits.isnan().any():
        raise NumericalError("the dense model's logits are not numbers; its weights may be damaged.")
    if torch.equal(head(hidden).to(logits.dtype), logits):
        return head
    replay = partial(_replayed, model, head)
    again = replay(hidden)
    # 1 %: far above the rounding of bfloat16, far below a step that was left out
    if again.shape != logits.shape or (again - logits).abs().max() > 0.01 * logits.abs().max():
        raise StudyError(
            f"{type(model).__name__}: its logits do not follow from what enters its output head alone; divergence "
            "from this model is not available."
        )
    return replay


def _replayed(model: PreTrainedModel, head: nn.Module, hidden: Tensor) -> Tensor:
    """Return the model's logits if its head were given `hidden` (n, length, d_model).

    The forward is of a single token, whichever; a hook puts `hidden` in the place of its hidden state.
    """
    hook = head.register_forward_pre_hook(lambda *_: (hidden,))
    try:
        return next_token_logits(model, torch.zeros(1, 1, dtype=torch.int64, device=model.device))
    finally:
        hook.remove()


@contextmanager
def _seen_by(module: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list to which every input of the module is appended while inside."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _side_by_side(one: Tensor, other: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return pairs of up to `size` rows of two tensors with equally many rows."""
    return zip(torch.split(one, size), torch.split(other, size), strict=True)


def _distances(dense: Tensor, pruned: Tensor) -> Tensor:
    """Return JS, KL(dense || pruned) and KL(pruned || dense) of each position, (3, n), from logits (n, d_vocab)."""
    dense, pruned = dense.float(), pruned.float()
    log_p, log_q = dense.log_softmax(-1), pruned.log_softmax(-1)
    p, q = dense.softmax(-1), pruned.softmax(-1)  # on a CPU faster than exp
    forward = _mean_under(p, log_p - log_q).clamp(min=0)
    backward = _mean_under(q, log_q - log_p).clamp(min=0)
    return torch.stack([_jensen_shannon(log_p, p, log_q, q), forward, backward])


def check_vocabularies(dense: PreTrainedModel, pruned: PreTrainedModel) -> None:
    """Raise InputError if two models give probabilities to vocabularies of different sizes."""
    _check_same(_vocabulary(dense), _vocabulary(pruned))


def _vocabulary(model: PreTrainedModel) -> tuple[int, str]:
    """Return the size of a model's vocabulary, and what the model is called."""
    return model.config.get_text_config().vocab_size, model.name_or_path or type(model).__name__


def _check_same(dense: tuple[int, str], other: tuple[int, str]) -> None:
    if dense[0] != other[0]:
        raise InputError(
            f"the dense model ({dense[1]}) has a vocabulary of {dense[0]:,} tokens, the other ({other[1]}) one of "
            f"{other[0]:,}. Divergence compares probabilities of the same tokens: give the model that the other was "
            "pruned from."
        )


@torch.no_grad()
def score(
    model: PreTrainedModel, tokens: Tokens, dense: DenseOutputs | None = None, scored: Mask | None = None
) -> tuple[Perplexity, Divergence | None]:
    """Return perplexity, and divergence if dense outputs are given, from one forward of `model` on the windows.

    Args:
        model: the pruned model; it may be the object that `dense` was made of, pruned since then.
        tokens: (n_windows, seq_len) token ids, those of `dense`.
        scored: as for `perplexity`, and as for `dense`.

    Raises InputError if `dense` is of another vocabulary or other windows, before any forward; NumericalError if
    a result is not finite.
    """
    if dense is None:
        return perplexity(model, tokens, scored), None
    return _score_beside(dense, model, tokens, scored)


def _score_beside(
    dense: DenseOutputs, model: PreTrainedModel, tokens: Tokens, scored: Mask | None
) -> tuple[Perplexity, Divergence]:
    dense.check(model, tokens, scored)
    nlls, compared = np.zeros(len(tokens)), np.zeros((4, len(tokens)))
    for batch, logits in forwards(model, tokens, scored):
        for row, index in enumerate(batch.windows):
            ours = batch.predicting(row, logits)
            nlls[index] = negative_log_likelihood(ours, batch.targets(row))
            compared[:, index] = dense.compare(index, ours).numpy()
    found = perplexity_of(nlls, tokens, scored)
    if not np.isfinite(compared).all():
        raise NumericalError("a divergence from the dense model is not finite: one of them excludes a token (-inf).")
    js, forward, backward, agreement = [mean_over_windows(values, found.tokens_by_window) for values in compared]
    return found, Divergence(js, forward, backward, agreement, found.n_tokens)


def divergence_between(
    dense_model: PreTrainedModel, pruned_model: PreTrainedModel, tokens: Tokens, scored: Mask | None = None
) -> Divergence:
    """Return the divergence of a pruned model from a dense one, both held in memory, on the same windows.

    Arguments and errors are those of `score`.
    """
    check_vocabularies(dense_model, pruned_model)
    with torch.no_grad():
        return _score_beside(DenseOutputs(dense_model, tokens, scored), pruned_model, tokens, scored)[1]
