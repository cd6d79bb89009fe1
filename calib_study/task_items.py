"""Results on tasks item by item, as arrays that are kept beside a record.

Two models that were scored on the same items are compared item by item, which needs more than two means.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calib_study.errors import InputError, StudyError

if TYPE_CHECKING:
    import pandas as pd

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float32]

ITEMS_VERSION = 1
HEADER = "tasks"
# Arrays of a result, and the narrow type that each is kept in.
STORED = {
    "item_ids": np.int32,
    "part_of": np.int16,
    "gold": np.int16,
    "chosen": np.int16,
    "correct": np.bool_,
    "correct_norm": np.bool_,
    "loglikelihoods": np.float32,
    "n_chars": np.int32,
    "n_bytes": np.int32,
}


@dataclass(frozen=True)
class TaskMetric:
    """A mean over items, as the official definition declares it. `stderr` is None where it is not defined."""

    name: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What one model scored on one task.

    Attributes:
        task: its name in lm-evaluation-harness; `version` is that of the official definition.
        split: of the data set, with `n_total` items, of which `limit` (None: all) were chosen with `seed`.
        num_fewshot: examples before each item.
        metrics: by name; `primary` names the one to quote.
        parts: the subjects of a task that has several, else its name; `part_of` (n,) says where an item belongs.
        item_ids: (n,) rows of the split, ascending, counted through the parts.
        gold: (n,) index of the right answer.
        chosen: (n,) index of the answer with the highest log-likelihood, the first of equals. Where there is one
            answer only, such as the last word of a passage: 0 if it is what greedy decoding would write, else -1.
        correct: (n,) whether the choice is right; the mean is `acc`.
        correct_norm: the same for log-likelihoods divided by the answer's length in characters, as the harness
            does for `acc_norm`; None for a task that does not declare it.
        loglikelihoods: (n, most answers) in nats, NaN where an item has fewer answers.
        n_chars, n_bytes: (n, most answers) length of each answer, without the space before it, in characters and in
            bytes of UTF-8; 0 where there is none.
    """

    task: str
    version: str
    split: str
    n_total: int
    num_fewshot: int
    limit: int | None
    seed: int
    metrics: dict[str, TaskMetric]
    primary: str
    parts: tuple[str, ...]
    part_of: Ints
    item_ids: Ints
    gold: Ints
    chosen: Ints
    correct: Flags
    correct_norm: Flags | None
    loglikelihoods: Floats
    n_chars: Ints
    n_bytes: Ints

    @property
    def value(self) -> float:
        """The primary metric."""
        return self.metrics[self.primary].value


def item_arrays(results: Iterable[TaskResult]) -> dict[str, NDArray[Any]]:
    """Return results as arrays by name, to be kept beside a record; none for no results.

    Raises InputError for a task given twice.
    """
    results = list(results)
    names = [result.task for result in results]
    if len(names) != len(set(names)):
        raise InputError(f"items of a task can be kept once, got {', '.join(names)}.")
    if not results:
        return {}
    header = {"version": ITEMS_VERSION, "results": [_facts(result) for result in results]}
    arrays: dict[str, NDArray[Any]] = {HEADER: np.array(json.dumps(header, sort_keys=True, allow_nan=False))}
    for result in results:
        for field, narrow in STORED.items():
            values: NDArray[Any] | None = getattr(result, field)
            if values is not None:
                arrays[f"{result.task}/{field}"] = _narrowed(values, narrow, field)
    return arrays


def results_of(arrays: Mapping[str, NDArray[Any]]) -> list[TaskResult]:
    """Return the results that `item_arrays` gave, none if there are none. Raises StudyError for damaged ones."""
    if HEADER not in arrays:
        return []
    try:
        header = json.loads(str(arrays[HEADER]))
        if header["version"] != ITEMS_VERSION:
            raise StudyError(f"task items were written by another version (format {header['version']!r}).")
        return [_result(facts, _arrays(arrays, facts["task"])) for facts in header["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"task items are damaged ({type(error).__name__}: {error}).") from error


def items_frame(results: Iterable[TaskResult]) -> "pd.DataFrame":
    """Return a tidy table, one row for each item of each task.

    Columns: task, part, item_id, gold, chosen, correct (0 or 1), correct_norm (0, 1, or NaN for a task without it),
    gold_loglikelihood (nats) and gold_bits_per_byte of the right answer.
    """
    import pandas as pd

    frames = []
    for result in results:
        rows = np.arange(len(result.item_ids))
        nats = result.loglikelihoods[rows, result.gold].astype(np.float64)
        norm = np.full(len(rows), np.nan) if result.correct_norm is None else result.correct_norm.astype(float)
        columns = {
            "task": result.task,
            "part": np.array(result.parts)[result.part_of],
            "item_id": result.item_ids,
            "gold": result.gold,
            "chosen": result.chosen,
            "correct": result.correct.astype(np.int64),
            "correct_norm": norm,
            "gold_loglikelihood": nats,
            "gold_bits_per_byte": -nats / np.log(2) / result.n_bytes[rows, result.gold],
        }
        frames.append(pd.DataFrame(columns))
    if not frames:
        raise InputError("no task results to make a table of.")
    return pd.concat(frames, ignore_index=True)


def _facts(result: TaskResult) -> dict[str, Any]:
    """Return all of a result but its arrays."""
    facts = {name: value for name, value in vars(result).items() if name not in STORED}
    return {**facts, "metrics": [asdict(metric) for metric in result.metrics.values()]}


def _narrowed(values: NDArray[Any], narrow: type[np.generic], field: str) -> NDArray[Any]:
    """Return the values in the file's type. Raises InputError if one does not fit."""
    narrowed = values.astype(narrow)
    if not np.array_equal(narrowed, values, equal_nan=narrow is np.float32):
        raise InputError(f"task items: {field} holds a value that {np.dtype(narrow)} cannot.")
    return narrowed


def _arrays(arrays: Mapping[str, NDArray[Any]], task: str) -> dict[str, NDArray[Any] | None]:
    """Return the arrays of one task, in the types of `TaskResult`."""
    found: dict[str, NDArray[Any] | None] = dict.fromkeys(STORED)
    for field, narrow in STORED.items():
        name = f"{task}/{field}"
        if name in arrays or field != "correct_norm":
            values = arrays[name]
            found[field] = values.astype(np.int64) if np.issubdtype(narrow, np.integer) else values
    return found


def _result(facts: Mapping[str, Any], arrays: Mapping[str, Any]) -> TaskResult:
    metrics = {metric["name"]: TaskMetric(**metric) for metric in facts["metrics"]}
    return TaskResult(**{**facts, **arrays, "metrics": metrics, "parts": tuple(facts["parts"])})
