"""Read documents out of files: those of the catalogue, one small function per format, and a user's own."""

import gzip
import html
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from calib_study.catalogue import SourceFormat
from calib_study.errors import DataError, InputError

TEXT_SUFFIXES = (".txt", ".md")
FILE_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl")


def read_documents(content: bytes, written_as: SourceFormat, origin: str) -> list[str]:
    """Return the documents in `content` in file order, not yet cleaned. `origin` names the file in errors.

    Raises DataError if the content is not written as promised.
    """
    try:
        return READERS[written_as](content)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{origin} is not written as {written_as!r}: {problem}") from error


def _lines(content: bytes) -> list[str]:
    """One document a line. Only the line feed ends a line, as in the files; U+2028 and the like do not."""
    return content.decode().split("\n")


def _jsonl(content: bytes) -> list[str]:
    """One JSON object a line, the document in its `text`."""
    return [row["text"] for row in _rows(content)]


def _wikiextractor(content: bytes) -> list[str]:
    """Articles of the WikiExtractor tool: <doc id= url= title=> title, empty line, text </doc>."""
    return [html.unescape(body) for body in re.findall(r"<doc [^\n]*>\n(.*?)\n</doc>", content.decode(), re.DOTALL)]


def _marked_code(content: bytes) -> list[str]:
    """Files between `// ===== BEGIN language =====` and `// ===== END =====`; the unclosed is left out."""
    marks = r"^// ===== BEGIN [^\n]+ =====\n(.*?)^// ===== END =====$"
    return re.findall(marks, content.decode(), re.DOTALL | re.MULTILINE)


def _alpaca(content: bytes) -> list[str]:
    """Instruction, input and output of each item, the empty ones left out."""
    return [_join((item["instruction"], item["input"], item["output"])) for item in json.loads(content)]


def _chitchat(content: bytes) -> list[str]:
    """Dialogues: each is a list of turns, a turn a list of messages by one person."""
    dialogues = json.loads(content).values()
    return [
        _join((message["text"] for turn in dialogue["messages"] for message in turn), between="\n")
        for dialogue in dialogues
    ]


def _problems(content: bytes) -> list[str]:
    """Scoring requests, gzipped, one JSON object a line: problem and solution of its `doc`."""
    rows = (row["doc"] for row in _rows(gzip.decompress(content)))
    return [_join((doc["problem"], doc["solution"])) for doc in rows]


def _end_of_text(content: bytes) -> list[str]:
    """Documents with <|endoftext|> between them."""
    return content.decode().split("<|endoftext|>")


def _extracts(content: bytes) -> list[str]:
    """An object of articles by title, the text in `extract`."""
    return [article["extract"] for article in json.loads(content).values()]


def _rows(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.decode().split("\n") if line.strip()]


def _join(texts: Iterable[str], between: str = "\n\n") -> str:
    """Return the texts that are not empty, stripped and joined."""
    return between.join(text.strip() for text in texts if text.strip())


READERS: dict[SourceFormat, Callable[[bytes], list[str]]] = {
    "lines": _lines,
    "jsonl": _jsonl,
    "wikiextractor": _wikiextractor,
    "marked-code": _marked_code,
    "alpaca": _alpaca,
    "chitchat": _chitchat,
    "problems": _problems,
    "end-of-text": _end_of_text,
    "extracts": _extracts,
}


def text_files(folder: Path) -> list[Path]:
    """Return the text files in a folder and those below it, sorted by their path from there."""
    found = [path for path in folder.rglob("*") if path.suffix in TEXT_SUFFIXES and path.is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def path_documents(path: Path) -> list[str]:
    """Return the documents of a user's path, not yet cleaned.

    A folder's .txt and .md files are one document each; of a .jsonl file each line is one; any other file is
    cut at its blank lines, so that one without blank lines is one document.
    """
    if path.is_dir():
        return [_read_text(file) for file in text_files(path)]
    if path.suffix == ".jsonl":
        return read_jsonl(path)
    return re.split(r"\n(?:[^\S\n]*\n)+", _read_text(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded. Convert it.") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error


def read_jsonl(path: Path) -> list[str]:
    """Return the `text` of each line of a JSONL file. Raises InputError naming a line that has none."""
    documents = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f'{path}, line {number}: expected an object with a string "text", got {line[:60]!r}.')
        documents.append(row["text"])
    return documents
