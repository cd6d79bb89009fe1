"""The scores of a stored run in the form in which two runs are compared: item by item, and what they are scored on."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib_study.array_files import Array
from calib_study.records import Metric, Record
from calib_study.statistics import Floats
from calib_study.task_items import TaskResult, results_of


@dataclass(frozen=True, eq=False)
class Scores:
    """One metric of one run, ready to be averaged.

    Attributes:
        value: the metric, of a perplexity its logarithm. items: (n,), whose mean is `value`; None if not known.
        answered: what it was scored on, by name; alike if it can be compared. noun: of one item.
    """

    metric: Metric
    value: float
    items: Floats | None
    relative: bool
    noun: str
    answered: Mapping[str, str]


def scores_of(record: Record, arrays: Mapping[str, Array]) -> dict[tuple[str, str], Scores]:
    """Return the scores of a run by (metric, data set); `arrays` are those beside the record."""
    tasks = {result.task: result for result in results_of(arrays)}
    found = {}
    for metric in record.metrics:
        task = metric.dataset in (record.spec.evaluation.tasks or ())
        answered = _items_named(record, tasks.get(metric.dataset)) if task else _windows_named(record, metric)
        relative = metric.name == "perplexity"
        value = math.log(metric.value) if relative else metric.value
        items = _task_items(metric, tasks.get(metric.dataset)) if task else _window_items(record, metric)
        if items is not None and not math.isclose(float(items.mean()), value, rel_tol=1e-5, abs_tol=1e-7):
            items = None  # the metric is no mean over them
        noun = "items" if task else "windows"
        found[metric.name, metric.dataset] = Scores(metric, value, items, relative, noun, answered)
    return found


def _window_items(record: Record, metric: Metric) -> Floats | None:
    """Return the value on each window. Perplexity and bits per byte follow from the loss of windows of one length."""
    if metric.name in ("perplexity", "bits_per_byte"):
        loss = record.metric("nll", metric.dataset)
        unit = 1.0 if metric.name == "perplexity" else metric.value / loss.value
        return np.array(loss.items) * unit if loss.items else None
    return np.array(metric.items) if metric.items else None


def _task_items(metric: Metric, result: TaskResult | None) -> Floats | None:
    if result is None:
        return None
    if metric.name == "perplexity":
        return -result.loglikelihoods[np.arange(len(result.gold)), result.gold].astype(np.float64)
    flags = {"acc": result.correct, "acc_norm": result.correct_norm}.get(metric.name)
    return None if flags is None else flags.astype(np.float64)


def _windows_named(record: Record, metric: Metric) -> dict[str, str]:
    """Return what decides the windows of a text, and what divergence is measured from."""
    asked, spec = record.spec.evaluation, record.spec
    hashes = dict(zip(asked.sources, asked.source_hashes or (), strict=False))
    named = {
        "eval_seq_len": str(asked.seq_len),
        "eval_n_windows": str(asked.n_windows),
        "text": str(hashes.get(metric.dataset)),
    }
    if metric.name in ("jensen_shannon", "kl_dense_pruned", "kl_pruned_dense", "agreement"):
        named["reference"] = asked.reference or spec.model
        named["reference_hash"] = str(asked.reference_hash if asked.reference else spec.model_hash)
    return named


def _items_named(record: Record, result: TaskResult | None) -> dict[str, str]:
    """Return what decides the items of a task."""
    asked = record.spec.evaluation
    if result is None:
        return {"limit": str(asked.task_limit), "shots": str(asked.shots)}
    which = hashlib.sha256(result.item_ids.tobytes() + result.part_of.tobytes()).hexdigest()[:8]
    return {
        "items": f"{len(result.item_ids)} ({which})",
        "shots": str(result.num_fewshot),
        "version": result.version,
        "split": result.split,
    }


def incomparable(pairs: Sequence[tuple[Scores | None, Scores | None]]) -> str:
    """Return why a metric cannot be compared, or an empty text."""
    for one, two in pairs:
        if one is None or two is None:
            return f"only {'A' if two is None else 'B'} has it"
        names = one.answered.keys() | two.answered.keys()
        other = [name for name in sorted(names) if one.answered.get(name) != two.answered.get(name)]
        if other:
            found = [f"{name} {one.answered.get(name)} and {two.answered.get(name)}" for name in other]
            return f"scored on other {one.noun} ({', '.join(found)})"
    return ""
