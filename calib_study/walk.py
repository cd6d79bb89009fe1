"""Calibration windows on their way through a model's blocks, and what their layers' inputs look like.

Nothing is assumed of a family's masks, positions or rotary embeddings: what a block is called with is seen in one
forward. Layers that are called with one and the same tensor (queries, keys and values) form a group.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from greenlet import greenlet
from torch import Tensor, nn

from calib_study.errors import StudyError
from calib_study.layers import Layer, block_layers, decoder_blocks
from calib_study.moments import InputMoments, join, moments_of
from calib_study.windows import Tokens

# Windows per forward call. On a CPU, more than about 1,000 tokens no longer fit its cache and run slower.
TOKENS_PER_CALL = 1024

Groups = dict[str, list[str]]  # the first layer with an input -> all layers with it, in the order they are called


class _Stop(Exception):
    """Raised inside a forward once everything of interest has been seen; not an error."""


class Walk:
    """The hidden states of all calibration windows at one block, in batches (n, seq_len, d_model).

    Args:
        tokens: (n_samples, seq_len) windows of token ids.
    """

    def __init__(self, model: nn.Module, tokens: Tokens) -> None:
        self.blocks = decoder_blocks(model)[1]
        device = next(model.parameters()).device
        self.seq_len = tokens.shape[1]
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(device)
        per_call = max(1, TOKENS_PER_CALL // self.seq_len) if _broadcasts(model, self.blocks, ids) else 1
        batches = ids.split(per_call)  # type: ignore[no-untyped-call]
        self.arguments = _block_arguments(model, self.blocks, batches[0][:1])
        self.hidden = [_inputs_of(model, self.blocks[0], batch) for batch in batches]
        self._known: dict[tuple[str, ...], Groups] = {}

    def advance(self, index: int) -> None:
        """Replace the hidden states by the block's outputs, with its weights as they are now."""
        for i, hidden in enumerate(self.hidden):
            self.hidden[i] = self._forward(index, hidden)

    def moments(self, index: int, *, gram: bool, advance: bool = False) -> dict[str, InputMoments]:
        """Return the moments of each layer's input, in one pass of the block as it is, by the layer's name.

        With `advance` the hidden states become the outputs of that same pass. Without, the block's last layer is
        not computed: its input is all that is needed.
        """
        groups = self.groups(index)
        seen: dict[str, InputMoments] = {}
        batches = dict.fromkeys(groups, 0)

        def arrived(first: str, tensor: Tensor) -> None:
            found = moments_of([tensor], gram=gram)
            seen[first] = join([seen[first], found]) if first in seen else found
            batches[first] += 1
            if not advance and len(set(batches.values())) == 1:
                raise _Stop

        with _hooked(block_layers(self.blocks[index]), groups, arrived, self.seq_len):
            for i, hidden in enumerate(self.hidden):
                try:
                    output = self._forward(index, hidden)
                except _Stop:
                    continue
                self.hidden[i] = output
        return {name: seen[first] for first, names in groups.items() for name in names}

    def advance_pruning(
        self, index: int, prune_group: Callable[[list[str], InputMoments], None], *, gram: bool
    ) -> None:
        """Pass all windows through the block once; prune each group when its input has arrived from all of them.

        The forward of each batch runs in a greenlet, which pauses at each group's input until all have reached it.
        So later layers see what the pruned earlier ones give, at the cost of one pass.
        """
        groups = self.groups(index)
        driver = greenlet.getcurrent()
        forwards = [greenlet(lambda hidden=hidden: self._forward(index, hidden)) for hidden in self.hidden]

        def arrived(first: str, tensor: Tensor) -> None:
            driver.switch((first, tensor))

        with _hooked(block_layers(self.blocks[index]), groups, arrived, self.seq_len):
            waiting = [forward.switch() for forward in forwards]
            for first, names in groups.items():
                if any(at != first for at, _ in waiting):
                    raise StudyError(f"block {index}: its layers were not called in the same order for all windows.")
                prune_group(names, moments_of([tensor for _, tensor in waiting], gram=gram))
                waiting = [forward.switch() for forward in forwards]
        self.hidden = waiting

    def groups(self, index: int) -> Groups:
        """Return which layers of a block share an input, seen in a forward of one window."""
        layers = block_layers(self.blocks[index])
        known = tuple(layers)
        if known not in self._known:
            self._known[known] = self._find_groups(index, layers)
        return self._known[known]

    def _find_groups(self, index: int, layers: Mapping[str, Layer]) -> Groups:
        inputs: list[tuple[nn.Module, Tensor]] = []  # live tensors: an address alone may be used again
        modules = {id(layer.module): layer.module for layer in layers.values()}

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs.append((module, arguments[0]))

        handles = [module.register_forward_pre_hook(hook) for module in modules.values()]
        try:
            self._forward(index, self.hidden[0][:1])
        finally:
            for handle in handles:
                handle.remove()
        called = {id(module) for module, _ in inputs}
        silent = [name for name, layer in layers.items() if id(layer.module) not in called]
        if silent:
            raise StudyError(f"block {index}: its forward never called {', '.join(silent)}; it cannot be calibrated.")
        groups: list[tuple[Tensor, list[str]]] = []
        for module, tensor in inputs:
            names = [name for name, layer in layers.items() if layer.module is module]
            same = next((members for other, members in groups if other is tensor), None)
            if same is None:
                groups.append((tensor, names))
            else:
                same += names
        return {members[0]: members for _, members in groups}

    def _forward(self, index: int, hidden: Tensor) -> Tensor:
        others, keywords = self.arguments[index]
        output = self.blocks[index](hidden, *others, **keywords)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states


@contextmanager
def _hooked(
    layers: Mapping[str, Layer], groups: Groups, arrived: Callable[[str, Tensor], None], seq_len: int
) -> Iterator[None]:
    """Call `arrived(first, input)` whenever a group's first layer is called. The hooks are gone on exit."""

    def hook_for(first: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        # OPT flattens (n, seq_len, d_in) to (n * seq_len, d_in) before its MLP
        return lambda _, arguments: arrived(first, arguments[0].reshape(-1, seq_len, arguments[0].shape[-1]))

    handles = [layers[first].module.register_forward_pre_hook(hook_for(first)) for first in groups]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _broadcasts(model: nn.Module, blocks: nn.ModuleList, ids: Tensor) -> bool:
    """Return whether what the blocks are called with for one window serves several (not so for Bloom's ALiBi)."""
    pair = ids[:1, :2].expand(2, -1)
    alone, both = (_block_arguments(model, blocks, batch) for batch in (pair[:1], pair))
    for one, two in zip(alone, both, strict=True):
        tensors = zip((*one[0], *one[1].values()), (*two[0], *two[1].values()), strict=True)
        shapes = [(a.shape, b.shape) for a, b in tensors if isinstance(a, Tensor) and isinstance(b, Tensor)]
        if any(n not in (1, m) for a, b in shapes for n, m in zip(a, b, strict=True)):
            return False
    return True


def _block_arguments(
    model: nn.Module, blocks: nn.ModuleList, window: Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what each block is called with besides its hidden states, seen in one forward of one window.

    They do not depend on the text, and broadcast over a batch.
    """
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append((inputs[1:], keywords))
        if len(found) == len(blocks):
            raise _Stop

    _run_until_stop(model, window, [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks])
    return found


def _inputs_of(model: nn.Module, block: nn.Module, tokens: Tensor) -> Tensor:
    """Return the hidden states (n, seq_len, d_model) that enter `block` for a batch of token ids."""
    found: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0])
        raise _Stop

    _run_until_stop(model, tokens, [block.register_forward_pre_hook(hook)])
    return found[0]


def _run_until_stop(model: nn.Module, tokens: Tensor, hooks: list[torch.utils.hooks.RemovableHandle]) -> None:
    try:
        model(tokens, use_cache=False)
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
