"""A crossed grid in miniature, made up: runs, answers and records of which every number is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from calib_study.measures import Answers, measure_table

TEXTS = ("c4", "code", "math")
METHODS = ("wanda", "sparsegpt")
SEEDS = range(3)
LAYOUT = (TEXTS, METHODS, SEEDS)
TASKS = np.array(["piqa"] * 6 + ["copa"] * 6)
HELD_OUT = ("c4", "code")


def settings(method: str, source: str | None, seed: int, sparsity: float) -> dict[str, Any]:
    """Return the columns of a run in the tidy frame."""
    return {
        "run_id": f"{method}-{source}-{seed}-{sparsity}",
        "model": "m",
        "method": method,
        "sparsity": sparsity,
        "pattern": "unstructured",
        "schedule": "block",
        "allocation": "uniform",
        "options": "",
        "source": source,
        "policy": None,
        "min_tokens": None,
        "n_samples": None,
        "seq_len": None,
        "seed": seed,
        "dtype": "float32",
    }


def grid() -> list[dict[str, Any]]:
    """Return the dense run, magnitude, and every text with every method and seed, at 50 %."""
    runs = [settings("dense", None, 0, 0.0), settings("magnitude", None, 0, 0.5)]
    return runs + [settings(m, t, s, 0.5) for s in SEEDS for t in TEXTS for m in METHODS]


def loss(run: dict[str, Any], text: str) -> float:
    """Return what a run loses on a text: 1.0 with SparseGPT, 1.5 with Wanda, 0.1 a place of source, less at home."""
    if run["method"] in ("dense", "magnitude"):
        return 0.0 if run["method"] == "dense" else 3.0 * run["sparsity"] / 0.5
    place = TEXTS.index(run["source"])
    at_home = 0.4 if run["source"] == text else 0.0
    return (1.0 if run["method"] == "sparsegpt" else 1.5) + 0.1 * place - at_home + 0.01 * run["seed"] * (place + 1)


def tidy(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the tidy frame of runs: the loss of each, divergences a tenth of it, agreement 1 less a tenth."""
    rows = []
    for run in runs:
        for text in HELD_OUT:
            lost = loss(run, text)
            values = {
                "nll": 3 + lost,
                "jensen_shannon": lost / 10,
                "kl_dense_pruned": lost / 5,
                "agreement": 1 - lost / 10,
            }
            rows += [{**run, "metric": name, "dataset": text, "value": value} for name, value in values.items()]
    return pd.DataFrame(rows)


def answers(runs: list[dict[str, Any]], *, seed: int = 0) -> Answers:
    """Return answers: bits follow the loss, and right are the items below a threshold; the dense one gets all right."""
    hard = np.random.default_rng(seed).uniform(0, 3, len(TASKS))
    losses = np.array([np.mean([loss(run, text) for text in HELD_OUT]) for run in runs])
    bits = losses[:, None] + hard
    return Answers(tuple(run["run_id"] for run in runs), TASKS, (bits < 3.0).astype(float), bits)


def measured(runs: list[dict[str, Any]] | None = None) -> tuple[pd.DataFrame, Answers]:
    """Return the table of measures of runs (of `grid`) and their answers."""
    runs = grid() if runs is None else runs
    answered = answers(runs)
    return measure_table(tidy(runs), answered), answered


def records(runs: list[dict[str, Any]]) -> list[Any]:
    """Return stand-ins for records: windows of each held-out text, of which the second is 0.2 harder for all."""
    found = []
    for number, run in enumerate(runs):
        metrics = [
            SimpleNamespace(
                name=name, dataset=text, items=(scale * loss(run, text), scale * loss(run, text) + 0.2 + wobble)
            )
            for name, scale in (("nll", 1.0), ("jensen_shannon", 0.1))
            for text, wobble in zip(HELD_OUT, (0.01 * (number % 3), 0.0), strict=True)
        ]
        found.append(SimpleNamespace(run_id=run["run_id"], metrics=metrics))
    return found
