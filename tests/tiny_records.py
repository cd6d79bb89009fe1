"""Records made up for comparisons: the loss on each window, and the answers to each item, are given."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calib_study.records import CalibrationFacts, Environment, Metric, Record, SparsityFacts, Store
from calib_study.specs import Evaluation, RunSpec, make_spec
from calib_study.task_items import TaskMetric, TaskResult, item_arrays

BYTES = 0.25  # per token, for bits per byte


def spec(method: str = "wanda", source: str | None = "c4", seed: int = 0, **changes: Any) -> RunSpec:
    asked = {"sources": ("c4",), "seq_len": 16, "n_windows": 4, **changes.pop("evaluation", {})}
    fields = {"model": "m", "method": method, "sparsity": 0.5, "source": source, "seed": seed, "n_samples": 4}
    return make_spec(**{**fields, "evaluation": Evaluation(**asked), **changes})


def text_metrics(losses: Sequence[float], dataset: str = "c4") -> tuple[Metric, ...]:
    """Return perplexity, loss, and bits per byte whose windows weigh by their bytes, as a run has them."""
    mean = float(np.mean(losses))
    alike: dict[str, Any] = {"dataset": dataset, "higher_is_better": False, "n": 60}
    bits = mean / math.log(2) / BYTES
    return (
        Metric(name="perplexity", value=math.exp(mean), unit="per token", **alike),
        Metric(name="nll", value=mean, unit="nats/token", items=tuple(losses), **alike),
        Metric(name="bits_per_byte", value=bits, unit="bits/byte", items=tuple(np.array(losses) * 7.0), **alike),
    )


def answers(right: Sequence[bool], ids: Sequence[int] | None = None) -> TaskResult:
    """Return answers to items of piqa, of which some are right; the log-likelihood of the right answer is -1 or -2."""
    n = len(right)
    correct = np.array(right)
    nats = np.where(correct, -1.0, -2.0)
    return TaskResult(
        task="piqa",
        version="1",
        split="validation",
        n_total=100,
        num_fewshot=0,
        limit=n,
        seed=0,
        metrics={
            "acc": TaskMetric("acc", float(correct.mean()), 0.1, n, True),
            "perplexity": TaskMetric("perplexity", math.exp(-float(nats.mean())), None, n, False),
        },
        primary="acc",
        parts=("piqa",),
        part_of=np.zeros(n, dtype=np.int64),
        item_ids=np.arange(n) if ids is None else np.array(ids),
        gold=np.zeros(n, dtype=np.int64),
        chosen=np.where(correct, 0, 1),
        correct=correct,
        correct_norm=None,
        loglikelihoods=np.stack([nats, nats - 1], axis=1).astype(np.float32),
        n_chars=np.ones((n, 2), dtype=np.int64),
        n_bytes=np.ones((n, 2), dtype=np.int64),
    )


def record(asked: RunSpec, metrics: Sequence[Metric] = (), results: Sequence[TaskResult] = ()) -> Record:
    of_tasks = [
        Metric(name=one.name, dataset=r.task, value=one.value, unit="", higher_is_better=one.higher_is_better, n=one.n)
        for r in results
        for one in r.metrics.values()
    ]
    facts = CalibrationFacts(tokens_sha256="ab" * 32, n_tokens=64, n_documents=7)
    return Record(
        run_id=asked.run_id,
        spec=asked,
        model_sha256="cd" * 32,
        calibration=facts if asked.calibration else None,
        sparsity=SparsityFacts(overall=asked.sparsity, per_layer={}),
        metrics=(*metrics, *of_tasks),
        stages=(),
        environment=Environment(
            versions={},
            python="3.11",
            platform="Linux-x86_64",
            processor="a chip",
            device="cpu",
            threads=1,
            float32_matmul="default",
            git_commit=None,
            git_dirty=None,
        ),
        finished="2026-01-01T00:00:00+00:00",
    )


def keep(store: Store, asked: RunSpec, losses: Sequence[float], results: Sequence[TaskResult] = ()) -> Record:
    """Put the record of a run into a store, with its answers beside it; return it as it is read."""
    store.put(record(asked, text_metrics(losses), results), item_arrays(results))
    found = store.get(asked.run_id)
    assert found is not None
    return found


def group(store: Store, losses: Mapping[int, Sequence[float]], **changes: Any) -> list[Record]:
    """Put one run for each seed into a store."""
    return [keep(store, spec(seed=seed, **changes), values) for seed, values in losses.items()]
