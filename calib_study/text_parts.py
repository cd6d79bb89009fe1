"""Finished texts, kept one file a step, so that a synthesis that is stopped goes on where it was."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from calib_study import paths
from calib_study.generated import generated_home
from calib_study.manifests import Synthesis, TextFacts

if TYPE_CHECKING:
    from calib_study.generation import Text

FORMAT = 1  # a change of the engine that changes texts has to change it, so that earlier parts are not taken


@dataclass(frozen=True)
class Row:
    """A finished text as it is kept: its token ids without the start token, and its facts."""

    ids: tuple[int, ...]
    facts: TextFacts

    @classmethod
    def of(cls, text: "Text") -> "Row":
        """Return what is kept of a text; its numbers to as many digits as rounding leaves alone."""
        perplexity = math.exp(text.nll / text.n_scored) if text.n_scored else None
        facts = TextFacts(
            index=text.prompt.index,
            n_scored=text.n_scored,
            perplexity=None if perplexity is None else float(f"{perplexity:.5g}"),
            n_tokens=len(text.own),
            ends=text.ends,
            repeated=round(repeated_share(text.own), 4),
            margin=float(f"{text.margin:.2g}"),
        )
        return cls(tuple(text.own), facts)

    @classmethod
    def from_line(cls, line: str) -> "Row":
        """Return the row that a line of a part holds. Raises ValueError, KeyError or TypeError if it holds none."""
        fields = json.loads(line)
        return cls(tuple(int(token) for token in fields["ids"]), TextFacts.model_validate(fields["facts"]))

    def to_line(self) -> str:
        """Return the row as a line of JSON."""
        return json.dumps({"ids": self.ids, "facts": self.facts.model_dump(exclude_none=True)})


class Parts:
    """The finished texts of a synthesis, in a folder of the cache. A later one that asks for more texts uses them too.

    Attributes:
        folder: of this request; how many texts it asks for makes no difference.
    """

    def __init__(self, request: Synthesis) -> None:
        same = request.model_dump_json(exclude={"n_texts"})
        key = hashlib.sha256(f"{FORMAT}:{same}".encode()).hexdigest()[:24]
        self.folder = generated_home() / ".parts" / key

    def read(self) -> dict[int, Row]:
        """Return the texts that are there, by index. What is damaged counts as absent: it is written again."""
        found: dict[int, Row] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            try:
                rows = [Row.from_line(line) for line in file.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError, KeyError, TypeError, ValidationError):
                continue
            found |= {row.facts.index: row for row in rows}
        return found

    def put(self, rows: Sequence[Row]) -> None:
        """Keep texts that were finished together, in one file, whole or not at all."""
        if not rows:
            return
        first = min(row.facts.index for row in rows)
        with paths.atomic_path(self.folder / f"{first:06}.jsonl") as part:
            part.write_text("".join(row.to_line() + "\n" for row in rows), encoding="utf-8")

    @contextmanager
    def locked(self, echo: Callable[[str], Any]) -> Iterator[None]:
        """Let one process at a time inside; the system frees the lock of one that dies. `echo` is told of waiting."""
        paths.check_writable(self.folder)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            echo("another process is writing these texts; waiting for it.")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def repeated_share(ids: Sequence[int], n: int = 4) -> float:
    """Return the share of a text's n-grams that it has had before: 0 if all are different, near 1 for a loop.

    >>> repeated_share([1, 2, 1, 2, 1, 2], n=2)  # 12 and 21 are new once, of five
    0.6
    """
    grams = list(zip(*(ids[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
