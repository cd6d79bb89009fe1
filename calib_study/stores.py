"""Folders of results: one JSON file for each, a file of arrays beside it, each written whole or not at all.

Files are named by a key that is a hash of what was asked, written under a temporary name and renamed. So any number
of processes can share a folder, a killed one loses only what it was computing, and no reader sees half a file.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import ConfigDict, ValidationError

from calib_study import paths
from calib_study.array_files import Array, from_bytes, to_bytes
from calib_study.errors import StudyError
from calib_study.progress import bar
from calib_study.specs import Frozen, problem_lines


class Part(Frozen):
    """Base of all parts of a result: types are exact, so that no number is kept as text."""

    model_config = ConfigDict(strict=True)


class Result(Part):
    """What a store keeps.

    Attributes:
        arrays_sha256: hash of the file of arrays beside it; None if it has none.
    """

    arrays_sha256: str | None = None

    @property
    def key(self) -> str:
        """The name of its files: a hash of what was asked."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return the result as JSON text, numbers to the last bit."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n"


Kept = TypeVar("Kept", bound=Result)
Wanted = TypeVar("Wanted")


def parsed(text: str, name: str, kind: type[Kept], noun: str, version: int) -> Kept:
    """Return the result in a JSON text. Raises StudyError saying what is wrong with the file called `name`.

    Args:
        kind: the class of result. noun: what it is called. version: the schema that this code reads.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise StudyError(f"{name}: not JSON; perhaps the file is truncated ({error}).") from error
    if isinstance(fields, dict) and fields.get("schema_version") not in (None, version):
        raise StudyError(f"{name}: written by another version of calib-study (schema {fields['schema_version']!r}).")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise StudyError(f"{name}: not a {noun} of this study:\n{problem_lines(error)}") from error


def text_of(file: Path) -> str:
    """Return what a file holds. Raises StudyError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{file.name}: cannot be read ({error}).") from error


class FileStore(Generic[Kept]):
    """Results in folders: new ones are written to `write_dir`; all of `read_dirs` and it are read.

    A subclass says how a file is read, what a result is called, and what is computed to make one.
    """

    noun: ClassVar[str]
    computed: ClassVar[str]

    def __init__(self, write_dir: Path, read_dirs: Iterable[Path] = ()) -> None:
        self.write_dir = write_dir
        self.read_dirs = tuple(dict.fromkeys([*read_dirs, write_dir]))

    def read(self, file: Path) -> Kept:
        """Return the result in a file. Raises StudyError if it is none."""
        raise NotImplementedError

    def get(self, key: str) -> Kept | None:
        """Return the result of that name, or None. Raises StudyError if its file is damaged."""
        for folder in self.read_dirs:
            file = folder / f"{key}.json"
            if file.exists():
                try:
                    return self.read(file)
                except StudyError as error:
                    raise StudyError(f"{error}\nTo compute this {self.computed} again, remove {file}") from error
        return None

    def put(self, result: Kept, arrays: Mapping[str, Array] | None = None) -> Path:
        """Write a result, and before it the arrays that belong to it; return its path.

        Each file appears whole or not at all, the JSON last.
        """
        if arrays:
            content = to_bytes(arrays)
            result = result.model_copy(update={"arrays_sha256": hashlib.sha256(content).hexdigest()})
            with paths.atomic_path(self.write_dir / f"{result.key}.npz") as part:
                part.write_bytes(content)
        file = self.write_dir / f"{result.key}.json"
        text = result.to_json()
        with paths.atomic_path(file) as part:
            part.write_text(text, encoding="utf-8")
        return file

    def arrays(self, result: Kept) -> dict[str, Array]:
        """Return the arrays of a result, empty if it has none. Raises StudyError if their file is lost or changed."""
        if result.arrays_sha256 is None:
            return {}
        name = f"{result.key}.npz"
        for folder in self.read_dirs:
            try:
                content = (folder / name).read_bytes()
            except FileNotFoundError:
                continue
            if hashlib.sha256(content).hexdigest() == result.arrays_sha256:
                return from_bytes(content, name)
        raise StudyError(
            f"{name}: the arrays of {self.noun} {result.key} are missing or were changed. To compute the "
            f"{self.computed} again, remove {result.key}.json."
        )

    def claim(self, key: str) -> FileLock:
        """Return the lock that a process holds while it computes a result; the system frees it if the process dies."""
        folder = self.write_dir / ".claims"
        paths.check_writable(folder)
        return FileLock(folder / f"{key}.lock", timeout=0)

    def scan(self) -> tuple[list[Kept], list[str]]:
        """Return all readable results, sorted by key, and one line for each file that is not one."""
        results: dict[str, Kept] = {}
        problems = []
        for folder in self.read_dirs:
            for file in sorted(folder.glob("*.json")):
                try:
                    results.setdefault(file.stem, self.read(file))
                except StudyError as error:
                    problems.append(f"{folder}: {error}")
        return [results[key] for key in sorted(results)], problems


def compute_missing(
    wanted: Mapping[str, Wanted],
    store: FileStore[Any],
    compute: Callable[[Wanted], Any],
    *,
    title: Callable[[Wanted], str],
    progress: bool = True,
) -> None:
    """Compute until the store has all that is wanted, leaving to other processes what they have claimed.

    Args:
        wanted: by key. compute: computes one of them and puts it into the store. title: what the bar says of it.
    """
    waiting = dict(wanted)
    with bar(len(wanted), f"{store.computed}s", store.computed, shown=progress) as shown:
        while waiting:
            finished = 0
            for key, one in list(waiting.items()):
                with _claimed(store.claim(key)) as ours:
                    if store.get(key) is None:
                        if not ours:
                            continue
                        shown.set_postfix_str(title(one))
                        compute(one)
                del waiting[key]
                finished += 1
                shown.update()
            if not finished:
                time.sleep(1.0)  # another process holds all that is left


@contextmanager
def _claimed(lock: FileLock) -> Iterator[bool]:
    """Yield True if this process has the lock while inside."""
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
