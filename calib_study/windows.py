"""Windows: the fixed-length pieces of text, as token ids, that calibrate or evaluate a model.

The papers mix two policies under one word. `document` cuts one window from one long-enough document; `packed`
joins documents, with the end-of-text token between them, and cuts the stream.
"""

import hashlib
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from calib_study import paths
from calib_study.errors import InputError, unknown
from calib_study.mixtures import parse_mixture, windows_of_each
from calib_study.sources import Part, content_hash, load_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int64]
POLICIES = ("packed", "document")
SEPARATOR = "<|endoftext|>"
# What numpy raises for a file that is not, or no longer, one of its own.
UNREADABLE = (OSError, ValueError, EOFError, KeyError, MemoryError, TokenError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class Windows:
    """Token ids (n_samples, seq_len), int64, with the number of documents they come from."""

    tokens: Tokens
    n_documents: int

    @property
    def sha256(self) -> str:
        """The identity of the set: SHA-256 over its shape and its ids as little-endian 64-bit integers."""
        shape = "x".join(str(size) for size in self.tokens.shape)
        return hashlib.sha256(shape.encode() + b":" + self.tokens.astype("<i8").tobytes()).hexdigest()


def draw_windows(
    source: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    n_samples: int,
    seq_len: int,
    seed: int,
    policy: str = "packed",
    part: Part = "calibration",
    min_tokens: int | None = None,
) -> Windows:
    """Return `n_samples` windows of `seq_len` tokens, which never overlap each other.

    `packed`: the documents in an order drawn from the seed, joined with end-of-text, cut from the start. All
    text is usable and windows cross document borders. (The main paper's loader of Wikipedia; there, window
    starts are drawn with replacement and may overlap.)
    `document`: `n_samples` different documents of at least `seq_len` tokens, one random window from each.
    (The papers' loader of C4, SlimPajama and DCLM; there, a document may be drawn twice.)
    `min_tokens`: shorter documents are left out first, under either policy.
    A mixture ("c4:0.7,code:0.3") gives each source its share of the windows, one source after the other.
    No special token is added at the start. The source `random` gives uniform token ids under either policy.

    Raises InputError if the source cannot supply that many, saying how many it has.
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    if parts := parse_mixture(source):
        counts = windows_of_each(parts, n_samples)
        alike: dict[str, Any] = {"seq_len": seq_len, "seed": seed, "policy": policy, "part": part}
        drawn = [
            draw_windows(name, tokenizer, n_samples=count, min_tokens=min_tokens, **alike)
            for (name, _), count in zip(parts, counts, strict=True)
        ]
        return Windows(np.concatenate([w.tokens for w in drawn]), sum(w.n_documents for w in drawn))
    rng = np.random.default_rng(seed)
    if source == "random":
        return Windows(rng.integers(0, len(tokenizer), (n_samples, seq_len), dtype=np.int64), 0)
    documents = [ids for ids in tokenized(load_documents(source, part), tokenizer) if len(ids) >= (min_tokens or 0)]
    only = "" if min_tokens is None else f", documents of {min_tokens:,} tokens or more"
    try:
        if policy == "packed":
            return _packed(documents, rng, n_samples, seq_len, separator_id(tokenizer))
        return _one_per_document(documents, rng, n_samples, seq_len)
    except InputError as error:
        raise InputError(f"source {source!r}, {part} part, policy {policy!r}{only}: {error}") from None


def _packed(documents: list[Tokens], rng: np.random.Generator, n_samples: int, seq_len: int, separator: int) -> Windows:
    wanted = n_samples * seq_len
    pieces: list[Tokens] = []
    length = 0
    for used, index in enumerate(rng.permutation(len(documents)), start=1):
        pieces += [documents[index], np.array([separator])]
        length += len(documents[index]) + 1
        if length >= wanted:
            return Windows(np.concatenate(pieces)[:wanted].reshape(n_samples, seq_len), used)
    raise InputError(
        f"{n_samples} windows of {seq_len} tokens were asked; its {length:,} tokens give {length // seq_len}. "
        "Ask for fewer or shorter windows, or another source."
    )


def _one_per_document(documents: list[Tokens], rng: np.random.Generator, n_samples: int, seq_len: int) -> Windows:
    long_enough = [ids for ids in documents if len(ids) >= seq_len]
    if len(long_enough) < n_samples:
        longest = max((len(ids) for ids in documents), default=0)
        raise InputError(
            f"{n_samples} documents of at least {seq_len} tokens were asked; it has {len(long_enough)} "
            f"(the longest has {longest:,}). Ask for fewer or shorter windows, or use policy 'packed'."
        )
    windows = []
    for index in rng.choice(len(long_enough), n_samples, replace=False):
        start = rng.integers(0, len(long_enough[index]) - seq_len, endpoint=True)
        windows.append(long_enough[index][start : start + seq_len])
    return Windows(np.stack(windows), n_samples)


def separator_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id put between documents: `<|endoftext|>` where the vocabulary has it, else the end-of-sequence token.

    Chat models replace the end-of-sequence token by an end-of-turn token, which pretraining text never contains.
    """
    vocabulary = tokenizer.get_vocab()
    chosen = vocabulary.get(SEPARATOR, tokenizer.eos_token_id)
    if chosen is None:
        raise InputError("the tokenizer has no end-of-text token to put between documents; use policy 'document'.")
    return int(chosen)


def tokenized(documents: tuple[str, ...], tokenizer: "PreTrainedTokenizerBase") -> list[Tokens]:
    """Return the token ids of each document, without special tokens; kept in the cache for the next process."""
    fingerprint = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = hashlib.sha256(f"{fingerprint}:{content_hash(documents)}".encode()).hexdigest()[:24]
    file = paths.cache_dir() / "tokens" / f"{key}.npz"
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            flat, ends = stored["ids"], stored["ends"]
    except UNREADABLE:  # absent, or damaged: it is derived, so it is made again
        encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ends = np.cumsum([0] + [len(ids) for ids in encoded])
        flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded] or [np.zeros(0, np.int64)])
        with paths.atomic_path(file) as part, part.open("wb") as output:
            np.savez(output, ids=flat, ends=ends)
    return [flat[start:end] for start, end in pairwise(ends)]


def save_tokens(windows: Windows, path: Path) -> None:
    """Write the token ids as .npy (int64, n_samples x seq_len): what makes a calibration set repeatable anywhere."""
    with paths.atomic_path(path) as part, part.open("wb") as stream:
        np.save(stream, windows.tokens, allow_pickle=False)


def load_tokens(path: Path, *, vocab_size: int, n_samples: int | None = None, seq_len: int | None = None) -> Windows:
    """Return windows saved by `save_tokens`.

    Raises InputError unless the file is .npy, int64, two-dimensional, of the shape asked for if one was, and
    every id lies in 0 .. vocab_size - 1.
    """
    if not path.is_file():
        raise InputError(f"calibration tokens {path}: no such file.")
    try:
        with path.open("rb") as stream:
            tokens: Tokens = np.lib.format.read_array(stream, allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"calibration tokens {path}: not a .npy file of numbers ({error}).") from error
    if tokens.dtype != np.int64 or tokens.ndim != 2:
        raise InputError(
            f"calibration tokens {path}: expected int64 (n_samples, seq_len), got {tokens.dtype} {tokens.shape}."
        )
    asked = (n_samples or tokens.shape[0], seq_len or tokens.shape[1])
    if tokens.shape != asked or tokens.size == 0:
        raise InputError(f"calibration tokens {path}: shape {tokens.shape}, but {asked} was asked.")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise InputError(
            f"calibration tokens {path}: ids from {tokens.min()} to {tokens.max()}, but the model's vocabulary has "
            f"0 to {vocab_size - 1}. Were they made with another tokenizer?"
        )
    return Windows(tokens, 0)
