"""Accuracy on tasks, by the official definitions of lm-evaluation-harness.

The harness's own files and code make the prompts and the answers to compare, say which is right, and average. Ours
are the data, which come from the catalogue unless `hub:` is asked, and the choice of the best answer, whose few lines
the tests compare with the harness's own evaluation. No score is ever kept: every call asks the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics as official
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from numpy.typing import NDArray

from calib_study.errors import NumericalError
from calib_study.task_data import check_tasks
from calib_study.task_items import Ints, TaskMetric, TaskResult
from calib_study.task_prompts import Prepared, padded, prepare

Scores = Mapping[str, NDArray[np.float64]]  # by metric: the value of each item


def run_tasks(
    lm: LM, names: Sequence[str], *, limit: int | None = None, seed: int = 0, num_fewshot: int | None = None
) -> list[TaskResult]:
    """Return what a model scores on each task, in the order of `names`.

    Each task is one call of `lm.loglikelihood`, so its numbers do not depend on which others are run.

    Args:
        lm: a model in the harness's interface, such as its HFLM.
        names: tasks of the catalogue, or hub:NAME for any that the harness defines, with data from the hub.
        limit: score this many items of each task instead of all; subjects count together.
        seed: chooses them; see `choose_items`.
        num_fewshot: examples before each item, instead of each task's own number.

    Raises: what `check_tasks` does; NumericalError if a log-likelihood is not finite.
    """
    check_tasks(names, limit, num_fewshot)
    return [_run(lm, name, limit, seed, num_fewshot) for name in names]


def _run(lm: LM, name: str, limit: int | None, seed: int, num_fewshot: int | None) -> TaskResult:
    prepared = prepare(name, limit, seed, num_fewshot)
    answers = lm.loglikelihood(list(prepared.requests))
    loglikelihoods = padded(prepared.given, [value for value, _ in answers], np.nan, np.float32)
    if not np.isfinite(loglikelihoods[prepared.given]).all():
        raise NumericalError(f"task {name!r}: the model gives log-likelihoods that are not finite numbers.")
    chosen = _highest(loglikelihoods)
    if prepared.given.shape[1] == 1:
        chosen = np.array([0 if greedy else -1 for _, greedy in answers])
    correct = chosen == prepared.gold
    normed = _highest(loglikelihoods.astype(np.float64) / np.maximum(prepared.n_chars, 1)) == prepared.gold
    scores = {"acc": correct * 1.0, "acc_norm": normed * 1.0, "perplexity": loglikelihoods[:, 0].astype(np.float64)}
    found = _metrics(prepared, scores)
    leaf = prepared.leaves[0]
    return TaskResult(
        task=name,
        version=str(leaf.VERSION),
        split=prepared.split,
        n_total=prepared.n_total,
        num_fewshot=leaf.config.num_fewshot,
        limit=limit,
        seed=seed,
        metrics=found,
        primary="acc" if "acc" in found else next(iter(found)),
        parts=tuple(leaf.task_name for leaf in prepared.leaves),
        part_of=prepared.part_of,
        item_ids=prepared.item_ids,
        gold=prepared.gold,
        chosen=chosen,
        correct=correct,
        correct_norm=normed if "acc_norm" in found else None,
        loglikelihoods=loglikelihoods,
        n_chars=prepared.n_chars,
        n_bytes=prepared.n_bytes,
    )


def _highest(values: NDArray[np.floating[Any]]) -> Ints:
    """Return the index of the highest value of each row, the first of equals; NaN stands for no value."""
    index: Ints = np.where(np.isnan(values), -np.inf, values).argmax(1)
    return index


# --- averages ---------------------------------------------------------------------------------------------


def _metrics(prepared: Prepared, scores: Scores) -> dict[str, TaskMetric]:
    """Return the metrics that the definition declares, averaged as it says; those of subjects as their group says."""
    by_leaf = [
        _leaf_metrics(leaf, {name: values[prepared.part_of == part].tolist() for name, values in scores.items()})
        for part, leaf in enumerate(prepared.leaves)
    ]
    if prepared.group is None:
        return by_leaf[0]
    n = len(prepared.item_ids)
    pooled = n > len(by_leaf)  # a subject with one item has no standard error, and weight zero in the pooled one
    table: dict[str, dict[str, Any]] = {}
    for leaf, found in zip(prepared.leaves, by_leaf, strict=True):
        row: dict[str, Any] = {"sample_len": next(iter(found.values())).n}
        for name, metric in found.items():
            row[f"{name},none"] = metric.value
            if pooled:
                row[f"{name}_stderr,none"] = metric.stderr or 0.0
        table[leaf.task_name] = row
    average: dict[str, Any] = prepared.group.aggregate(table)
    return {
        name: TaskMetric(
            name,
            float(average[f"{name},none"]),
            float(average[f"{name}_stderr,none"]) if pooled else None,
            n,
            metric.higher_is_better,
        )
        for name, metric in by_leaf[0].items()
        if f"{name},none" in average
    }


def _leaf_metrics(leaf: ConfigurableTask, scores: Mapping[str, list[float]]) -> dict[str, TaskMetric]:
    """Return the metrics of one definition, with the standard error of a mean; `scores` has a value for each item."""
    found = {}
    for name, aggregation in leaf.aggregation().items():
        values = scores[name]
        try:
            value = float(aggregation(values))
        except OverflowError as error:
            raise NumericalError(
                f"task {leaf.task_name!r}: {name} is too large for a number; the mean log-likelihood of the right "
                f"answer is {np.mean(values):.4g}."
            ) from error
        stderr = official.mean_stderr(values) if len(values) > 1 else None
        if stderr is not None and aggregation is official.perplexity:
            stderr *= value  # of exp(m), to first order; the harness's bootstrap takes minutes for the same
        found[name] = TaskMetric(name, value, stderr, len(values), leaf.higher_is_better()[name])
    return found
