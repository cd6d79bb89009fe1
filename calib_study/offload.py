"""Models bigger than the device: weights that visit it block by block, and hidden states kept elsewhere.

Source of the idea: the memory of one block is all that pruning block by block needs (Frantar & Alistarh 2023,
section 4, where it fits models of 175 billion weights on one GPU).
"""

import math
import mmap
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol, get_args

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from calib_study.errors import InputError, unknown
from calib_study.layers import decoder_blocks

Device = torch.device | str
Placement = Literal["device", "cpu", "file"]
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of a size in bytes, to compare bits


class HiddenStates(Protocol):
    """Batches of hidden states (n, seq_len, d_model) that are read and replaced one at a time; a list is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...
    def __setitem__(self, index: int, states: Tensor, /) -> None: ...
    def __iter__(self) -> Iterator[Tensor]: ...


class FileStates:
    """Hidden states in a temporary file, of which only the batch in use is mapped into memory.

    The file is in the folder for temporary files (TMPDIR says which) and never listed there where the system allows
    that; it is gone when this object is, or the process, however they end.

    Args:
        batches: the states, of any width and dtype. They are taken one at a time.
        n_tokens: how many tokens there are in all of them, to see beforehand that they fit.

    Raises InputError if the disk has no room for them.
    """

    def __init__(self, batches: Iterable[Tensor], n_tokens: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, torch.Size, torch.dtype]] = []
        end = 0
        for batch in batches:
            if not self._places:
                _check_room(n_tokens * batch.shape[-1] * batch.element_size())
            start = math.ceil(end / mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            end = start + batch.nbytes
            self._places.append((start, batch.shape, batch.dtype))
            self._write(start, batch)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> Tensor:
        start, shape, dtype = self._places[index]
        mapped = mmap.mmap(self._file.fileno(), shape.numel() * dtype.itemsize, offset=start)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)  # which keeps the mapping while it lives

    def __setitem__(self, index: int, states: Tensor, /) -> None:
        self[index].copy_(states)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def _write(self, start: int, batch: Tensor) -> None:
        """Write a batch as bytes: unlike a mapping, this reserves the space, and fails cleanly if there is none."""
        try:
            self._file.seek(start)
            self._file.write(batch.cpu().contiguous().view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"the hidden states do not fit into {tempfile.gettempdir()}: {error.strerror}.") from error


def _check_room(n_bytes: int) -> None:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise InputError(
            f"the hidden states of the calibration windows take {n_bytes / 1e9:,.2f} GB, and {folder} has "
            f"{free / 1e9:,.2f} GB free. Set TMPDIR to a folder with more, or calibrate on fewer tokens."
        )


def placed(batches: Iterable[Tensor], placement: Placement, device: Device, n_tokens: int) -> HiddenStates:
    """Return hidden states where they are to be kept: on the device, in the CPU's memory, or in a file.

    Args:
        n_tokens: how many tokens there are in all batches.
    """
    match placement:
        case "device":
            return [batch.to(device) for batch in batches]
        case "cpu":
            return [batch.cpu() for batch in batches]
        case "file":
            return FileStates(batches, n_tokens)
        case other:
            raise unknown("place for hidden states", other, get_args(Placement))


def check_weights(model: nn.Module, device: Device | None) -> None:
    """Raise InputError for weights that cannot be pruned where they are.

    Args:
        device: where blocks are to be moved one at a time; None = they stay.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise InputError(
                f"{name} is not in memory: a device_map has left it on the CPU or on disk, to be copied from there at "
                "each use, and what pruning does to such a copy is lost. Load the model without device_map, and move "
                "its blocks to the device one at a time instead: --offload on the command line."
            )
    if device is not None and len({parameter.device for parameter in model.parameters()}) > 1:
        raise InputError(
            f"the model is spread over several devices by a device_map, so its blocks cannot be moved to {device} one "
            "at a time. Choose one of both."
        )
    prefix, blocks = decoder_blocks(model)
    for index, block in enumerate(blocks):
        devices = sorted({str(parameter.device) for parameter in block.parameters()})
        if len(devices) > 1:
            raise InputError(
                f"{prefix}.{index} is spread over {', '.join(devices)}. Use a device_map that keeps each block whole; "
                f'"auto" does.'
            )


@contextmanager
def moved(module: nn.Module, device: Device | None, *, changes: bool = True) -> Iterator[None]:
    """Hold copies of a module's parameters and buffers on `device` inside; afterwards they are where they were.

    What was changed inside is copied back, even after an exception. What was not is left alone: weights that are
    mapped from a file stay so, and take no memory.

    Args:
        device: None = nothing is moved.
        changes: False if nothing is changed inside, so that nothing need be compared.
    """
    if device is None:
        yield
        return
    homes: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in (*module.parameters(), *module.buffers()):
            home = tensor.data
            tensor.data = home.to(device, copy=True)
            homes.append((tensor, home))
        yield
    finally:
        for tensor, home in homes:
            if changes:
                _copy_changed_(home, tensor.data.to(home.device))
            tensor.data = home


def _copy_changed_(home: Tensor, new: Tensor) -> None:
    """Copy `new` into `home` unless it is the same, bit by bit: zeros have signs, and NaN is not equal to itself."""
    bits = BITS[home.element_size()]
    if not torch.equal(home.view(bits), new.view(bits)):
        home.copy_(new)


@contextmanager
def streamed(model: nn.Module, device: Device | None) -> Iterator[None]:
    """Let forwards inside compute each decoder block on `device`, which holds one block at a time.

    Embeddings, the last norm and lm_head are computed where they are. For evaluation: no weight may change.

    Args:
        device: None = blocks are computed where they are, too.
    """
    if device is None:
        yield
        return
    held = ExitStack()
    home = next(model.parameters()).device

    def enter(block: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
        held.enter_context(moved(block, device, changes=False))
        return send_to_device(inputs, device), send_to_device(keywords, device)

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        held.close()
        return send_to_device(output, home)

    with ExitStack() as hooks:
        hooks.callback(held.close)
        for block in decoder_blocks(model)[1]:
            hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(leave).remove)
        yield
