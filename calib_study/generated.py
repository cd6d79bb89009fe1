"""Generated sources: folders of text that a model wrote, or that a filter chose, with a manifest of how.

`documents.jsonl` holds one text a line, `manifest.json` what it came from. Such a folder is a source wherever one is
accepted, as `selfgen:NAME` if it lies in the cache or in the project's `data/generated`, else by its path. It can
calibrate, never evaluate; so none of its texts is held out.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calib_study import paths
from calib_study.errors import DataError, InputError, unknown
from calib_study.formats import read_jsonl
from calib_study.manifests import Filter, Manifest, Synthesis
from calib_study.specs import problem_lines

SELFGEN = "selfgen:"
DOCUMENTS, MANIFEST = "documents.jsonl", "manifest.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def generated_home() -> Path:
    """Return the folder of the cache in which generated sources lie."""
    return paths.cache_dir() / "selfgen"


def published_home() -> Path:
    """Return the folder of the generated sources that are part of the project."""
    return paths.root() / "data" / "generated"


def named_folder(name: str) -> Path:
    """Return where the generated source of this name lies, published or in the cache, or will lie in the cache.

    Raises InputError for an unfit name.
    """
    name = name.removeprefix(SELFGEN)
    if not NAME.fullmatch(name):
        raise InputError(f"name {name!r}: use letters, digits, - _ and ., a letter or digit first, like 'own-text'.")
    published = published_home() / name
    return published if is_generated(published) else generated_home() / name


def generated_names() -> list[str]:
    """Return the names of all generated sources, published and in the cache, such as "selfgen:own-text"."""
    files = [file for home in (published_home(), generated_home()) for file in home.glob(f"[!.]*/{MANIFEST}")]
    return sorted({SELFGEN + file.parent.name for file in files})


def generated_summaries() -> list[tuple[str, str]]:
    """Return the names, each with a line about what it is."""
    rows = []
    for name in generated_names():
        try:
            rows.append((name, read_manifest(named_folder(name)).request.origin))
        except DataError:
            rows.append((name, "damaged: remove its folder, and generate it again"))
    return rows


def generated_folder(source: str) -> Path | None:
    """Return the folder of a generated source, None for any other. Raises InputError for an unknown name.

    Args:
        source: "selfgen:NAME", or a name or an absolute path as `sources.resolve_source` returns them.
    """
    if source.startswith(SELFGEN):
        folder = named_folder(source)
        if not is_generated(folder):
            raise unknown("generated source", source, generated_names())
        return folder
    folder = Path(source)
    return folder if folder.is_absolute() and is_generated(folder) else None


def is_generated(folder: Path) -> bool:
    """Return whether a folder is a generated source."""
    return (folder / MANIFEST).is_file() and (folder / DOCUMENTS).is_file()


# --- reading and writing ----------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a generated source. Raises DataError if it is damaged."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DataError(f"{folder / MANIFEST} is no manifest:\n{problem_lines(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {folder / MANIFEST}: {error}") from error


def read_generated(folder: Path) -> tuple[Manifest, list[str]]:
    """Return the manifest and the texts. Raises DataError unless the texts are those that the manifest names."""
    manifest = read_manifest(folder)
    file = folder / DOCUMENTS
    if hashlib.sha256(file.read_bytes()).hexdigest() != manifest.documents_sha256:
        raise DataError(
            f"{file} is not the file that {MANIFEST} names: it was changed. Generate it again, or copy the texts to a "
            "file of your own."
        )
    return manifest, read_jsonl(file)


def document_lines(texts: Sequence[str], ids: Sequence[Sequence[int]] | None = None) -> str:
    """Return the content of `documents.jsonl`: each text, with the token ids that were drawn if they are given."""
    rows: Iterable[dict[str, Any]] = ({"text": text} for text in texts)
    if ids is not None:
        rows = ({"text": text, "ids": list(drawn)} for text, drawn in zip(texts, ids, strict=True))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_generated(folder: Path, lines: str, **facts: Any) -> Manifest:
    """Write a generated source, whole or not at all, and return its manifest, of which `facts` are the other fields."""
    manifest = Manifest(documents_sha256=hashlib.sha256(lines.encode()).hexdigest(), **facts)
    paths.check_writable(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / DOCUMENTS).write_text(lines, encoding="utf-8", newline="\n")
        text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=1)
        (new / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            shutil.move(folder, Path(temporary) / "old")
        shutil.move(new, folder)
    return manifest


def check_target(folder: Path, request: Synthesis | Filter) -> bool:
    """Return whether a folder holds what is requested already; False if it is free.

    Raises InputError if it holds anything else, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output {folder} is a file; name a directory.")
    if is_generated(folder):
        if read_manifest(folder).request == request:
            read_generated(folder)
            return True
        raise InputError(f"{folder} holds text that was generated otherwise; choose another name, or remove it.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"output {folder} holds other files; name a new directory.")
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise InputError(f"cannot write to {folder}: {existing} is a file. Choose a folder you can write to.")
    paths.check_writable(existing)
    return False
