"""Tasks by name: which there are, what may be asked of them, and their items. Importing it is quick.

A task is named by the catalogue ("boolq"), which says where its data lie, or is "hub:NAME" for any task that
lm-evaluation-harness defines, with the data that the definition names.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from calib_study.catalogue import TaskEntry, TaskFormat, TaskPart, load_catalogue
from calib_study.errors import DataError, InputError, unknown
from calib_study.fetch import archive_path, read_member

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
HUB = "hub:"
QUESTION, ANSWER = "Question: ", "\nAnswer:"
LETTERS = "ABCDEFGHIJ"


def task_names() -> list[str]:
    """Return the names of the catalogue's tasks, in its order."""
    return list(load_catalogue().tasks)


def check_tasks(names: Sequence[str], limit: int | None = None, num_fewshot: int | None = None) -> None:
    """Check a request for tasks before anything is loaded.

    Raises: InputError for no task, one named twice or not known (with near matches), a limit below 1, or more
        examples than a task has; DataError, saying what to fetch, for a task whose data are not there.
    """
    if not names:
        raise InputError(f"no task was named. Allowed: {', '.join(task_names())}, or {HUB}NAME.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise InputError(f"named more than once: {', '.join(repeated)}. Name each task once.")
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit}: ask for at least 1 item of a task, or set no limit to take all.")
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"num_fewshot {num_fewshot}: ask for 0 examples or more.")
    for name in names:
        if not name.startswith(HUB):
            _check_task(task_entry(name), num_fewshot)
        elif name == HUB:
            raise InputError(f"{name!r} names no task. Write {HUB}NAME with a task of lm-evaluation-harness.")


def task_entry(name: str) -> TaskEntry:
    """Return what the catalogue says of a task. Raises InputError with near matches."""
    tasks = load_catalogue().tasks
    if name not in tasks:
        raise unknown("task", name, tasks)
    return tasks[name]


def _check_task(entry: TaskEntry, num_fewshot: int | None) -> None:
    """Raise InputError if the task has too few examples, DataError if its data are not fetched."""
    if num_fewshot is not None and num_fewshot > entry.max_fewshot:
        why = (
            f"the split of examples has {entry.max_fewshot}"
            if entry.max_fewshot
            else f"its data hold no examples beside the {entry.split} split that is scored"
        )
        raise InputError(
            f"task {entry.name!r} with num_fewshot {num_fewshot}: {why}. Ask for at most {entry.max_fewshot}, or use "
            f"'{HUB}{entry.name}', which reads the whole data set from the hub."
        )
    for archive in entry.archives:
        try:
            archive_path(archive)
        except DataError as error:
            raise DataError(f"task {entry.name!r} cannot be run: {error}") from error


def choose_items(task: str, n: int, limit: int | None, seed: int) -> list[int]:
    """Return which of the items 0 .. n - 1 to score, sorted: all, or `limit` of them.

    Items are ranked by the sha256 of seed, task and item, and the lowest are taken. So the choice is the same on
    every machine and for every model, and that of a smaller limit is part of that of a larger one.
    """
    if limit is None or limit >= n:
        return list(range(n))
    ranked = sorted(range(n), key=lambda item: hashlib.sha256(f"{seed}:{task}:{item}".encode()).digest())
    return sorted(ranked[:limit])


def load_split(part: TaskPart) -> "pyarrow.Table":
    """Return the items of a split, with the columns that the official definition reads.

    Raises DataError if the archive is absent or damaged, or not written as the catalogue says.
    """
    content = read_member(part.archive, part.member)
    try:
        return READERS[part.format](content)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{part.member} is not written as {part.format!r}: {problem}") from error


def _arrow(content: bytes) -> "pyarrow.Table":
    """A table of the hub, as its own Arrow stream."""
    import pyarrow

    return pyarrow.ipc.open_stream(content).read_all()


def _requests(to_row: Callable[[Row], Row]) -> Callable[[bytes], "pyarrow.Table"]:
    """Return a reader of scoring requests, gzipped, one JSON object a line: `to_row` of the first of each document.

    Documents stand in order; ids from a million on belong to requests without a context, which are left out.
    """

    def read(content: bytes) -> "pyarrow.Table":
        import pyarrow

        found: dict[int, Row] = {}
        for line in gzip.decompress(content).decode().split("\n"):
            request = json.loads(line) if line.strip() else {"doc_id": 1_000_000}
            if request["doc_id"] < 1_000_000:
                found.setdefault(request["doc_id"], request)
        if list(found) != list(range(len(found))):
            raise ValueError("document ids do not count from 0")
        return pyarrow.Table.from_pylist([to_row(request) for request in found.values()])

    return read


def _question(request: Row) -> str:
    """The question inside "Question: ...\\nAnswer:"."""
    query: str = request["doc"]["query"]
    if not (query.startswith(QUESTION) and query.endswith(ANSWER)):
        raise ValueError(f"no question in {query[:60]!r}")
    return query[len(QUESTION) : -len(ANSWER)]


def _choices(request: Row) -> Row:
    """The answers with letters as their labels, and the letter of the right one."""
    doc = request["doc"]
    labels = list(LETTERS[: len(doc["choices"])])
    return {"choices": {"text": doc["choices"], "label": labels}, "answerKey": labels[doc["gold"]]}


def _arc(request: Row) -> Row:
    return {"id": request["doc"]["id"], "question": _question(request), **_choices(request)}


def _openbookqa(request: Row) -> Row:
    return {"id": request["doc"]["id"], "question_stem": _question(request), **_choices(request)}


def _boolq(request: Row) -> Row:
    """The answers of a request are yes and no; a label of SuperGLUE is 1 for yes."""
    doc = request["doc"]
    passage, found, rest = doc["query"].rpartition("\n" + QUESTION)
    if not found or not rest.endswith("?" + ANSWER) or doc["choices"] != ["yes", "no"]:
        raise ValueError(f"no question in {doc['query'][-60:]!r}")
    return {"question": rest[: -len("?" + ANSWER)], "passage": passage, "idx": doc["idx"], "label": 1 - doc["gold"]}


def _lambada(request: Row) -> Row:
    return {"text": request["request"]["context"] + request["request"]["continuation"]}


READERS: dict[TaskFormat, Callable[[bytes], "pyarrow.Table"]] = {
    "arrow": _arrow,
    "arc-requests": _requests(_arc),
    "boolq-requests": _requests(_boolq),
    "lambada-requests": _requests(_lambada),
    "openbookqa-requests": _requests(_openbookqa),
}
