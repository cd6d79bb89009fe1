"""Where things lie: the project, the cache of fetched and derived files, the published records."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calib_study.errors import DataError, InputError

CACHE_VARIABLE = "CALIB_STUDY_CACHE"
RECORDS_VARIABLE = "CALIB_STUDY_RECORDS"


def root() -> Path:
    """Return the project's folder: the one that holds `calib_study/`, `data/`, `notebooks/` and `book/`."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / "data" / "catalogue.toml").is_file():
        raise DataError(
            f"{folder} has no data/catalogue.toml. calib_study works from a checkout of the project; "
            "install it with `pip install -e .` from there."
        )
    return folder


def cache_dir() -> Path:
    """Return the folder of everything fetched or derived: $CALIB_STUDY_CACHE, or data/cache in the project."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().resolve() if chosen else root() / "data" / "cache"


def records_dir() -> Path:
    """Return the folder for records computed here: $CALIB_STUDY_RECORDS, or records/ in the cache."""
    chosen = os.environ.get(RECORDS_VARIABLE)
    return Path(chosen).expanduser().resolve() if chosen else cache_dir() / "records"


def results_dir() -> Path:
    """Return the folder of the published records, which are part of the project."""
    return root() / "data" / "results"


def measurements_dir() -> Path:
    """Return the folder for measurements made here: measurements/ in the folder for records."""
    return records_dir() / "measurements"


def published_measurements_dir() -> Path:
    """Return the folder of the published measurements, which are part of the project."""
    return root() / "data" / "measurements"


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; rename it to `final` on success, remove it on any failure.

    Readers therefore see either no file or a whole one, whatever kills the writer.
    Raises InputError if the folder cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
    except OSError as error:
        raise InputError(f"cannot write {final}: {error.strerror}. Choose a folder you can write to.") from error
    os.close(handle)
    os.chmod(name, 0o644)
    part = Path(name)
    try:
        yield part
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise InputError unless files can be written in `folder` (made if absent)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}. Choose a folder you can write to.") from error
