"""Sources of text: documents in canonical order, cleaned, and split once into calibration and held-out parts.

A source is named by the catalogue ("c4"), is a data set of the hub ("hub:c4"), is a path to the user's own
text, or was given to `register_source`. All are cleaned and split by the same rules. The split depends on the
text of a document alone, which is therefore on the same side in whatever source it stands. Text that a model wrote
(`calib_study.generated`) is a source too, but has no held-out part.

The calibration part is itself split in two, named "chat@seen" and "chat@unseen": what the glass-box models
(`calib_study.glassbox`) are trained on, and what they never saw. Each calibrates as a source of its own.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from calib_study import paths
from calib_study.catalogue import RANDOM, HubEntry, SourceEntry, load_catalogue
from calib_study.errors import DataError, InputError, unknown
from calib_study.fetch import read_member
from calib_study.formats import FILE_SUFFIXES, path_documents, read_documents, read_jsonl, text_files
from calib_study.generated import SELFGEN, generated_folder, generated_names, is_generated, read_generated
from calib_study.mixtures import mixture_name, parse_mixture
from calib_study.progress import bar

Part = Literal["calibration", "held_out"]
HubLoader = Callable[..., Iterable[Mapping[str, Any]]]  # called as `datasets.load_dataset` is
HELD_OUT_ONE_IN = 4  # documents, by hash
HUB = "hub:"
UNSEEN_ONE_IN = 4  # documents of the calibration part, by another part of the hash
SEEN, UNSEEN = "seen", "unseen"
VIEWS = (SEEN, UNSEEN)
NOT_FOR_EVALUATION = "its text was generated, which can serve for calibration, not for evaluation."
VIEW_NOT_FOR_EVALUATION = "a part of the calibration text, seen or unseen, cannot serve for evaluation."
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")  # lost in decoding; half of a surrogate pair


@dataclass(frozen=True)
class Source:
    """A source and all its documents, cleaned, in canonical order."""

    name: str
    summary: str
    licence: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class _Registered:
    loader: Callable[[], Iterable[str]]
    summary: str
    licence: str


_registered: dict[str, _Registered] = {}  # the user's own, for the life of the process


def register_source(name: str, documents_loader: Callable[[], Iterable[str]], summary: str, licence: str) -> None:
    """Make `name` a source in this process, whose documents `documents_loader()` returns in a fixed order.

    The documents are cleaned and split like those of every source. A name registered before is replaced, so
    that a notebook cell can be run again. Raises InputError for an unfit name or one of the catalogue's.
    """
    if name in load_catalogue().sources:
        raise InputError(f"source {name!r} is in the catalogue already. Choose another name.")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise InputError(
            f"source name {name!r}: use lower-case letters, digits, - and _, a letter first, like 'my-text'."
        )
    _registered[name] = _Registered(documents_loader, summary, licence)


def source_names() -> list[str]:
    """Return the names of the catalogue's sources in its order, then the registered ones, then `random`."""
    return [*(name for name in load_catalogue().sources if name != RANDOM), *_registered, RANDOM]


def hub_names() -> list[str]:
    """Return the names of the hub data sets, such as "hub:c4"; they need a network the first time."""
    return [HUB + name for name in load_catalogue().hub]


def resolve_source(name_or_path: str) -> str:
    """Return the name of a source as it is, or its path made absolute, checked to be there.

    A mixture, such as "c4:0.7,code:0.3", comes back with its weights summing to 1. "chat@seen" is a part of "chat".
    Fast: it reads no archive and no text. Raises InputError with near matches, or saying what a path must be.
    """
    if name_or_path in source_names() or name_or_path in hub_names():
        return name_or_path
    if parts := parse_mixture(name_or_path):
        return mixture_name(tuple((resolve_source(name), share) for name, share in parts))
    if name_or_path.startswith(SELFGEN) and generated_folder(name_or_path):
        return name_or_path
    if viewed := parse_view(name_or_path):
        return _resolve_view(*viewed)
    path = Path(name_or_path).expanduser()
    if name_or_path.startswith(HUB):
        raise unknown("hub data set", name_or_path, hub_names())
    if not name_or_path or not path.exists():
        if path.suffix in FILE_SUFFIXES or path.name != name_or_path:
            raise InputError(f"source {name_or_path!r}: there is no such file or folder.")
        raise unknown("source", name_or_path, [*source_names(), *hub_names(), *generated_names()])
    if path.is_dir():
        if not (is_generated(path) or text_files(path)):
            raise InputError(f"source {name_or_path!r}: the folder holds no .txt or .md file.")
    elif path.suffix not in FILE_SUFFIXES:
        raise InputError(
            f"source {name_or_path!r}: a file must be .txt or .md (documents separated by blank lines) or "
            '.jsonl (an object with a "text" on each line).'
        )
    return str(path.resolve())


def parse_view(name: str) -> tuple[str, str] | None:
    """Return (source, "seen" or "unseen") for "SOURCE@seen" or "SOURCE@unseen"; None for any other name.

    >>> parse_view("chat@seen"), parse_view("chat"), parse_view("me@home")
    (('chat', 'seen'), None, None)
    """
    source, _, view = name.rpartition("@")
    return (source, view) if source and view in VIEWS else None


def _resolve_view(source: str, view: str) -> str:
    name = resolve_source(source)
    if name == RANDOM or parse_mixture(name) or parse_view(name) or generated_folder(name):
        raise InputError(f"source '{source}@{view}': only real text has a part that models were trained on.")
    return f"{name}@{view}"


def load_source(name_or_path: str) -> Source:
    """Return a source with all its documents.

    Raises InputError for an unknown name, a path that cannot be read, or a source without documents;
    DataError if archives or the network do not give what they should.
    """
    name = resolve_source(name_or_path)
    catalogue = load_catalogue()
    minimum = 1
    if parse_mixture(name):
        raise InputError(f"source {name!r} is a mixture, which can serve for calibration, not for evaluation.")
    if viewed := parse_view(name):
        whole = load_source(viewed[0])
        chosen = [text for text in split_documents(whole.documents)[0] if is_unseen(text) == (viewed[1] == UNSEEN)]
        if not chosen:
            raise InputError(f"source {name!r} has no documents: the calibration part of {viewed[0]!r} is too small.")
        return Source(name, f"{whole.summary}; the {viewed[1]} part", whole.licence, tuple(chosen))
    if name == RANDOM:
        raise InputError(
            "source 'random' has no documents: its windows are token ids drawn from the seed. "
            "It can serve for calibration, not for evaluation."
        )
    if name in catalogue.sources:
        entry = catalogue.sources[name]
        summary, licence, minimum = entry.summary, entry.licence, entry.min_chars
        raw: Iterable[str] = _catalogue_documents(entry)
    elif name.startswith(HUB):
        hub = catalogue.hub[name.removeprefix(HUB)]
        summary, licence, raw = hub.summary, hub.licence, hub_documents(hub)
    elif folder := generated_folder(name):
        manifest, raw = read_generated(folder)
        summary, licence = manifest.request.origin, "generated; the terms of the model and of its prefixes apply"
    elif name in _registered:
        own = _registered[name]
        summary, licence, raw = own.summary, own.licence, own.loader()
    else:
        summary, licence, raw = "text of your own", "yours to know", path_documents(Path(name))
    documents = clean(raw, minimum)
    if not documents:
        raise InputError(f"source {name_or_path!r} has no documents.")
    return Source(name, summary, licence, documents)


def load_documents(name_or_path: str, part: Part) -> tuple[str, ...]:
    """Return the documents of one part of a source, in canonical order, none of which is in the other part.

    Args: part: "calibration" (3 of 4 documents, all of generated text and of "chat@seen") or "held_out" (1 of 4).
    Raises: as `load_source`; InputError too if the part is empty.
    """
    if part not in ("calibration", "held_out"):
        raise unknown("part", part, ("calibration", "held_out"))
    documents = load_source(name_or_path).documents
    if refusal := only_for_calibration(resolve_source(name_or_path)):
        if part == "held_out":
            raise InputError(f"source {name_or_path!r}: {refusal}")
        return documents
    calibration, held_out = split_documents(documents)
    assert_disjoint(calibration, held_out)
    chosen = calibration if part == "calibration" else held_out
    if not chosen:
        raise InputError(
            f"source {name_or_path!r} has {len(documents)} document(s): {len(calibration)} for calibration, "
            f"{len(held_out)} held out. The split goes by the documents' hashes; give more documents (in a "
            "text file, separate them by blank lines)."
        )
    return chosen


def only_for_calibration(name: str) -> str | None:
    """Return why a source, whose name is resolved, has no held-out part; None if it has one."""
    if parse_view(name):
        return VIEW_NOT_FOR_EVALUATION
    return NOT_FOR_EVALUATION if generated_folder(name) else None


def source_hash(name_or_path: str) -> str | None:
    """Return the content hash of a source that the catalogue does not pin, or None for those that it does.

    Loads the documents of a path, a registered source or a hub data set.
    """
    name = resolve_source(name_or_path)
    if parts := parse_mixture(name):
        hashes = [source_hash(part) for part, _ in parts]
        return content_hash(digest or "" for digest in hashes) if any(hashes) else None
    base, _ = parse_view(name) or (name, "")
    return None if base in load_catalogue().sources else content_hash(load_source(name).documents)


def content_hash(documents: Iterable[str]) -> str:
    """Return a sha256 of the documents and their order: the hash of their hashes.

    >>> content_hash(["ab"]) == content_hash(["a", "b"])
    False
    """
    whole = hashlib.sha256()
    for document in documents:
        whole.update(hashlib.sha256(document.encode()).digest())
    return whole.hexdigest()


def normalised(text: str) -> str:
    """Return the text with every run of white space as one space, for comparing documents.

    >>> normalised(" one\\n\\n two ")
    'one two'
    """
    return " ".join(text.split())


def clean(documents: Iterable[str], min_chars: int = 1) -> tuple[str, ...]:
    """Return the documents without empty lines at the start and white space at the end, the unfit dropped.

    Dropped are documents with a broken character, shorter than `min_chars` characters, or equal to an earlier
    one but for white space.
    """
    kept: dict[str, str] = {}
    for document in documents:
        text = document.lstrip("\r\n").rstrip()
        key = normalised(text)
        if key and len(text) >= min_chars and not _BROKEN.search(text):
            kept.setdefault(key, text)
    return tuple(kept.values())


def is_held_out(document: str) -> bool:
    """Whether a document is held out for evaluation: the first 32 bits of its hash are a multiple of 4.

    The hash is the sha256 of the normalised text, so that the same text is on the same side everywhere.
    """
    return _hash_bits(document, 0) % HELD_OUT_ONE_IN == 0


def is_unseen(document: str) -> bool:
    """Whether the glass-box models were not trained on a document of the calibration part.

    The second 32 bits of the hash of `is_held_out` are a multiple of 4.
    """
    return _hash_bits(document, 1) % UNSEEN_ONE_IN == 0


def _hash_bits(document: str, place: int) -> int:
    """Return the first (0), second (1), ... 32 bits of the sha256 of the normalised text, as a number."""
    digest = hashlib.sha256(normalised(document).encode()).hexdigest()
    return int(digest[8 * place : 8 * place + 8], 16)


def split_documents(documents: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (calibration, held_out), each in the order of `documents`."""
    parts: tuple[list[str], list[str]] = ([], [])
    for document in documents:
        parts[is_held_out(document)].append(document)
    return tuple(parts[0]), tuple(parts[1])


def assert_disjoint(calibration: Iterable[str], held_out: Iterable[str]) -> None:
    """Raise DataError if a document, white space aside, stands on both sides: it would not be held out."""
    shared = {normalised(text) for text in calibration} & {normalised(text) for text in held_out}
    if shared:
        raise DataError(
            f"{len(shared)} document(s) stand in both calibration and held-out text, such as "
            f"{min(shared)[:60]!r}. A perplexity on them would not be held out."
        )


def _catalogue_documents(entry: SourceEntry) -> list[str]:
    documents: list[str] = []
    for part in entry.parts:
        content = read_member(part.archive, part.member)
        documents += read_documents(content, part.format, f"{part.archive}: {part.member}")
    return documents


def hub_documents(entry: HubEntry, load: HubLoader | None = None) -> list[str]:
    """Return the first `entry.documents` texts of a hub data set, streamed once and then kept in the cache.

    `load` stands in for `datasets.load_dataset`. Raises DataError if the hub does not give them.
    """
    kept = paths.cache_dir() / "hub" / f"{entry.name}-{entry.documents}.jsonl"
    if not kept.is_file():
        with (
            paths.atomic_path(kept) as part,
            part.open("w", encoding="utf-8") as stream,
            bar(entry.documents, f"{HUB}{entry.name}", "documents") as progress,
        ):
            for text in islice(_stream(entry, load), entry.documents):
                stream.write(json.dumps({"text": text}) + "\n")
                progress.update()
    return read_jsonl(kept)


def _stream(entry: HubEntry, load: HubLoader | None) -> Iterable[str]:
    try:
        for row in (load or _load_dataset())(entry.dataset, entry.config, split=entry.split, streaming=True):
            yield row[entry.column]
    except Exception as error:  # whatever the transport below the hub's client raises
        reason = f"{type(error).__name__}: {error}"[:300]
        raise DataError(
            f"cannot read {HUB}{entry.name} ({entry.dataset}) from the Hugging Face hub: {reason}. It needs "
            f"a network; without one, use one of: {', '.join(source_names())}, or a path to text of your own."
        ) from error


def _load_dataset() -> HubLoader:
    import datasets

    loader: HubLoader = datasets.load_dataset
    return loader
