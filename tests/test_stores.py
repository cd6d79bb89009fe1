"""Folders of results: what `test_records` says of records holds for any result; here, computing what is missing."""

from pathlib import Path

import pytest

from calib_study.stores import FileStore, Result, compute_missing


class Note(Result):
    name: str

    @property
    def key(self) -> str:
        return self.name


class Notes(FileStore[Note]):
    noun = "note"
    computed = "note"

    def read(self, file: Path) -> Note:
        return Note.model_validate_json(file.read_text(encoding="utf-8"))


def test_only_what_is_missing_is_computed_and_each_is_stored_when_it_is_finished(tmp_path: Path) -> None:
    store = Notes(tmp_path)
    store.put(Note(name="a"))
    asked: list[str] = []

    def compute(name: str) -> None:
        asked.append(name)
        if name == "c":
            raise KeyboardInterrupt
        store.put(Note(name=name))

    wanted = {name: name for name in "abcd"}
    with pytest.raises(KeyboardInterrupt):
        compute_missing(wanted, store, compute, title=str, progress=False)
    assert asked == ["b", "c"]
    assert sorted(file.stem for file in tmp_path.glob("*.json")) == ["a", "b"]
    store.claim("c").acquire()  # free again


def test_what_another_has_claimed_is_left_to_it(tmp_path: Path) -> None:
    store, other = Notes(tmp_path), Notes(tmp_path)
    held = other.claim("a")
    held.acquire()
    done: list[str] = []

    def compute(name: str) -> None:
        done.append(name)
        store.put(Note(name=name))
        if name == "b":  # the other finishes meanwhile
            other.put(Note(name="a"))
            held.release()

    compute_missing({"a": "a", "b": "b"}, store, compute, title=str, progress=False)
    assert done == ["b"]
