"""What the layers of the dense model see of a calibration set, block by block: from disk where it was seen before."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from calib_study.layers import decoder_blocks
from calib_study.moment_cache import Layout, MomentCache, Moments
from calib_study.moments import InputMoments
from calib_study.offload import Device, Placement
from calib_study.walk import Walk
from calib_study.windows import Tokens

BlockMoments = list[tuple[list[str], InputMoments]]  # for each input of a block: the layers that read it, by name


def dense_moments(
    model: nn.Module,
    tokens: Tokens,
    *,
    gram: bool,
    cache: MomentCache | None = None,
    device: Device | None = None,
    hidden: Placement = "device",
) -> Iterator[BlockMoments]:
    """Yield the input moments of each block of the dense model.

    A block may be pruned as soon as its moments have been yielded. Sums are rounded to float32 for each sequence
    whether they come from the cache or not, so that the cache changes no result.

    Args:
        tokens: (n_samples, seq_len) calibration windows. Only those that the cache does not know are passed
            through the model; all of them for Gram matrices of a set that it does not know.
        device, hidden: as for `Walk`. The moments are on the device that they name, or else on the block's own.
    """
    layout = cache.layout() if cache else None
    known = cache.sequences(tokens, layout) if cache and layout else [None] * len(tokens)
    seen = [found for found in known if found is not None]
    if cache and layout and len(seen) == len(tokens) and (not gram or cache.has_grams(tokens)):
        where = [device or next(block.parameters()).device for block in decoder_blocks(model)[1]]
        yield from _stored(tokens, np.stack(seen), layout, cache, gram=gram, where=where)
    else:
        known = [None] * len(tokens) if gram else known
        missing = [row for row, found in enumerate(known) if found is None]
        walk = Walk(model, tokens[missing], device, hidden)
        yield from _walked(walk, tokens, known, cache, gram=gram)


def _stored(
    tokens: Tokens, moments: Moments, layout: Layout, cache: MomentCache, *, gram: bool, where: Sequence[Device]
) -> Iterator[BlockMoments]:
    """Yield the moments of every block from arrays (n_samples, 2, n_inputs) and the cache's Gram matrices."""
    start = 0
    for index, groups in enumerate(layout):
        grams = cache.grams(tokens, index, [width for _, width in groups]) if gram else [None] * len(groups)
        block: BlockMoments = []
        for (names, width), product in zip(groups, grams, strict=True):
            block.append((names, _input_moments(moments[:, :, start : start + width], tokens, product, where[index])))
            start += width
        yield block


def _walked(
    walk: Walk, tokens: Tokens, known: Sequence[Moments | None], cache: MomentCache | None, *, gram: bool
) -> Iterator[BlockMoments]:
    """Yield the moments of every block, passing the windows that are not known through the model, and keep them."""
    missing = [row for row, found in enumerate(known) if found is None]
    n_blocks = len(walk.blocks)
    layout: Layout = []
    fresh: list[Moments] = []
    start = 0
    with ExitStack() as stack:
        folder: Path | None = None
        for index in range(n_blocks):
            seen = walk.moments(index, gram=gram, advance=index + 1 < n_blocks)
            layout.append([(names, seen[first].squares.shape[1]) for first, names in walk.groups(index).items()])
            if gram and cache and index == 0:
                n_bytes = 4 * n_blocks * sum(width * width for _, width in layout[0])
                folder = stack.enter_context(cache.keeping_grams(tokens, n_bytes))
            if folder is not None:
                _write_grams(folder / f"{index}.f32", [seen[names[0]] for names, _ in layout[-1]])
            block: BlockMoments = []
            for names, width in layout[-1]:
                own = seen[names[0]]
                fresh.append(torch.stack([own.sums, own.squares], dim=1).float().cpu().numpy())
                whole = _merged(fresh[-1], known, slice(start, start + width))
                product = None if own.gram is None else own.gram.float()
                block.append((names, _input_moments(whole, tokens, product, own.squares.device)))
                start += width
            yield block
    if cache is not None:
        cache.put_sequences(tokens[missing], list(np.concatenate(fresh, axis=2)), layout)


def _merged(fresh: Moments, known: Sequence[Moments | None], columns: slice) -> Moments:
    """Return the moments of one input for all windows, (n_samples, 2, d_in): those just seen among those known."""
    new = iter(fresh)
    return np.stack([next(new) if found is None else found[:, columns] for found in known])


def _input_moments(piece: Moments, tokens: Tokens, gram: Tensor | None, device: Device) -> InputMoments:
    """Return moments from their float32 form (n_samples, 2, d_in), in float64."""
    wide = torch.from_numpy(piece).to(device).double()
    return InputMoments(wide[:, 0], wide[:, 1], tokens.shape[1], None if gram is None else gram.to(device).double())


def _write_grams(file: Path, inputs: Sequence[InputMoments]) -> None:
    with file.open("wb") as stream:
        for moments in inputs:
            if moments.gram is not None:
                moments.gram.float().cpu().numpy().tofile(stream)
