"""What pruning costs, in forwards: python benchmarks/prune_cost.py [--n-samples 32] [--seq-len 256] [--threads 1]

One "forward" is a dense pass of the calibration windows through the decoder blocks, without lm_head, in the same
process, dtype and batch. CPU seconds of this process are compared, since wall time depends on what else the machine is
doing. The baseline is benchmarks/textbook.py; its masks are compared with the engine's.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import textbook
import torch

from calib_study import masks, scores, walk
from calib_study.criteria import Request
from calib_study.layers import all_layers
from calib_study.matmul import select_float32_matmul
from calib_study.methods import METHODS, Pattern
from calib_study.model_files import resolve_model
from calib_study.models import DenseModel, load_model
from calib_study.prune import prune_
from calib_study.windows import draw_windows


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process, all threads, for one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def forward(model: torch.nn.Module, tokens: np.ndarray) -> None:
    """Pass all windows through the decoder blocks, a few at a time, as the walk does."""
    per_call = max(1, walk.TOKENS_PER_CALL // tokens.shape[1])
    with torch.no_grad():
        for batch in torch.from_numpy(tokens).split(per_call):
            model.model(batch, use_cache=False)


def masks_only(model: torch.nn.Module) -> None:
    """Compute every mask of the model from given statistics: the arithmetic without the forwards."""
    for layer in all_layers(model).values():
        masks.removed_by(scores.wanda(layer.weight(), torch.ones(layer.d_in)), 0.5, Pattern(), "row")


def zeros(model: torch.nn.Module) -> torch.Tensor:
    """Return which of all block weights are zero, as one vector."""
    return torch.cat([layer.weight().flatten() == 0 for layer in all_layers(model).values()])


def pruned(dense: DenseModel, work: Callable[[], object]) -> tuple[float, torch.Tensor]:
    """Return the CPU seconds of `work` on the dense model, and its zeros."""
    dense.restore()
    return cpu_seconds(work), zeros(dense.model)


def table(dense: DenseModel, tokens: np.ndarray, methods: Sequence[str]) -> None:
    """Measure and print one line after the other."""
    ids = torch.from_numpy(tokens)
    default = min(cpu_seconds(lambda: forward(dense.model, tokens)) for _ in range(2))
    baseline = {
        name: pruned(
            dense,
            lambda name=name: textbook.prune_block_by_block(
                dense.model, ids, getattr(textbook, name), gram=name == "sparsegpt"
            ),
        )
        for name in methods
    }
    library = select_float32_matmul()
    dense.restore()
    floor = min(cpu_seconds(lambda: forward(dense.model, tokens)) for _ in range(3))

    def line(name: str, seconds: float, rest: str = "") -> None:
        print(f"{name:<42}{seconds:8.1f}{seconds / floor:10.2f}{rest}", flush=True)

    print(f"{'work':<42}{'CPU s':>8}{'forwards':>10}{'baseline / this':>17}{'masks differ':>14}")
    line("one forward, torch default", default)
    line(f"one forward, {library}", floor)
    line(
        "choosing weights by Wanda, statistics given",
        min(cpu_seconds(lambda: masks_only(dense.model)) for _ in range(3)),
    )
    for name in methods:
        line(f"{name}, textbook", baseline[name][0])
        for schedule in ("block", "sequential", "dense"):
            request = Request(METHODS[name], 0.5, Pattern())
            seconds, found = pruned(
                dense,
                lambda request=request, schedule=schedule: prune_(
                    dense.model, request, tokens, schedule=schedule, progress=False
                ),
            )
            differ = (found != baseline[name][1]).float().mean().item()
            line(f"{name}, {schedule}", seconds, f"{baseline[name][0] / seconds:>17.2f}{differ:>14.3%}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=("wanda", "sparsegpt"), default=["wanda", "sparsegpt"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense = load_model(resolve_model("smollm2-135m"))
    windows = draw_windows("c4", dense.tokenizer, n_samples=options.n_samples, seq_len=options.seq_len, seed=0)
    print(f"{options.n_samples} x {options.seq_len} tokens of c4, float32, {options.threads} thread(s), sparsity 0.5")
    table(dense, windows.tokens, options.methods)


if __name__ == "__main__":
    main()
