"""The adapter beside the harness's own model class, on every task: python benchmarks/harness.py [--limit 200]

Both score the same requests of the same model. For each task the table tells on how many items acc or acc_norm differ,
the largest difference of a log-likelihood, and the cost of each: CPU seconds of this process on a CPU, since wall time
depends on what else the machine is doing, else seconds of wall time. Preparing prompts is common to both and left out;
what else an evaluation costs beside the model's answers is the overhead. They take turns, and the best of `--repeats`
counts. OPENBLAS_NUM_THREADS=1 should go with `--threads 1`.

With `--json` the file is written after every row, and the same command goes on with those that it lacks. Rows of other
settings, another machine or another adapter are not mixed with them.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.huggingface import HFLM

from calib_study.benchmark_files import Benchmark, begun, code_hash, write_benchmark
from calib_study.branching import BranchingLM
from calib_study.environment import describe_environment
from calib_study.errors import InputError, StudyError
from calib_study.matmul import select_float32_matmul
from calib_study.model_files import resolve_model
from calib_study.models import load_model
from calib_study.progress import bar
from calib_study.task_data import check_tasks, task_entry, task_names
from calib_study.task_items import TaskResult
from calib_study.task_prompts import prepare
from calib_study.tasks import run_tasks

ADAPTER = ("branching", "task_data", "task_prompts", "tasks")  # modules that decide answers and their cost
# Stock over adapter, at least: tasks whose items have several answers that share a question, and all others.
SHARING, TARGET_SHARING, TARGET = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa"), 1.8, 1.0
OVERHEAD = 1.0  # seconds, below which an evaluation's overhead should stay
METRICS = ("acc", "acc_norm", "perplexity")


class Timed(LM):
    """A model that measures what its answers cost, in seconds."""

    def __init__(self, inner: TemplateLM, *, on_cpu: bool) -> None:
        super().__init__()
        self.inner = inner
        self.clock = time.process_time if on_cpu else time.perf_counter
        self.seconds = 0.0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        began = self.clock()
        answers: list[tuple[float, bool]] = self.inner.loglikelihood(requests, disable_tqdm=True)
        self.seconds = self.clock() - began
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Measured:
    """What a model scores on a task, its least seconds, and the least that the evaluation took beside them."""

    result: TaskResult
    seconds: float
    overhead: float


# --- measuring --------------------------------------------------------------------------------------------


def loaded(options: argparse.Namespace) -> list[TemplateLM]:
    """Return the stock class and the adapter on one model, which has answered before, so that neither pays for that."""
    dense = load_model(resolve_model(options.model), dtype=options.dtype, device=options.device)
    stock = HFLM(
        pretrained=dense.model, tokenizer=dense.tokenizer, device=options.device, batch_size=options.batch_size
    )
    models = [stock, BranchingLM(dense.model, dense.tokenizer, progress=False)]
    first = [Instance("loglikelihood", {}, ("A question", f" {answer}"), 0) for answer in ("yes", "no")]
    for model in models:
        model.loglikelihood(first, disable_tqdm=True)
    return models


def measured(models: Sequence[TemplateLM], task: str, shots: int, options: argparse.Namespace) -> list[Measured]:
    """Return what each model scores on a task and what it costs; the task is prepared before."""
    limit = limit_of(task, options)
    prepare(task, limit, options.seed, shots)
    timed = [Timed(model, on_cpu=options.device == "cpu") for model in models]
    found: list[list[Measured]] = [[] for _ in timed]
    for _ in range(options.repeats):
        for runs, model in zip(found, timed, strict=True):
            began = model.clock()
            (result,) = run_tasks(model, [task], limit=limit, seed=options.seed, num_fewshot=shots)
            runs.append(Measured(result, model.seconds, model.clock() - began - model.seconds))
    return [
        Measured(runs[-1].result, min(run.seconds for run in runs), min(run.overhead for run in runs)) for runs in found
    ]


def row_of(task: str, shots: int, stock: Measured, adapter: Measured) -> dict[str, Any]:
    """Return a row as it is written to the file; a metric that the task lacks is null.

    `max_abs_difference` is in nats. `overhead_s` is that of the adapter's evaluation. `met` is about the ratio.
    """
    one, other = stock.result, adapter.result
    differ = one.correct != other.correct
    if one.correct_norm is not None and other.correct_norm is not None:
        differ = differ | (one.correct_norm != other.correct_norm)
    apart = np.nanmax(np.abs(one.loglikelihoods.astype(float) - other.loglikelihoods))
    ratio, target = stock.seconds / adapter.seconds, TARGET_SHARING if task in SHARING else TARGET
    return {
        "task": task,
        "shots": shots,
        "items": len(one.item_ids),
        "n_total": one.n_total,
        **{f"{metric}_stock": metric_of(one, metric) for metric in METRICS},
        **{f"{metric}_adapter": metric_of(other, metric) for metric in METRICS},
        "items_that_differ": int(differ.sum()),
        "max_abs_difference": float(apart),
        "stock_s": stock.seconds,
        "adapter_s": adapter.seconds,
        "ratio": ratio,
        "target": target,
        "met": ratio >= target,
        "overhead_s": adapter.overhead,
    }


def metric_of(result: TaskResult, name: str) -> float | None:
    """Return a metric, if the task has it."""
    return result.metrics[name].value if name in result.metrics else None


# --- the table --------------------------------------------------------------------------------------------


def header(device: str) -> str:
    """Return the head of the table."""
    unit = "CPU s" if device == "cpu" else "s"
    cells = ["task", "shots", "items", "acc, stock", "acc, adapter", "acc and acc_norm", "max abs diff (nats)"]
    cells += [f"stock ({unit})", f"adapter ({unit})", "stock / adapter", "target", f"overhead ({unit})"]
    return "| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|"


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    differ = row["items_that_differ"]
    cells = [row["task"], row["shots"], f"{row['items']} of {row['n_total']}"]
    cells += [f"{row['acc_stock']:.4f}", f"{row['acc_adapter']:.4f}", f"{differ} items differ" if differ else "equal"]
    cells += [f"{row['max_abs_difference']:.1e}", f"{row['stock_s']:.1f}", f"{row['adapter_s']:.1f}"]
    cells += [f"{row['ratio']:.2f}", f"{row['target']}: " + ("met" if row["met"] else "NOT MET")]
    cells += [f"{row['overhead_s']:.2f}" + ("" if row["overhead_s"] < OVERHEAD else f" (NOT below {OVERHEAD:g})")]
    return "| " + " | ".join(map(str, cells)) + " |"


# --- the program ------------------------------------------------------------------------------------------


def own_limit(text: str) -> tuple[str, int]:
    """Return a task and its number of items from TASK=N."""
    task, equals, number = text.partition("=")
    if not (task and equals and number.isdecimal() and int(number) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=N, such as mmlu=20")
    return task, int(number)


def limit_of(task: str, options: argparse.Namespace) -> int:
    """Return how many items of a task are scored."""
    limit: int = dict(options.limits).get(task, options.limit)
    return limit


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="harness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=task_names(), metavar="TASK")
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument(
        "--limits", nargs="+", type=own_limit, default=[], metavar="TASK=N", help="items of one task, instead"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness's own class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too, and go on with its rows")
    return parser.parse_args(argv)


def check(options: argparse.Namespace) -> None:
    """Raise what `check_tasks` does, and InputError for a limit of a task that is not measured."""
    check_tasks(options.tasks, options.limit)
    others = [task for task, _ in options.limits if task not in options.tasks]
    if others:
        raise InputError(f"--limits names {', '.join(others)}, not measured here: {', '.join(options.tasks)}.")


def not_measured(options: argparse.Namespace, library: str) -> Benchmark:
    """Return what identifies a measurement, without rows. Tasks do not: a file may be filled in several runs."""
    names = ("model", "dtype", "device", "threads", "batch_size", "limit", "seed", "repeats")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"limits": dict(options.limits), "lm_eval": version("lm_eval")}
    environment = describe_environment(options.device, library).model_dump()
    return Benchmark(settings=settings, environment=environment | {"code_sha256": code_hash(ADAPTER)}, rows=[])


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in the catalogue's order, that with more examples first."""
    names = task_names()
    return sorted(rows, key=lambda row: (names.index(row["task"]), -row["shots"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the file lacks, print the table, and return 0 whether targets are met or not."""
    options = parsed(argv)
    check(options)
    torch.set_num_threads(options.threads)
    library = select_float32_matmul()
    benchmark = not_measured(options, library)
    if options.json is not None:
        benchmark = begun(options.json, benchmark, "harness.py")
    wanted = [(task, n) for task in options.tasks for n in sorted({task_entry(task).num_fewshot, 0}, reverse=True)]
    done = {(row["task"], row["shots"]): row for row in benchmark.rows}
    missing = [key for key in wanted if key not in done]
    print(", ".join(f"{name} {value}" for name, value in benchmark.settings.items() if value != {}), end="")
    print(f", float32 products by {library}\n\n{header(options.device)}")
    for key in wanted:
        if key in done:
            print(line(done[key]), flush=True)
    models = loaded(options) if missing else []
    with bar(len(wanted), "measuring", "row", initial=len(wanted) - len(missing), shown=bool(missing)) as progress:
        for task, shots in missing:
            progress.set_postfix_str(f"{task}, {shots} shots, {limit_of(task, options)} items")
            done[task, shots] = row_of(task, shots, *measured(models, task, shots, options))
            if options.json is not None:
                rows = in_order(list(done.values()))
                write_benchmark(options.json, benchmark.model_copy(update={"rows": rows}))
            progress.write(line(done[task, shots]))
            progress.update()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
