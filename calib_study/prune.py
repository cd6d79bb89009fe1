"""Pruning a model in place: which statistics, taken when, and used on which block.

Source of the block-by-block schedule: the driver shared by Wanda and SparseGPT (Wanda, section 3; Frantar &
Alistarh 2023, section 3). Embeddings, norms and lm_head are untouched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from calib_study import scores
from calib_study.criteria import Request, prune_group_
from calib_study.dense_moments import dense_moments
from calib_study.errors import InputError
from calib_study.layers import Layer, all_layers, block_layers, decoder_blocks
from calib_study.methods import Pattern
from calib_study.moment_cache import MomentCache
from calib_study.moments import InputMoments
from calib_study.offload import Device, Placement, check_weights, moved
from calib_study.owl import allocate, allocate_n_m, outlier_share
from calib_study.progress import bar
from calib_study.specs import Owl
from calib_study.walk import Walk
from calib_study.windows import Tokens

GroupPruner = Callable[[Sequence[str], InputMoments], None]  # prunes the layers of those names, which share an input


def prune_(
    model: nn.Module,
    request: Request | Sequence[Request],
    tokens: Tokens | None = None,
    *,
    schedule: str = "block",
    cache: MomentCache | None = None,
    device: Device | None = None,
    hidden: Placement = "device",
    progress: bool = True,
) -> None:
    """Prune every block linear of `model` in place.

    Args:
        request: what to do, to all blocks alike or one for each block (as OWL allocates it).
        tokens: (n_samples, seq_len) calibration windows; None for methods that need none.
        schedule: when statistics are taken. "block" (the papers'): of the dense block, on inputs from the pruned
            blocks before it; two passes. "sequential": of each layer's input when it arrives, from the pruned
            layers before it in its own block too; one pass. "dense": of the dense model alone; one pass.
        cache: where statistics of the dense model are kept; under "dense", windows seen before then cost no pass.
        device: where blocks are moved to, one at a time, to be pruned there; None = each is pruned where it is.
        hidden: where the hidden states of all windows are kept meanwhile; see `Walk`. Results are the same.

    Raises InputError for a pattern that does not fit a layer, before any work, and NumericalError, with the
    layer's name, if activations are not finite. Hooks, training flag and cache setting are restored in any case.
    """
    prefix, blocks = decoder_blocks(model)
    requests = [request] * len(blocks) if isinstance(request, Request) else list(request)
    for wanted, block in zip(requests, blocks, strict=True):
        check_pattern(prefix, block_layers(block), wanted.pattern)
    check_weights(model, device)
    method = requests[0].method
    if method.name == "dense":
        return
    if method.needs_calibration and tokens is None:
        raise InputError(f"method {method.name!r} needs calibration windows, and got none.")
    gram = method.statistics == "gram"
    pruners = [
        partial(_prune_group_, f"{prefix}.{index}", block_layers(block), wanted)
        for index, (block, wanted) in enumerate(zip(blocks, requests, strict=True))
    ]
    with torch.no_grad(), evaluation_mode(model), bar(len(blocks), "pruning", "block", shown=progress) as done:
        if not method.needs_calibration or tokens is None:
            for prune_group, block in zip(pruners, blocks, strict=True):
                with moved(block, device):
                    prune_group(list(block_layers(block)), None)
                done.update()
        elif schedule == "dense":
            seen = dense_moments(model, tokens, gram=gram, cache=cache, device=device, hidden=hidden)
            for prune_group, block, inputs in zip(pruners, blocks, seen, strict=True):
                with moved(block, device):
                    for names, moments in inputs:
                        prune_group(names, moments)
                done.update()
        else:
            walk = Walk(model, tokens, device, hidden)
            for index, prune_group in enumerate(pruners):
                with walk.resident(index):
                    _prune_block_(walk, index, prune_group, schedule, gram=gram)
                done.update()


def _prune_group_(
    block: str, layers: Mapping[str, Layer], request: Request, names: Sequence[str], moments: InputMoments | None
) -> None:
    """Prune some layers of a block that share an input."""
    prune_group_({f"{block}.{name}": layers[name] for name in names}, moments, request)


def _prune_block_(walk: Walk, index: int, prune_group: GroupPruner, schedule: str, *, gram: bool) -> None:
    """Prune one block by statistics of inputs from pruned blocks, and bring the hidden states to the next."""
    if schedule == "sequential":
        walk.advance_pruning(index, prune_group, gram=gram)
        return
    moments = walk.moments(index, gram=gram)
    for first, names in walk.groups(index).items():
        prune_group(names, moments[first])
    if index + 1 < len(walk.blocks):
        walk.advance(index)


def check_pattern(prefix: str, layers: dict[str, Layer], pattern: Pattern) -> None:
    """Raise InputError, naming the layer, if an N:M pattern does not divide the inputs of a layer."""
    for name, layer in layers.items():
        if pattern.structured and layer.d_in % pattern.group:
            raise InputError(
                f"pattern {pattern.kept}:{pattern.group} does not fit {prefix}.*.{name}: its {layer.d_in} inputs are "
                f"not a multiple of {pattern.group}."
            )


def allocated(
    model: nn.Module,
    request: Request,
    tokens: Tokens,
    owl: Owl,
    *,
    cache: MomentCache | None = None,
    device: Device | None = None,
    hidden: Placement = "device",
    progress: bool = True,
) -> list[Request]:
    """Return one request for each block: OWL's share of the sparsity, from statistics of the dense model.

    That is one pass, or none for windows whose statistics `cache` has.
    Source: Yin et al. 2024, section 3: blocks with more outliers among their Wanda scores lose fewer weights.
    """
    blocks = decoder_blocks(model)[1]
    outliers = []
    with torch.no_grad(), evaluation_mode(model), bar(len(blocks), "outliers", "block", shown=progress) as done:
        moments = dense_moments(model, tokens, gram=False, cache=cache, device=device, hidden=hidden)
        for block, inputs in zip(blocks, moments, strict=True):
            layers = block_layers(block)
            with moved(block, device, changes=False):
                worth = [scores.wanda(layers[name].weight(), seen.norms()) for names, seen in inputs for name in names]
                outliers.append(outlier_share(worth, owl.outlier_multiple))
            done.update()
    if request.pattern.structured:
        patterns = allocate_n_m(outliers, request.pattern, lam=owl.lam)
        return [replace(request, pattern=pattern, sparsity=pattern.sparsity or 0.0) for pattern in patterns]
    return [replace(request, sparsity=share) for share in allocate(outliers, request.sparsity, lam=owl.lam)]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
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


def achieved_sparsity(model: nn.Module) -> tuple[float, dict[str, float]]:
    """Return the fraction of exact zeros over all block linears, and that of each by name."""
    layers = all_layers(model)
    zeros = {name: int((layer.weight() == 0).sum()) for name, layer in layers.items()}
    sizes = {name: layer.d_out * layer.d_in for name, layer in layers.items()}
    return sum(zeros.values()) / sum(sizes.values()), {name: zeros[name] / sizes[name] for name in zeros}
