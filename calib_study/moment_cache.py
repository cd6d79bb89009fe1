"""Statistics of dense models, kept on disk: the moments of every calibration sequence, the Gram matrices of a set.

A sequence's moments are a few hundred kilobytes, whatever is pruned with them later. So under the `dense` schedule
a run on sequences that were seen before, in any combination and for any method, pattern or sparsity that uses no
Gram matrix, costs no forward.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calib_study import paths
from calib_study.errors import InputError
from calib_study.windows import Tokens

# The layers that share each input, with its width, block by block: [[[["q", "k", "v"], 576], ...], ...]
Layout = list[list[tuple[list[str], int]]]
Moments = npt.NDArray[np.float32]  # (2, n_inputs): sums, then squares, of all inputs of all blocks in order

LIMIT_VARIABLE, LIMIT_GB = "CALIB_STUDY_MOMENTS_GB", 8.0
FORMAT = 1
KEY_DIGITS = 24
UNREADABLE = (OSError, ValueError, EOFError)


def size_limit() -> float:
    """Return how many bytes the statistics of one model may take on disk. Raises InputError for what is no number."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise InputError(f"{LIMIT_VARIABLE}={text!r}: expected a number of gigabytes, 0 to keep nothing.")
    return limit * 1e9


class MomentCache:
    """The statistics of one dense model in one precision, in a folder that any number of processes may share.

    Files are renamed into place when whole. What was used longest ago goes when the folder exceeds its limit.

    Args:
        identity: everything that decides the numbers besides the tokens: hash of the weights, dtype, device.
    """

    def __init__(self, identity: str, folder: Path | None = None) -> None:
        base = paths.cache_dir() / "moments" if folder is None else folder
        self.folder = base / hashlib.sha256(f"{FORMAT}:{identity}".encode()).hexdigest()[:KEY_DIGITS]
        self.limit = size_limit()

    def layout(self) -> Layout | None:
        """Return which layers share an input, None if nothing is known yet."""
        try:
            found: Layout = json.loads((self.folder / "layout.json").read_text(encoding="utf-8"))
        except UNREADABLE:
            return None
        return found

    def sequences(self, tokens: Tokens, layout: Layout) -> list[Moments | None]:
        """Return the moments of each window (n_samples, seq_len), None for those not seen before."""
        shape = (2, sum(width for block in layout for _, width in block))
        return [self._read(self._sequence_file(window), shape) for window in tokens]

    def put_sequences(self, tokens: Tokens, moments: Sequence[Moments], layout: Layout) -> None:
        """Keep the moments of windows, and then remove what was used longest ago if there is too much."""
        if not self.limit:
            return
        with paths.atomic_path(self.folder / "layout.json") as part:
            part.write_text(json.dumps(layout), encoding="utf-8")
        for window, found in zip(tokens, moments, strict=True):
            with paths.atomic_path(self._sequence_file(window)) as part, part.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)
        self._make_room()

    def has_grams(self, tokens: Tokens) -> bool:
        """Return whether the Gram matrices of this set of windows are kept."""
        folder = self._gram_folder(tokens)
        if not folder.is_dir():
            return False
        os.utime(folder)
        return True

    def grams(self, tokens: Tokens, index: int, widths: Sequence[int]) -> list[Tensor]:
        """Return the Gram matrices (d_in, d_in) of a block's inputs, in order, float32, mapped from disk."""
        flat = np.memmap(self._gram_folder(tokens) / f"{index}.f32", dtype=np.float32, mode="c")
        pieces = np.split(flat, np.cumsum([width * width for width in widths])[:-1])
        return [torch.from_numpy(piece).view(width, width) for piece, width in zip(pieces, widths, strict=True)]

    @contextmanager
    def keeping_grams(self, tokens: Tokens, n_bytes: int) -> Iterator[Path | None]:
        """Yield the folder to write a set's Gram matrices to, one file a block; None if they exceed the limit.

        The folder takes its place when the caller is done, and is removed if the caller fails.
        """
        final = self._gram_folder(tokens)
        if n_bytes > self.limit:
            yield None
            return
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        part.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if not final.exists():
                part.rename(final)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._make_room()

    def _read(self, file: Path, shape: tuple[int, int]) -> Moments | None:
        try:
            with file.open("rb") as stream:
                found: Moments = np.lib.format.read_array(stream, allow_pickle=False)
            os.utime(file)
        except UNREADABLE:  # absent, or damaged: it is derived, so it is made again
            return None
        return found if found.shape == shape and found.dtype == np.float32 else None

    def _sequence_file(self, window: Tokens) -> Path:
        return self.folder / "sequences" / f"{_digest(window)}.npy"

    def _gram_folder(self, tokens: Tokens) -> Path:
        together = "".join(sorted(_digest(window) for window in tokens))  # a sum does not depend on the order
        return self.folder / "grams" / hashlib.sha256(together.encode()).hexdigest()[:KEY_DIGITS]

    def _make_room(self) -> None:
        """Remove what was used longest ago until the folder is within its limit."""
        entries = []
        for entry in (*self.folder.glob("sequences/*.npy"), *self.folder.glob("grams/[!.]*")):
            try:
                files = list(entry.iterdir()) if entry.is_dir() else [entry]
                entries.append((entry.stat().st_mtime, sum(file.stat().st_size for file in files), entry))
            except FileNotFoundError:  # another process was faster
                continue
        excess = sum(size for _, size, _ in entries) - self.limit
        for _, size, entry in sorted(entries):
            if excess <= 0:
                return
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
            excess -= size


def _digest(window: Tokens) -> str:
    return hashlib.sha256(np.ascontiguousarray(window, dtype="<i8").tobytes()).hexdigest()[:KEY_DIGITS]
