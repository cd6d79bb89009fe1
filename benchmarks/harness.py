"""The adapter beside the harness's own model class, on every task: python benchmarks/harness.py [--limit 200]

Both score the same requests of the same model. For each task the table tells whether acc and acc_norm are equal on
every item, the largest difference of a log-likelihood, and the cost of each: CPU seconds of this process on a CPU,
since wall time depends on what else the machine is doing, else seconds of wall time. Preparing prompts is common to
both and left out. They take turns, and the best of `--repeats` counts.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from calib_study.branching import BranchingLM
from calib_study.matmul import select_float32_matmul
from calib_study.model_files import resolve_model
from calib_study.models import load_model
from calib_study.task_data import check_tasks, task_entry, task_names
from calib_study.task_items import TaskResult
from calib_study.tasks import run_tasks

HEADER = ("task", "shots", "items", "acc, stock", "acc, adapter", "acc and acc_norm", "max abs diff (nats)")


class Timed(LM):
    """A model that measures what its answers cost, in seconds."""

    def __init__(self, inner: LM, *, on_cpu: bool) -> None:
        super().__init__()
        self.inner = inner
        self.clock = time.process_time if on_cpu else time.perf_counter
        self.seconds = 0.0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        began = self.clock()
        answers: list[tuple[float, bool]] = self.inner.loglikelihood(requests)
        self.seconds = self.clock() - began
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


def measured(
    models: Sequence[LM], task: str, shots: int, options: argparse.Namespace
) -> list[tuple[TaskResult, float]]:
    """Return what each model scores on a task, and its least seconds."""
    timed = [Timed(model, on_cpu=options.device == "cpu") for model in models]
    results: dict[int, TaskResult] = {}
    seconds = [float("inf")] * len(timed)
    for _ in range(options.repeats):
        for index, model in enumerate(timed):
            (results[index],) = run_tasks(model, [task], limit=options.limit, seed=options.seed, num_fewshot=shots)
            seconds[index] = min(seconds[index], model.seconds)
    return [(results[index], seconds[index]) for index in range(len(timed))]


def line(task: str, shots: int, pair: list[tuple[TaskResult, float]]) -> str:
    """Return a row of the table."""
    (stock, stock_s), (ours, ours_s) = pair
    apart = np.nanmax(np.abs(stock.loglikelihoods.astype(float) - ours.loglikelihoods))
    differ = stock.correct != ours.correct
    if stock.correct_norm is not None and ours.correct_norm is not None:
        differ |= stock.correct_norm != ours.correct_norm
    verdict = f"{differ.sum()} items differ" if differ.any() else "equal"
    cells = [task, shots, len(stock.item_ids), f"{stock.value:.4f}", f"{ours.value:.4f}", verdict, f"{apart:.1e}"]
    cells += [f"{stock_s:.1f}", f"{ours_s:.1f}", f"{stock_s / ours_s:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=task_names(), metavar="TASK")
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness's own class")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    check_tasks(options.tasks, options.limit)
    torch.set_num_threads(options.threads)
    library = select_float32_matmul()
    dense = load_model(resolve_model(options.model), dtype=options.dtype, device=options.device)
    stock = HFLM(
        pretrained=dense.model, tokenizer=dense.tokenizer, device=options.device, batch_size=options.batch_size
    )
    models = [stock, BranchingLM(dense.model, dense.tokenizer)]
    print(
        f"{options.model}, {options.dtype}, {options.device}, {options.threads} thread(s), float32 products by "
        f"{library}, stock batch {options.batch_size}, {options.limit} items, seed {options.seed}\n"
    )
    unit = "CPU s" if options.device == "cpu" else "s"
    header = (*HEADER, f"stock ({unit})", f"adapter ({unit})", "stock / adapter")
    print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
    for task in options.tasks:
        usual = task_entry(task).num_fewshot
        for shots in sorted({usual, 0}, reverse=True):
            print(line(task, shots, measured(models, task, shots, options)), flush=True)


if __name__ == "__main__":
    main()
