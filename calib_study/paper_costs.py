"""What the profile `paper` of each chapter would cost: the tokens that its runs read, and hours of a GPU.

Hours are an estimate: operations of matrix products over a throughput that is assumed, and said, below.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from calib_study.errors import InputError
from calib_study.methods import METHODS
from calib_study.plans import PAPER, chapters_planned, planned, written
from calib_study.records import OWL_SUFFIX
from calib_study.schedule_tables import cost_table
from calib_study.specs import RunSpec

# One A100 of 80 GB, which Williams & Aletras 2024 used. Peaks: NVIDIA's data sheet of it, bfloat16 without sparsity.
PEAK_TFLOPS, PEAK_TBYTES = 312.0, 2.0
UTILISATION = 0.4  # assumed: of either peak; large matrix products in plain PyTorch come to a third or a half
GPU_TFLOPS, GPU_TBYTES = UTILISATION * PEAK_TFLOPS, UTILISATION * PEAK_TBYTES
WRITTEN_AT_ONCE = 32  # texts that the main paper's code writes side by side
BYTES = 2  # of a weight in bfloat16
CHARACTERS = 4  # of English to a token, roughly, in vocabularies of 32,000 to 150,000
SAMPLED_ITEMS = 32  # of each task, to see how long its items are
LIKE = {"wanda_variant": "wanda"}  # methods whose cost was not measured: what they cost about as much as
ALL = "all, shared runs once"


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder of the Llama kind without shared embeddings; `kv` is the width of keys and values."""

    layers: int
    d_model: int
    d_ff: int
    kv: int
    vocabulary: int

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of all blocks: queries and output, keys and values, three of feed-forward."""
        attention = 2 * self.d_model**2 + 2 * self.d_model * self.kv
        return self.layers * (attention + 3 * self.d_model * self.d_ff)

    @property
    def head_weights(self) -> int:
        """Weights of the output layer; the embedding has as many, but is looked up, not multiplied."""
        return self.d_model * self.vocabulary

    @property
    def parameters(self) -> int:
        """All of them but the norms and biases, which are fewer than one in a thousand."""
        return self.block_weights + 2 * self.head_weights


# Source: config.json of each on the hub, as public scripts repeat it. The vocabulary of DCLM-7B,
# GPT-NeoX's padded, is from memory; it counts in the output layer only, which is 3 % of the weights.
MODELS = {
    "DCLM-7B": Shape(32, 4096, 11008, 4096, 50432),
    "Llama-3-8B": Shape(32, 4096, 14336, 1024, 128256),
    "Llama-2-7B": Shape(32, 4096, 11008, 4096, 32000),
    "Qwen2.5-7B": Shape(28, 3584, 18944, 512, 152064),
}


def plan_table(profile: str = PAPER, items: Mapping[str, tuple[int, float]] | None = None) -> pd.DataFrame:
    """Return what each method has to read in each chapter, in tokens.

    Columns: chapter, method, runs, calibration (tokens of all calibration windows, once), forwards (tokens passed
    through the blocks: those of the windows, times what the benchmark measured for the method and schedule), scored
    (tokens of held-out text), answered (tokens of tasks). One row for each method of a chapter, and of all chapters
    together, in which a run that several have counts once.

    Args:
        items: by task, its number of items and their mean length in tokens; by default from `task_lengths`.
    """
    chapters = {slug: planned(slug, profile) for slug in chapters_planned(profile)}
    chapters[ALL] = tuple(dict.fromkeys(run for runs in chapters.values() for run in runs))
    lengths = task_lengths(_tasks(chapters[ALL])) if items is None else items
    forwards = measured_forwards()
    rows = [
        (chapter, method_of(run), 1, calibration_tokens(run), pruning_tokens(run, forwards), *_evaluated(run, lengths))
        for chapter, runs in chapters.items()
        for run in runs
    ]
    columns = ["chapter", "method", "runs", "calibration", "forwards", "scored", "answered"]
    return pd.DataFrame(rows, columns=columns).groupby(["chapter", "method"], sort=False, as_index=False).sum()


def hours_table(plan: pd.DataFrame, profile: str = PAPER) -> pd.DataFrame:
    """Return the estimated hours of one GPU: chapter, model, prune, score, answer, write, total.

    Two operations for each weight that a token meets: the blocks' in pruning, the output layer's too in scoring.
    Source: Kaplan et al. 2020, section 2.1; attention's own products, here under a twentieth, are left out. Writing
    is bound by memory: each step reads all weights once for `WRITTEN_AT_ONCE` texts.

    Args:
        plan: from `plan_table`.
    """
    sums = plan.groupby("chapter", sort=False)[["forwards", "scored", "answered"]].sum()
    texts = _written([str(chapter) for chapter in sums.index], profile)
    rows = []
    for chapter, (forwards, scored, answered) in zip(sums.index, sums.to_numpy(), strict=True):
        for name, shape in MODELS.items():
            through_all = shape.block_weights + shape.head_weights
            hours = [
                _hours(2 * shape.block_weights * forwards),
                _hours(2 * through_all * scored),
                _hours(2 * through_all * answered),
                sum(texts[chapter].values()) / WRITTEN_AT_ONCE * through_all * BYTES / (GPU_TBYTES * 1e12) / 3600,
            ]
            rows.append((chapter, name, *hours, sum(hours)))
    return pd.DataFrame(rows, columns=["chapter", "model", "prune", "score", "answer", "write", "total"])


def _written(chapters: Sequence[str], profile: str) -> dict[str, dict[tuple[Any, ...], int]]:
    """Return by chapter the texts that the model writes, with their tokens; for all chapters each once."""
    texts = {slug: written(slug, profile) for slug in chapters if slug != ALL}
    return texts | {ALL: {text: tokens for found in texts.values() for text, tokens in found.items()}}


def _hours(operations: float) -> float:
    return operations / (GPU_TFLOPS * 1e12) / 3600


def method_of(run: RunSpec) -> str:
    """Return the method of a run, with OWL if it allocates the sparsity."""
    return run.method + (OWL_SUFFIX if run.allocation else "")


def calibration_tokens(run: RunSpec) -> int:
    """Return how many tokens its calibration windows have."""
    text = run.calibration
    return text.n_samples * text.seq_len if text else 0


def measured_forwards(file: Path | None = None) -> dict[tuple[str, str], float]:
    """Return, by method and schedule, the cost of pruning in forwards of the calibration windows, as measured.

    From the CPU times of `benchmarks/results/prune_cost.json`, in float32; that of OWL's extra pass is at ("owl", "").
    Raises InputError if there is no measurement.
    """
    table = cost_table(file)
    rows = table[table["dtype"].eq("float32") & table["forwards"].notna()] if len(table) else table
    found: dict[tuple[str, str], float] = {}
    for work, forwards in zip(rows["work"].astype(str), rows["forwards"], strict=True):
        method, _, schedule = work.partition(", ")
        if schedule in ("block", "sequential", "dense"):
            found[method, schedule] = float(forwards)
        elif work.startswith("owl"):
            found["owl", ""] = float(forwards)
    if not found:
        raise InputError("no measured cost of pruning; `calib-study bench prune --json FILE` makes one.")
    return found


def pruning_tokens(run: RunSpec, forwards: Mapping[tuple[str, str], float]) -> float:
    """Return the tokens of dense forwards through the blocks that cost as much as pruning.

    Raises InputError for a method or a schedule that was not measured.
    """
    if run.calibration is None:
        return 0.0
    name, tokens = LIKE.get(run.method, run.method), calibration_tokens(run)
    times = forwards["owl", ""] if run.allocation else 0.0
    if not METHODS[run.method].needs_calibration:  # only OWL reads text
        return times * tokens
    if (name, run.schedule) not in forwards:
        raise InputError(f"the cost of {run.method} under schedule {run.schedule!r} was not measured.")
    return (times + forwards[name, run.schedule]) * tokens


def _evaluated(run: RunSpec, lengths: Mapping[str, tuple[int, float]]) -> tuple[int, float]:
    """Return the tokens of held-out text and of tasks that a run is scored on."""
    asked = run.evaluation
    answered = 0.0
    for task in asked.tasks or ():
        n, length = lengths[task]
        answered += min(n, asked.task_limit or n) * length
    return len(asked.sources) * asked.n_windows * asked.seq_len, answered


def _tasks(runs: Iterable[RunSpec]) -> list[str]:
    return list(dict.fromkeys(task for run in runs for task in run.evaluation.tasks or ()))


@cache
def _task_length(task: str) -> tuple[int, float]:
    from calib_study.task_prompts import prepare  # the harness takes seconds to import

    prepared = prepare(task, SAMPLED_ITEMS, 0, None)
    asked, characters = iter(prepared.requests), 0
    for given in prepared.given:
        texts = [next(asked).args for answer in given if answer]
        characters += sum(map(len, {context for context, _ in texts})) + sum(len(answer) for _, answer in texts)
    return prepared.n_total, characters / len(prepared.item_ids) / CHARACTERS


def task_lengths(tasks: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return by task how many items it has, and their mean length in tokens, from a few items of each.

    What the answers to one question share counts once, as our adapter reads it; examples before a question count with
    each question, which is more than the adapter reads.
    """
    return {task: _task_length(task) for task in tasks}


# --- as shown -----------------------------------------------------------------------------------------------


def runs_by_method(plan: pd.DataFrame) -> pd.DataFrame:
    """Return the number of runs by chapter (rows) and method (columns), and in all."""
    table = plan.pivot(index="chapter", columns="method", values="runs").fillna(0).astype(int)
    table = table.loc[list(dict.fromkeys(plan["chapter"])), list(dict.fromkeys(plan["method"]))]
    return table.assign(all=table.sum(axis=1)).rename_axis(index=None, columns=None)


def tokens_by_chapter(plan: pd.DataFrame, profile: str = PAPER) -> pd.DataFrame:
    """Return millions of tokens by chapter: of calibration windows, of held-out text, of tasks, and written."""
    table = plan.groupby("chapter", sort=False)[["calibration", "scored", "answered"]].sum()
    table["written"] = [sum(texts.values()) for texts in _written(list(table.index), profile).values()]
    names = {
        "calibration": "calibration windows",
        "scored": "held-out text",
        "answered": "tasks",
        "written": "own text",
    }
    return (table / 1e6).round(1).rename(columns=names).rename_axis("millions of tokens")


def hours_by_model(hours: pd.DataFrame) -> pd.DataFrame:
    """Return the hours in all, by chapter (rows) and model (columns)."""
    table = hours.pivot(index="chapter", columns="model", values="total").round(1)
    table = table.loc[list(dict.fromkeys(hours["chapter"])), list(dict.fromkeys(hours["model"]))]
    return table.rename_axis(index=None, columns=None)


def describe_assumptions() -> str:
    """Return in words what the estimate of hours assumes."""
    return (
        f"Assumed: an A100 of 80 GB at {100 * UTILISATION:.0f} % of its peaks, which are {PEAK_TFLOPS:.0f} TFLOPS in "
        f"bfloat16 and {PEAK_TBYTES:g} TB/s (NVIDIA's data sheet); {CHARACTERS} characters to a token of a task; own "
        f"text written {WRITTEN_AT_ONCE} at once, as in the main paper's code. Half the share means twice the hours."
    )


def describe_hours(hours: pd.DataFrame) -> str:
    """Return in words what all chapters would take, and what takes most of it."""
    total = hours[hours["chapter"] == ALL].set_index("model")
    parts = ["prune", "score", "answer", "write"]
    names = {"prune": "pruning", "score": "held-out text", "answer": "tasks", "write": "own text"}
    shares = total[parts].sum() / total["total"].sum()
    said = ", ".join(f"{names[str(part)]} {100 * share:.0f} %" for part, share in shares.items())
    models = ", ".join(f"{name} {row['total']:,.0f}" for name, row in total.iterrows())
    return f"All chapters, runs that several share counted once, take GPU hours of: {models}. Of these: {said}."
