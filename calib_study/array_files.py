"""Arrays in one compressed file, the same bytes for the same content: what a record keeps item by item."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from calib_study.errors import StudyError

Array = npt.NDArray[Any]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can hold


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return a .npz file: one .npy member an array, by name, without times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, arrays[name], allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def from_bytes(content: bytes, name: str) -> dict[str, Array]:
    """Return the arrays of a .npz file. Raises StudyError, with the file's `name`, if it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return dict(stored)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise StudyError(f"{name}: not a file of arrays ({error}).") from error
