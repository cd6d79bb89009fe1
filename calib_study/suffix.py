"""Forwards that begin in the middle: what blocks gave is kept, and the model goes on from there.

Changing one block changes nothing before it. So what the blocks before it give is computed once, and a forward with the
changed block needs only that block and those after it. Results are those of a whole forward: the same operations on
the same numbers. What a family does around its blocks (embeddings, masks, the norm and the head) is done by the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calib_study.layers import block_layers, decoder_blocks
from calib_study.models import next_token_logits
from calib_study.walk import forward_replaced

BlockWeights = Mapping[str, Tensor]  # (d_out, d_in) of each layer of a block, by its name inside it


@torch.no_grad()
def block_outputs(model: PreTrainedModel, tokens: Tensor) -> tuple[list[Any], Tensor]:
    """Return what each block gives in a forward of token ids (n, seq_len), and the logits (n, seq_len, d_vocab)."""
    found: list[Any] = []
    blocks = decoder_blocks(model)[1]
    hooks = [block.register_forward_hook(lambda _, __, output: found.append(output)) for block in blocks]
    try:
        logits = next_token_logits(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return found, logits


@torch.no_grad()
def logits_after(model: PreTrainedModel, tokens: Tensor, index: int, output: Any) -> Tensor:
    """Return the logits (n, seq_len, d_vocab) if block `index` gives `output`; it and those before do not compute.

    Args:
        tokens: (n, seq_len), those that `output` is of. index: -1: all blocks compute, and `output` is not used.
    """
    with ExitStack() as stack:
        for block in decoder_blocks(model)[1][: index + 1]:
            stack.enter_context(forward_replaced(block, lambda *_, **__: output))
        return next_token_logits(model, tokens)


def weights_of(block: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights of every layer of a block."""
    return {name: layer.weight().clone() for name, layer in block_layers(block).items()}


@contextmanager
def weights_in(block: nn.Module, weights: BlockWeights) -> Iterator[None]:
    """Let a block have other weights inside."""
    own, layers = weights_of(block), block_layers(block)
    try:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.set_weight_(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.set_weight_(own[name])
