"""The choice of the next token: repetition penalty, temperature, top-k, top-p, and a draw by one uniform number.

They follow each other as transformers' `generate` applies them. Logits are float32 or wider; from the candidates on,
which are few, everything is float64, so that a draw depends on rounding in the model alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; `manifests.Synthesis` says what each number means.

    Source: Ji et al. 2025, code: temperature 0.6, top-k 50, top-p 0.95, repetition penalty 1.2.
    """

    temperature: float = 0.6
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.2


def penalised(logits: Tensor, seen: Tensor, penalty: float, exempt: Tensor) -> Tensor:
    """Return logits (n, d_vocab) in which those of tokens seen before are x / penalty, or x * penalty where x < 0.

    Source: Keskar et al. 2019 (CTRL), section 4.1, as transformers applies it: once, however often a token was seen.

    Args:
        seen: ids (n, m) of each row's text, in any order; ids of `exempt` may fill up short rows.
        penalty: above 1 discourages repetition; 1 changes nothing.
        exempt: ids (k,) that are never penalised: end-of-text is no word that a text should avoid.
    """
    if penalty == 1:
        return logits
    found = logits.gather(1, seen)
    changed = logits.scatter(1, seen, torch.where(found < 0, found * penalty, found / penalty))
    changed[:, exempt] = logits[:, exempt]
    return changed


def candidates(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the scores (n, m) and ids (n, m) of each row's `top_k` highest, and of all that equal the last of these.

    Ordered by falling score, equal ones by rising id; what a row has too few of is -inf. `top_k` 0 means all.
    """
    k = min(top_k or scores.shape[1], scores.shape[1])
    values, ids = scores.topk(min(k + 1, scores.shape[1]))
    lowest = values[:, k - 1 : k]
    if k < values.shape[1]:
        if (values[:, k:] == lowest).any():  # rare in float32, not in bfloat16
            values, ids = scores.topk(int((scores >= lowest).sum(1).max()))
        values = values.masked_fill(values < lowest, -torch.inf)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return which of the probabilities (n, m), falling, are kept, and how near each row's choice is to another.

    Kept is a token if those before it sum to less than `top_p`; so the one that reaches p is kept, and the first
    always. Source: Holtzman et al. 2020, section 3.1. The second result (n,) is the least distance of such a sum
    from p, or the step from the last that is kept to the next, where that is less: the two could change places.
    """
    before = probabilities.cumsum(1) - probabilities
    if top_p >= 1:
        return torch.ones_like(before, dtype=torch.bool), torch.ones_like(before[:, 0])
    kept, distance = before < top_p, (before - top_p).abs()
    distance[:, 0] = 1.0  # the first is kept whatever p is
    at_border = kept[:, :-1] & ~kept[:, 1:]
    step = (probabilities[:, :-1] - probabilities[:, 1:]).masked_fill(~at_border, 1.0)
    return kept, torch.cat([distance, step], 1).amin(1)


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place (n,) at which the cumulated share exceeds a uniform number, and the distance to an edge.

    Args:
        weights: (n, m), at least 0, not all 0; they need not sum to 1.
        uniforms: (n,), in [0, 1).

    The second result (n,) is how far the uniform number is from the nearest sum at which another place with a weight
    would be chosen; 1 if there is no other.
    """
    sums = weights.cumsum(1)
    share = sums / sums[:, -1:]
    inner = (share > 0) & (share < 1)  # before the first with a weight, and after the last, there is none to draw
    distance = (share - uniforms[:, None]).abs().masked_fill(~inner, 1.0).amin(1)
    return (share <= uniforms[:, None]).sum(1), distance


def next_tokens(
    logits: Tensor, seen: Tensor, uniforms: Tensor, sampling: Sampling, *, exempt: Tensor, banned: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the token (n,) drawn for each row of logits (n, d_vocab), and its margin (n,), both on the CPU.

    The margin is how far rounding would have to move probabilities, or sums of them, to change the draw: what top-k
    leaves out apart.

    Args:
        seen, exempt: see `penalised`.
        uniforms: (n,), float64, in [0, 1), on the CPU.
        banned: ids (k,) that are not drawn.
    """
    scores = penalised(logits, seen, sampling.repetition_penalty, exempt)
    if len(banned):
        scores = scores.index_fill(1, banned, -torch.inf)
    values, ids = (few.cpu() for few in candidates(scores, sampling.top_k))
    probabilities = (values.double() / sampling.temperature).softmax(1)
    kept, near = nucleus(probabilities, sampling.top_p)
    # in the order of the ids, since that of the probabilities could turn where two are nearly equal
    ids, order = ids.sort(dim=1)
    place, distance = inverse_cdf((probabilities * kept).gather(1, order), uniforms)
    return ids.gather(1, place[:, None])[:, 0], torch.minimum(near, distance)
