"""Wanda and SparseGPT as a textbook would write them: one window at a time, full sorts, torch's default products.

A baseline for speed, and an independent check of masks. Written from the papers for models of the Llama kind only.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Prune = Callable[[nn.Linear, Tensor], None]  # layer and X^T X (or, for Wanda, the sums of squares) of its input


@torch.no_grad()
def prune_block_by_block(model: nn.Module, tokens: Tensor, prune: Prune, *, gram: bool) -> None:
    """Prune a model in place: for each block, a dense pass with statistics, then a pass with the pruned weights."""
    layers = model.model.layers
    hidden = [model.model.embed_tokens(window[None]) for window in tokens]
    rotary = model.model.rotary_emb(hidden[0], torch.arange(tokens.shape[1])[None])
    for layer in layers:
        linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        sums: dict[nn.Linear, Tensor] = {}

        def add(linear: nn.Linear, inputs: tuple[Tensor, ...], sums: dict[nn.Linear, Tensor] = sums) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            found = flat.T @ flat if gram else flat.norm(dim=0) ** 2
            sums[linear] = sums[linear] + found if linear in sums else found

        handles = [linear.register_forward_pre_hook(add) for linear in linears]
        for window in hidden:
            layer(window, position_embeddings=rotary)
        for handle in handles:
            handle.remove()
        for linear in linears:
            prune(linear, sums[linear])
        hidden = [layer(window, position_embeddings=rotary) for window in hidden]


def wanda(linear: nn.Linear, squares: Tensor, sparsity: float = 0.5) -> None:
    """Zero the lowest scores of every row, found by a full stable sort."""
    order = (linear.weight.abs() * squares.sqrt()).sort(dim=1, stable=True).indices
    linear.weight.scatter_(1, order[:, : int(linear.in_features * sparsity)], 0)


def sparsegpt(linear: nn.Linear, gram: Tensor, sparsity: float = 0.5, block: int = 128) -> None:
    """Prune column by column within blocks of columns, adjusting the columns to the right."""
    weight, gram = linear.weight.clone(), gram.clone()
    dead = gram.diagonal() == 0
    gram.diagonal()[dead] = 1
    weight[:, dead] = 0
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        part, upper = weight[:, start:stop].clone(), factor[start:stop, start:stop]
        score = part**2 / upper.diagonal() ** 2
        threshold = score.flatten().sort().values[int(score.numel() * sparsity) - 1]
        removed, errors = score <= threshold, torch.zeros_like(part)
        for j in range(stop - start):
            column = part[:, j].clone()
            kept = column.masked_fill(removed[:, j], 0)
            errors[:, j] = (column - kept) / upper[j, j]
            part[:, j:] -= errors[:, j : j + 1] @ upper[j : j + 1, j:]
            part[:, j] = kept
        weight[:, start:stop] = part
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    linear.weight.copy_(weight)
