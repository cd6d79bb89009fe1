"""How cost grows with calibration tokens, and what less memory costs: python benchmarks/scaling.py

Each number is measured in a process of its own, on one thread: CPU seconds of pruning, and the largest resident memory
of the whole process, of which `above` is what the same process does not need to prune by magnitude, without windows.
On a machine with one kind of memory, blocks that visit the "device" are copies in it.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from scipy.stats import linregress

MODEL, SEED = "smollm2-135m", 0
Result = TypeVar("Result")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# glibc then gives back what is freed at once, which takes time. Without, the peak tells more of its reserves than of
# what was in use; so time and memory are not measured in the same process.
NO_RESERVES = {"MALLOC_MMAP_THRESHOLD_": str(2**19)}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    method: str
    n_samples: int
    schedule: str = "block"
    hidden: str = "device"
    offload: bool = False

    @property
    def place(self) -> str:
        return f"hidden={self.hidden}" + (", offload" if self.offload else "")


@dataclass(frozen=True)
class Cost:
    """What it took: CPU seconds and the peak of resident memory in MB."""

    seconds: float
    peak_mb: float


def measure(case: Case, tokens: np.ndarray) -> Cost:
    """Prune in this process, which does nothing else, and return what it cost."""
    import torch

    from calib_study.criteria import Request
    from calib_study.environment import peak_memory_mb
    from calib_study.matmul import select_float32_matmul
    from calib_study.methods import METHODS, Pattern
    from calib_study.model_files import resolve_model
    from calib_study.models import load_model
    from calib_study.prune import prune_

    torch.set_num_threads(1)
    select_float32_matmul()
    model = load_model(resolve_model(MODEL), keep=False).model
    for parameter in model.parameters():
        parameter.sum()  # weights are mapped from a file; once read, they are part of what is resident
    began = time.process_time()
    prune_(
        model,
        Request(METHODS[case.method], 0.5, Pattern()),
        tokens if case.n_samples else None,
        schedule=case.schedule,
        device="cpu" if case.offload else None,
        hidden=case.hidden,
        progress=False,
    )
    return Cost(time.process_time() - began, peak_memory_mb("cpu") or 0.0)


def alone(work: Callable[..., Result], *arguments: object, **environment: str) -> Result:
    """Return what `work` returns in a new process."""
    os.environ.update(environment)  # which the process inherits
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        for name in environment:
            del os.environ[name]


def cost_of(case: Case, tokens: np.ndarray) -> Cost:
    """Return the cost of a case: time from one new process, memory from another."""
    seconds = alone(measure, case, tokens[: case.n_samples], **ONE_THREAD).seconds
    peak = alone(measure, case, tokens[: case.n_samples], **ONE_THREAD, **NO_RESERVES).peak_mb
    return Cost(seconds, peak)


def windows(n_samples: int, seq_len: int) -> np.ndarray:
    """Return (n_samples, seq_len) token ids of c4, drawn in a new process: this one's memory stays small."""
    from calib_study.model_files import resolve_model
    from calib_study.models import load_tokenizer
    from calib_study.windows import draw_windows

    tokenizer = load_tokenizer(resolve_model(MODEL))
    return draw_windows("c4", tokenizer, n_samples=n_samples, seq_len=seq_len, seed=SEED).tokens


def fit(n_tokens: Sequence[int], values: Sequence[float]) -> str:
    """Return the slope of a straight line per 1,000 tokens, and how well it fits."""
    line = linregress(np.array(n_tokens) / 1000, values)
    return f"{line.slope:.3f} (R² {line.rvalue**2:.5f})"


def table(sizes: Sequence[int], seq_len: int, methods: Sequence[str]) -> None:
    """Measure and print one line after the other, then the fits."""
    tokens = alone(windows, max(sizes), seq_len)
    base = cost_of(Case("magnitude", 0), tokens)

    def line(case: Case) -> Cost:
        cost = cost_of(case, tokens)
        above = cost.peak_mb - base.peak_mb
        print(
            f"| {case.method} | {case.schedule} | {case.place} | {case.n_samples} | {case.n_samples * seq_len:,} "
            f"| {cost.seconds:.1f} | {cost.peak_mb:,.0f} | {above:,.0f} |",
            flush=True,
        )
        return cost

    print("| method | schedule | placement | windows | tokens | CPU s | peak MB | above MB |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    print(f"| magnitude | | | 0 | 0 | {base.seconds:.1f} | {base.peak_mb:,.0f} | 0 |", flush=True)
    fits = []
    for method in methods:
        costs = [line(Case(method, n)) for n in sizes]
        n_tokens = [n * seq_len for n in sizes]
        seconds, memory = fit(n_tokens, [c.seconds for c in costs]), fit(n_tokens, [c.peak_mb for c in costs])
        fits.append(f"{method}, block: {seconds} CPU s and {memory} MB for 1,000 tokens")
    for schedule in ("block", "sequential"):
        for hidden, offload in (("device", schedule == "block"), ("file", True)):
            line(Case(methods[0], max(sizes), schedule, hidden, offload))
    print("\n" + "\n".join(fits))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32, 64], help="calibration windows")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=("wanda", "sparsegpt"), default=["wanda", "sparsegpt"])
    options = parser.parse_args()
    table(options.sizes, options.seq_len, options.methods)


if __name__ == "__main__":
    main()
