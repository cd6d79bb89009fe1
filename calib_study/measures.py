"""One row for each run with every way in which it was measured, and the answers behind its accuracy.

`measure_table` and `Answers` are what chapters compare measures with. All measures are losses against the dense
model, in their own unit; so larger is worse, and the dense model has 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calib_study.errors import InputError
from calib_study.frames import RUN_COLUMNS
from calib_study.records import Record, Store
from calib_study.task_items import TaskResult, results_of

Floats = NDArray[np.float64]
DAMAGE_ON = "damage on "  # before the name of a held-out text
# Measures of `measure_table` by column: the label in figures and the unit.
MEASURES = {
    "damage": ("damage, all texts", "nats per token"),
    "jensen_shannon": ("Jensen-Shannon divergence", "nats per token"),
    "kl_dense_pruned": ("KL, dense from pruned", "nats per token"),
    "disagreement": ("other top word than dense", "share of tokens"),
    "answer_loss": ("right answers less likely", "bits per byte"),
    "accuracy_loss": ("accuracy lost", "share of items"),
}


@dataclass(frozen=True, eq=False)
class Answers:
    """What each run answered to the same items.

    run_ids: of the rows. tasks: (n_items,), the task of each item. correct: (n_runs, n_items), 1.0 where the chosen
    answer is right. bits: (n_runs, n_items), bits per byte of the right answer.
    """

    run_ids: tuple[str, ...]
    tasks: NDArray[np.str_]
    correct: Floats
    bits: Floats

    def of(self, run_ids: Sequence[str], what: str = "correct") -> Floats:
        """Return the rows of some runs, (n, n_items); what: "correct" or "bits"."""
        rows = {run_id: row for row, run_id in enumerate(self.run_ids)}
        table: Floats = getattr(self, what)
        return table[[rows[run_id] for run_id in run_ids]]


def results_by_run(records: Sequence[Record]) -> dict[str, list[TaskResult]]:
    """Return by run_id what each run answered to tasks, from the arrays beside the records."""
    store = Store.default()
    return {record.run_id: results_of(store.arrays(record)) for record in records}


def answers_of(results: Mapping[str, Sequence[TaskResult]]) -> Answers:
    """Return the answers of runs to tasks, item by item.

    Args:
        results: by run_id, from `task_items.results_of`.
    Raises InputError for no runs or tasks, or runs that did not answer the same items.
    """
    if not results or not all(results.values()):
        raise InputError("answers_of: no run, or one that was not asked any task.")
    first = next(iter(results.values()))
    asked = [(result.task, result.item_ids.tolist()) for result in first]
    tasks = np.concatenate([np.full(len(items), task) for task, items in asked])
    correct, bits = [], []
    for run_id, answered in results.items():
        if [(result.task, result.item_ids.tolist()) for result in answered] != asked:
            raise InputError(f"answers_of: run {run_id} answered other items than {next(iter(results))}.")
        correct.append(np.concatenate([result.correct.astype(np.float64) for result in answered]))
        bits.append(np.concatenate([_gold_bits(result) for result in answered]))
    return Answers(tuple(results), tasks, np.array(correct), np.array(bits))


def _gold_bits(result: TaskResult) -> Floats:
    """Return bits per byte of the right answer to each item."""
    rows = np.arange(len(result.gold))
    nats = result.loglikelihoods[rows, result.gold].astype(np.float64)
    return np.asarray(-nats / np.log(2) / result.n_bytes[rows, result.gold])


def measure_table(frame: pd.DataFrame, answers: Answers) -> pd.DataFrame:
    """Return one row for each run, the dense one first, with every measure as a loss against the dense model.

    Columns: those of a run, `MEASURES`, `damage on TEXT` for each held-out text, accuracy (mean over tasks, each
    counting the same). `damage` is the mean over texts of the rise of the loss, as in `frames.damage_table`;
    divergences are means over texts; `answer_loss` is the mean over tasks of the rise of bits per byte of the right
    answer; `accuracy_loss` is in shares of items.
    Raises InputError if there is not exactly one dense run, or a run lacks a measure.

    Args:
        frame: tidy frame of runs of one model that were scored alike. answers: of the same runs.
    """
    table = frame.drop_duplicates("run_id")[list(RUN_COLUMNS)].set_index("run_id", drop=False)
    if list(table["method"]).count("dense") != 1:
        raise InputError("measure_table: the frame needs one dense run, which all others are compared with.")
    dense = table.index[table["method"] == "dense"][0]
    loss = _by_text(frame, "nll")
    for text in loss.columns:
        table[f"{DAMAGE_ON}{text}"] = loss[text] - loss.loc[dense, text]
    table["damage"] = (loss - loss.loc[dense]).mean(axis=1)
    for name in ("jensen_shannon", "kl_dense_pruned"):
        table[name] = _by_text(frame, name).mean(axis=1)
    table["disagreement"] = 1 - _by_text(frame, "agreement").mean(axis=1)
    ids = [str(run_id) for run_id in table.index]
    table["accuracy"] = task_means(answers.of(ids), answers.tasks)
    bits = task_means(answers.of(ids, "bits"), answers.tasks)
    table["answer_loss"] = bits - bits[ids.index(str(dense))]
    table["accuracy_loss"] = table.loc[dense, "accuracy"] - table["accuracy"]
    values = table[[*MEASURES, "accuracy"]].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        lost = table.index[~np.isfinite(values).all(axis=1)]
        raise InputError(f"measure_table: {len(lost)} runs lack a measure; the first is {lost[0]}.")
    order = [dense, *(run_id for run_id in table.index if run_id != dense)]
    return table.loc[order].reset_index(drop=True)


def _by_text(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric by run (rows) and held-out text (columns)."""
    return frame[frame["metric"] == metric].pivot(index="run_id", columns="dataset", values="value")


def task_means(values: Floats, tasks: NDArray[np.str_]) -> Floats:
    """Return means over items in which every task counts the same: (n_runs, n_items) -> (n_runs,).

    >>> task_means(np.array([[1.0, 0.0, 1.0]]), np.array(["a", "a", "b"])).tolist()
    [0.75]
    """
    means = [values[:, tasks == task].mean(axis=1) for task in dict.fromkeys(tasks.tolist())]
    return np.asarray(np.mean(means, axis=0))


def task_table(answers: Answers, table: pd.DataFrame, chance: Mapping[str, float]) -> pd.DataFrame:
    """Return accuracy by task: of a choice at random, of the dense model, of each method (mean over its runs).

    Columns: task, n (items), chance, dense, then one for each method in the table's order.
    """
    rows = []
    for task in dict.fromkeys(answers.tasks.tolist()):
        here = answers.tasks == task
        row = {"task": task, "n": int(here.sum()), "chance": chance.get(task, 0.0)}
        for method, runs in table.groupby("method", sort=False):
            row[str(method)] = float(answers.of(list(runs["run_id"]))[:, here].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def chance_of(results: Sequence[TaskResult]) -> dict[str, float]:
    """Return by task the accuracy of a choice at random among the answers of each item; 0 for a word to be written."""
    given = {result.task: np.isfinite(result.loglikelihoods).sum(axis=1) for result in results}
    return {task: float(np.where(n > 1, 1 / n, 0.0).mean()) for task, n in given.items()}


def window_values(records: Sequence[Record], metric: str) -> tuple[Floats, NDArray[np.str_]]:
    """Return a metric of text window by window, (n_records, n_windows), and the held-out text of each window.

    Raises InputError if the records were not scored on the same windows.
    """
    rows, names = [], []
    for record in records:
        found = [m for m in record.metrics if m.name == metric and m.items]
        rows.append([value for m in found for value in m.items])
        names.append([m.dataset for m in found for _ in m.items])
    if not rows or not rows[0] or any(name != names[0] for name in names):
        raise InputError(f"window_values: the records have no {metric!r} on the same windows.")
    return np.array(rows, dtype=np.float64), np.array(names[0])
