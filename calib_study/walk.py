"""Calibration windows on their way through a model's blocks, and what their layers' inputs look like.

Nothing is assumed of a family's masks, positions or rotary embeddings: what a block is called with is seen in one
forward. Layers that are called with one and the same tensor (queries, keys and values) form a group.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from greenlet import greenlet
from torch import Tensor, nn

from calib_study.errors import StudyError
from calib_study.layers import Layer, block_layers, decoder_blocks
from calib_study.moments import InputMoments, MomentsSum
from calib_study.offload import Device, HiddenStates, Placement, check_weights, moved, placed
from calib_study.windows import Tokens

# Windows per forward call. On a CPU, more than about 1,000 tokens no longer fit its cache and run slower.
TOKENS_PER_CALL = 1024

Groups = dict[str, list[str]]  # the first layer with an input -> all layers with it, in the order they are called


class _Stop(Exception):
    """Raised inside a forward once everything of interest has been seen; not an error."""


class Walk:
    """The hidden states of all calibration windows at one block, in batches (n, seq_len, d_model).

    A model that a device_map spreads over several devices is walked as it is: each block computes where it lies.

    Args:
        tokens: (n_samples, seq_len) windows of token ids.
        device: where blocks are moved to, one at a time, while the rest of the model stays where it is and computes
            only what enters the first block. None = blocks stay too.
        hidden: where the hidden states of all windows are kept: on the block's device, in the CPU's memory, or in a
            temporary file. Results are the same. In the latter two cases the device holds one batch at a time.

    Raises InputError for weights that cannot be pruned where they are, and if a file has no room.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens,
        device: Device | None = None,
        hidden: Placement = "device",
    ) -> None:
        check_weights(model, device)
        self.device = device
        self.placement = hidden
        self.blocks = decoder_blocks(model)[1]
        self.seq_len = tokens.shape[1]
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(next(model.parameters()).device)
        per_call = max(1, TOKENS_PER_CALL // self.seq_len) if _broadcasts(model, self.blocks, ids) else 1
        batches = ids.split(per_call)  # type: ignore[no-untyped-call]
        self.arguments = _block_arguments(model, self.blocks, batches[0][:1])
        entering = (_inputs_of(model, self.blocks[0], batch) for batch in batches)
        self.hidden: HiddenStates = placed(entering, hidden, self._where(0), ids.numel())
        self._resident: tuple[int, tuple[Any, ...], dict[str, Any]] | None = None
        self._known: dict[tuple[str, ...], Groups] = {}

    @contextmanager
    def resident(self, index: int) -> Iterator[None]:
        """Hold a block, and what it is called with besides hidden states, on the device inside.

        Around several calls about one block it saves moving the block for each. Its weights may be changed inside.
        """
        if self._resident is not None:
            if self._resident[0] != index:
                raise StudyError(f"block {index} was asked for while block {self._resident[0]} is on the device.")
            yield
            return
        with moved(self.blocks[index], self.device):
            self._resident = (index, *send_to_device(self.arguments[index], self._where(index)))
            try:
                yield
            finally:
                self._resident = None

    def advance(self, index: int) -> None:
        """Replace the hidden states by the block's outputs, with its weights as they are now."""
        with self.resident(index):
            for i in range(len(self.hidden)):
                self._keep(i, self._forward(index, self.hidden[i]))

    def moments(self, index: int, *, gram: bool, advance: bool = False) -> dict[str, InputMoments]:
        """Return the moments of each layer's input, in one pass of the block as it is, by the layer's name.

        With `advance` the hidden states become the outputs of that same pass. Without, the block's last layer is
        not computed: its input is all that is needed.
        """
        with self.resident(index):
            groups = self.groups(index)
            seen = self._seen(index, list(groups), gram=gram, advance=advance)
        return {name: seen[first] for first, names in groups.items() for name in names}

    def _seen(self, index: int, firsts: Sequence[str], *, gram: bool, advance: bool = False) -> dict[str, InputMoments]:
        """Return the moments of the inputs of some layers, in one pass that stops when all of them have arrived."""
        sums = {first: MomentsSum(gram=gram) for first in firsts}

        def arrived(first: str, tensor: Tensor) -> None:
            sums[first].add(tensor)
            if not advance and len({found.n_batches for found in sums.values()}) == 1:
                raise _Stop

        with _hooked(block_layers(self.blocks[index]), firsts, arrived, self.seq_len):
            for i in range(len(self.hidden)):
                try:
                    output = self._forward(index, self.hidden[i])
                except _Stop:
                    continue
                self._keep(i, output)
        return {first: found.total() for first, found in sums.items()}

    def advance_pruning(
        self, index: int, prune_group: Callable[[list[str], InputMoments], None], *, gram: bool
    ) -> None:
        """Prune each group of a block when its input has arrived from all windows, and pass all through the block.

        So later layers see what the pruned earlier ones give. With the hidden states on the device this is one pass:
        the forward of each batch runs in a greenlet, which pauses at each group's input until all have reached it.
        Its price is memory on the device: the largest activations inside the block, of all windows at once.
        With the hidden states elsewhere, for want of that memory, the block is begun anew for each group; in a
        block of the Llama kind the parts of passes add up to two. The results are the same.
        """
        with self.resident(index):
            if self.placement == "device":
                self._advance_pausing(index, prune_group, gram=gram)
                return
            for first, names in self.groups(index).items():
                prune_group(names, self._seen(index, [first], gram=gram)[first])
            self.advance(index)

    def _advance_pausing(
        self, index: int, prune_group: Callable[[list[str], InputMoments], None], *, gram: bool
    ) -> None:
        groups = self.groups(index)
        driver = greenlet.getcurrent()
        forwards = [greenlet(lambda hidden=hidden: self._forward(index, hidden)) for hidden in self.hidden]

        def arrived(first: str, tensor: Tensor) -> None:
            driver.switch((first, tensor))

        with _hooked(block_layers(self.blocks[index]), list(groups), arrived, self.seq_len):
            waiting = [forward.switch() for forward in forwards]
            for first, names in groups.items():
                if any(at != first for at, _ in waiting):
                    raise StudyError(f"block {index}: its layers were not called in the same order for all windows.")
                found = MomentsSum(gram=gram)
                for _, tensor in waiting:
                    found.add(tensor)
                prune_group(names, found.total())
                waiting = [forward.switch() for forward in forwards]
        self.hidden = waiting

    def groups(self, index: int) -> Groups:
        """Return which layers of a block share an input, seen in a forward of one window."""
        layers = block_layers(self.blocks[index])
        known = tuple(layers)
        if known not in self._known:
            with self.resident(index):
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

    def _where(self, index: int) -> Device:
        """Return where a block computes."""
        return self.device or next(self.blocks[index].parameters()).device

    def _forward(self, index: int, hidden: Tensor) -> Tensor:
        """Return the outputs of the block that is resident."""
        assert self._resident is not None and self._resident[0] == index
        _, others, keywords = self._resident
        output = self.blocks[index](hidden.to(self._where(index)), *others, **keywords)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states

    def _keep(self, i: int, states: Tensor) -> None:
        """Replace a batch of the hidden states."""
        self.hidden[i] = states if self.placement == "device" else states.cpu()


@contextmanager
def _hooked(
    layers: Mapping[str, Layer], firsts: Sequence[str], arrived: Callable[[str, Tensor], None], seq_len: int
) -> Iterator[None]:
    """Call `arrived(first, input)` whenever one of some layers is called. The hooks are gone on exit."""

    def hook_for(first: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        # OPT flattens (n, seq_len, d_in) to (n * seq_len, d_in) before its MLP
        return lambda _, arguments: arrived(first, arguments[0].reshape(-1, seq_len, arguments[0].shape[-1]))

    handles = [layers[first].module.register_forward_pre_hook(hook_for(first)) for first in firsts]
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

    They do not depend on the text, and broadcast over a batch. Nor do they depend on what the blocks before give: so
    only the first block computes, and the others answer with its output, which has the form that the model expects.
    """
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Any] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        found.append((inputs[1:], keywords))
        if len(found) == len(blocks):
            raise _Stop

    hooks = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    hooks.append(blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output)))
    with ExitStack() as answering:
        for block in blocks[1:]:
            answering.enter_context(forward_replaced(block, lambda *_, **__: outputs[0]))
        _run_until_stop(model, window, hooks)
    return found


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else inside; a forward that is itself a replacement, as accelerate's, is kept."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


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
