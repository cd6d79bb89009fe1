"""Fetch the catalogue's archives, pinned and hash-checked, and read their members in place.

Nothing of an archive is ever installed or run. A file stands under its final name only after its size and
sha256 have been checked. A broken connection leaves `<filename>.part`, which the next attempt continues.
"""

import errno
import hashlib
import os
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from pathlib import Path

from calib_study import paths
from calib_study.catalogue import Archive, Catalogue, load_catalogue
from calib_study.errors import DataError, InputError, unknown

Taker = Callable[[Archive, Path], None]  # writes an archive to a path


def fetch(
    names: Iterable[str] | None = None,
    *,
    accept: Collection[str] = (),
    from_dir: Path | None = None,
    catalogue: Catalogue | None = None,
) -> list[Path]:
    """Bring archives into the cache and verify them; return their paths in catalogue order.

    Files that are there already are verified and not downloaded again, so a second call needs no network.

    Args:
        names: archives, or models and sources, which stand for the archives they need. None means every
            archive whose terms need no acceptance or are in `accept`.
        accept: names of terms that the user accepts, such as "gemma".
        from_dir: take missing files from this folder, with the same checks, instead of the package index.

    Raises: InputError for an unknown name or terms not accepted; DataError if a file cannot be had whole.
    """
    catalogue = load_catalogue() if catalogue is None else catalogue
    chosen = select_archives(names, accept, catalogue)
    if from_dir is not None and not from_dir.is_dir():
        raise InputError(f"--from {from_dir}: there is no such folder.")
    folder = _archives_folder()
    missing = [archive for archive in chosen if not (folder / archive.filename).is_file()]
    for archive in chosen:
        if archive not in missing:
            _check_cached(folder / archive.filename, archive)
    if missing:
        paths.check_writable(folder)
        with ExitStack() as stack:
            take, origin = _from_folder(from_dir, missing) if from_dir else _from_index(stack)
            for archive in missing:
                _bring(archive, folder / archive.filename, take, origin)
    return [folder / archive.filename for archive in chosen]


def _from_index(stack: ExitStack) -> tuple[Taker, str]:
    """Return how to take an archive from the package index, and a name for it in messages."""
    from calib_study.package_index import PackageIndex

    index = stack.enter_context(PackageIndex())
    return index.download, str(index)


def _from_folder(folder: Path, missing: list[Archive]) -> tuple[Taker, str]:
    """Return how to take an archive from a folder. Raises InputError naming every file that is not in it."""
    absent = [archive.filename for archive in missing if not (folder / archive.filename).is_file()]
    if absent:
        raise InputError(f"--from {folder}: the folder lacks {', '.join(absent)}.")

    def take(archive: Archive, part: Path) -> None:
        shutil.copyfile(folder / archive.filename, part)

    return take, str(folder)


def select_archives(names: Iterable[str] | None, accept: Collection[str], catalogue: Catalogue) -> list[Archive]:
    """Return the archives that `names` stand for, in catalogue order; see `fetch` for the arguments."""
    for name in accept:
        if name not in catalogue.terms:
            raise unknown("terms", name, catalogue.terms)
    if names is None:
        free = (None, *accept)
        return [archive for archive in catalogue.archives.values() if archive.needs_acceptance in free]
    users = catalogue.users()
    wanted: set[str] = set()
    for name in names:
        if name not in users and name not in catalogue.archives:
            raise unknown("archive", name, [*catalogue.archives, *users])
        wanted.update(users[name].archives if name in users else [name])
    chosen = [archive for archive in catalogue.archives.values() if archive.name in wanted]
    for archive in chosen:
        if archive.needs_acceptance is not None and archive.needs_acceptance not in accept:
            terms = catalogue.terms[archive.needs_acceptance]
            raise InputError(
                f"{archive.name} comes under the {terms.title} ({terms.url}). If you accept them, "
                f"add `--accept {terms.name}` to the command."
            )
    return chosen


def archive_path(name: str, *, catalogue: Catalogue | None = None) -> Path:
    """Return where the archive called `name` lies. Raises DataError, with the command to type, if absent."""
    catalogue = load_catalogue() if catalogue is None else catalogue
    archive = catalogue.archive(name)
    path = _archives_folder() / archive.filename
    if not path.is_file():
        # A model may need several archives, which its own name fetches together.
        wanted = next((model.name for model in catalogue.models.values() if name in model.archives), name)
        accept = "" if archive.needs_acceptance is None else f" --accept {archive.needs_acceptance}"
        raise DataError(f"{path} has not been fetched. Run: calib-study fetch {wanted}{accept}")
    return path


def read_member(archive: str, member: str, *, catalogue: Catalogue | None = None) -> bytes:
    """Return the bytes of one file inside an archive, read in place and checked against its sha256.

    Raises InputError if the catalogue lists no such member, DataError if the archive is absent or damaged.
    """
    entry = (load_catalogue() if catalogue is None else catalogue).archive(archive)
    if member not in entry.members:
        raise unknown(f"member of {archive}", member, entry.members)
    path = archive_path(archive, catalogue=catalogue)
    advice = f"Delete {path} and run: calib-study fetch {archive}"
    try:
        content = _read_zip(path, member) if path.suffix == ".whl" else _read_tar(path, member)
    except KeyError as error:
        raise DataError(f"{path} has no member {member}. {advice}") from error
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(f"cannot read {member} in {path}: {error}. {advice}") from error
    expected, got = entry.members[member].sha256, hashlib.sha256(content).hexdigest()
    if got != expected:
        raise DataError(f"{member} in {path}: expected sha256 {expected}, got {got}. {advice}")
    return content


def _read_zip(path: Path, member: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(member)


def _read_tar(path: Path, member: str) -> bytes:
    with tarfile.open(path, "r:gz") as archive:
        stream = archive.extractfile(member)  # KeyError if absent, None if it is no plain file
        if stream is None:
            raise KeyError(member)
        return stream.read()


def _archives_folder() -> Path:
    return paths.cache_dir() / "archives"


def _problem(path: Path, archive: Archive) -> str | None:
    """Return what is wrong with a file that should be the archive, or None if size and sha256 are right."""
    size = path.stat().st_size
    if size != archive.size:
        return f"expected {archive.size} bytes, got {size}"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == archive.sha256 else f"expected sha256 {archive.sha256}, got {digest}"


def _check_cached(path: Path, archive: Archive) -> None:
    """Raise DataError unless the file in the cache is the archive."""
    if problem := _problem(path, archive):
        raise DataError(
            f"{path} is not the file that the catalogue pins: {problem}. "
            f"Delete it and run: calib-study fetch {archive.name}"
        )


def _bring(archive: Archive, final: Path, take: Taker, origin: str) -> None:
    """Let `take` write the file beside `final`, check it, rename it; one process at a time does this."""
    from filelock import FileLock, Timeout

    lock = FileLock(final.with_name(f".{final.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is fetching {final.name}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        if final.is_file():  # that process has brought it
            return _check_cached(final, archive)
        part = final.with_name(f"{final.name}.part")
        try:
            take(archive, part)
            problem = _problem(part, archive)
            if problem is None:
                os.replace(part, final)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _no_room(archive, final.parent, error) from error
        if problem is not None:
            part.unlink()
            raise DataError(
                f"{archive.filename} from {origin} is not the file that the catalogue pins: {problem}. It "
                "was removed. Run the command again; if it ends the same, get the file from another place."
            )
    finally:
        lock.release()


def _no_room(archive: Archive, folder: Path, error: OSError) -> DataError:
    """Return the error for a file that could not be written, with the space that it needs."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else error.strerror or str(error)
    free = shutil.disk_usage(folder).free
    return DataError(
        f"cannot write {archive.filename} in {folder}: {reason}. It needs {archive.size / 1e6:.1f} MB, and "
        f"{free / 1e6:.1f} MB are free. Make room, or choose another folder with the environment variable "
        f"{paths.CACHE_VARIABLE}."
    )
