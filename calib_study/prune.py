"""The block-by-block walk: collect what a method needs at each linear layer, prune, pass the pruned outputs on.

Source: the driver shared by Wanda and SparseGPT (Wanda, section 3; Frantar & Alistarh 2023, section 3). For each
decoder block: one pass of the still dense block over all windows gathers its statistics; its linears are pruned;
a second pass with the pruned weights gives the next block's inputs. Embeddings, norms and lm_head are untouched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calib_study import masks, scores
from calib_study.errors import InputError, NumericalError, unknown
from calib_study.methods import Method, Pattern
from calib_study.models import all_linears, block_linears, decoder_blocks
from calib_study.progress import bar
from calib_study.windows import Tokens

# Windows per forward call. On a CPU, more than about 1,000 tokens no longer fit its cache and run slower.
TOKENS_PER_CALL = 1024


@dataclass(frozen=True)
class Request:
    """What to do to every block linear: which method, how much, in which pattern, with which seed."""

    method: Method
    sparsity: float
    pattern: Pattern
    seed: int = 0


class _Stop(Exception):
    """Raised inside a forward once everything of interest has been seen; not an error."""


def prune_(model: nn.Module, request: Request, tokens: Tokens | None = None, *, progress: bool = True) -> None:
    """Prune every block linear of `model` in place.

    Args:
        tokens: (n_samples, seq_len) calibration windows; None for methods that need none.

    Raises InputError for a pattern that does not fit a layer, before any work, and NumericalError, with the
    layer's name, if activations are not finite. Hooks, training flag and cache setting are restored in any case.
    """
    check_pattern(model, request.pattern)
    if request.method.name == "dense":
        return
    prefix, blocks = decoder_blocks(model)
    with torch.no_grad(), _evaluation_mode(model), bar(len(blocks), "pruning", "block", shown=progress) as done:
        walk = _Walk(model, tokens) if request.method.needs_calibration and tokens is not None else None
        if request.method.needs_calibration and walk is None:
            raise InputError(f"method {request.method.name!r} needs calibration windows, and got none.")
        for index, block in enumerate(blocks):
            norms = walk.input_norms(index) if walk else {}
            for name, linear in block_linears(block).items():
                layer = f"{prefix}.{index}.{name}"
                _remove_(linear, _removed(linear.weight, norms.get(name), layer, request))
            if walk and index + 1 < len(blocks):
                walk.advance(index)
            done.update()


def check_pattern(model: nn.Module, pattern: Pattern) -> None:
    """Raise InputError, naming the layer, if an N:M pattern does not divide the inputs of a block linear."""
    for name, linear in all_linears(model).items():
        if pattern.structured and linear.in_features % pattern.group:
            raise InputError(
                f"pattern {pattern.kept}:{pattern.group} does not fit {name}: its {linear.in_features} inputs are not "
                f"a multiple of {pattern.group}."
            )


def _removed(weight: Tensor, norms: Tensor | None, layer: str, request: Request) -> Tensor:
    """Return the mask of one layer by the request's method."""
    match request.method.name:
        case "magnitude" | "magnitude_row":
            worth = scores.magnitude(weight)
        case "random":
            worth = scores.random(weight, layer, request.seed)
        case "wanda" if norms is not None:
            if not torch.isfinite(norms).all():
                raise NumericalError(f"{layer}: the norms of its calibration inputs are not all finite numbers.")
            worth = scores.wanda(weight, norms)
        case other:
            raise unknown("pruning criterion", other, ("magnitude", "magnitude_row", "random", "wanda"))
    return masks.removed_by(worth, request.sparsity, request.pattern, request.method.group)


def _remove_(linear: nn.Linear, removed: Tensor) -> None:
    linear.weight.masked_fill_(removed, 0)


class _Walk:
    """The hidden states of all calibration windows on their way through the blocks."""

    def __init__(self, model: nn.Module, tokens: Tokens) -> None:
        self.blocks = decoder_blocks(model)[1]
        device = next(model.parameters()).device
        per_call = max(1, TOKENS_PER_CALL // tokens.shape[1])
        batches = torch.from_numpy(np.ascontiguousarray(tokens)).to(device).split(per_call)  # type: ignore[no-untyped-call]
        self.arguments = _block_arguments(model, self.blocks, batches[0][:1])
        self.hidden = [_inputs_of(model, self.blocks[0], batch) for batch in batches]

    def input_norms(self, index: int) -> dict[str, Tensor]:
        """Return, for each linear of the block, the 2-norm of each of its input features over all tokens.

        Linears fed by the same tensor (queries, keys and values; gate and up) share one sum. The block's last
        linear is not computed: its input is all that is needed.
        """
        block = self.blocks[index]
        sums = _SquareSums(block_linears(block))
        with sums.collecting():
            for hidden in self.hidden:
                try:
                    self._forward(index, hidden)
                except _Stop:
                    sums.next_batch()
        return sums.norms()

    def advance(self, index: int) -> None:
        """Replace the hidden states by the block's outputs, with its weights as they are now."""
        for i, hidden in enumerate(self.hidden):
            self.hidden[i] = self._forward(index, hidden)

    def _forward(self, index: int, hidden: Tensor) -> Tensor:
        others, keywords = self.arguments[index]
        output = self.blocks[index](hidden, *others, **keywords)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        return states


class _SquareSums:
    """Running sums of squares of the input features of some linears, float64, one for each distinct input."""

    def __init__(self, linears: dict[str, nn.Linear]) -> None:
        self.linears = linears
        self.leader: dict[str, str] = {}  # linear -> the first linear with the same input tensor
        self.sums: dict[str, Tensor] = {}
        self._seen: list[tuple[str, Tensor]] = []  # live tensors: an address alone may be used again

    def next_batch(self) -> None:
        self._seen.clear()

    def norms(self) -> dict[str, Tensor]:
        missing = [name for name in self.linears if name not in self.leader]
        if missing:
            raise InputError(f"the block's forward never called {', '.join(missing)}; it cannot be calibrated.")
        return {name: self.sums[leader].sqrt().float() for name, leader in self.leader.items()}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Hook every linear; after the last new one in a forward, stop the forward. Hooks are removed on exit."""
        hooks = [m.register_forward_pre_hook(self._hook(name)) for name, m in self.linears.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._seen.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            tensor: Tensor = inputs[0]
            leader = next((other for other, seen in self._seen if seen is tensor), name)
            self.leader[name] = leader
            self._seen.append((leader, tensor))
            if leader == name:
                flat = tensor.reshape(-1, tensor.shape[-1]).float()
                square = _column_squares(flat)
                self.sums[name] = self.sums[name] + square if name in self.sums else square
            if len(self._seen) == len(self.linears):
                raise _Stop

        return hook


def _column_squares(flat: Tensor) -> Tensor:
    """Return the sum of squares of each column of (n_tokens, d_in), float64.

    Float32 within 128 tokens, float64 across them, so that the result does not depend on the batch beyond
    rounding. numpy's einsum is several times faster on a CPU than torch's.
    """
    if flat.device.type != "cpu":
        return flat.double().square().sum(0)
    pieces = [np.einsum("tc,tc->c", piece, piece) for piece in np.split(flat.numpy(), range(128, len(flat), 128))]
    return torch.from_numpy(np.sum(pieces, axis=0, dtype=np.float64))


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and no key-value cache inside; both settings as before afterwards."""
    training = model.training
    config = getattr(model, "config", None)
    caching = config.use_cache if config is not None else None
    model.eval()
    if config is not None:
        config.use_cache = False
    try:
        yield
    finally:
        model.train(training)
        if config is not None:
            config.use_cache = caching


def _block_arguments(
    model: nn.Module, blocks: nn.ModuleList, window: Tensor
) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what each block is called with besides its hidden states, seen in one forward of one window.

    So nothing is assumed of masks, positions or rotary embeddings, which differ between families, versions and
    (sliding windows) blocks. They do not depend on the text, and broadcast over a batch.
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


def achieved_sparsity(model: nn.Module) -> tuple[float, dict[str, float]]:
    """Return the fraction of exact zeros over all block linears, and that of each by name."""
    zeros = {name: int((linear.weight == 0).sum()) for name, linear in all_linears(model).items()}
    sizes = {name: linear.weight.numel() for name, linear in all_linears(model).items()}
    return sum(zeros.values()) / sum(sizes.values()), {name: zeros[name] / sizes[name] for name in zeros}
