"""What pruning costs, in forwards: python benchmarks/prune_cost.py [--n-samples 32] [--seq-len 256] [--threads 1]

One "forward" is a dense pass of the calibration windows through the decoder blocks, without lm_head, in the same
process, dtype and batch. The block-by-block walk needs two, less the last projection of each block in the first pass
and the whole second pass of the last block. CPU seconds of this process are compared, since wall time depends on what
else the machine is doing.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from calib_study import masks, prune, scores, walk
from calib_study.layers import all_layers
from calib_study.matmul import select_float32_matmul
from calib_study.methods import METHODS, Pattern
from calib_study.model_files import resolve_model
from calib_study.models import load_model


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
        norms = torch.ones(layer.d_in)
        masks.removed_by(scores.wanda(layer.weight(), norms), 0.5, Pattern(), "row")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dense = load_model(resolve_model("smollm2-135m"))
    tokens = np.random.default_rng(0).integers(0, 49_152, (options.n_samples, options.seq_len))
    wanda = prune.Request(METHODS["wanda"], 0.5, Pattern())

    default = min(cpu_seconds(lambda: forward(dense.model, tokens)) for _ in range(options.repeats))
    library = select_float32_matmul()
    floor, whole, arithmetic = [], [], []
    for _ in range(options.repeats):
        dense.restore()
        floor.append(cpu_seconds(lambda: forward(dense.model, tokens)))
        arithmetic.append(cpu_seconds(lambda: masks_only(dense.model)))
        whole.append(cpu_seconds(lambda: prune.prune_(dense.model, wanda, tokens, progress=False)))
    print(f"{options.n_samples} x {options.seq_len} tokens, float32, {options.threads} thread(s)")
    print(f"{'one forward, torch default':<38}{default:8.1f} CPU s")
    print(f"{'one forward, ' + library:<38}{min(floor):8.1f} CPU s")
    print(f"{'Wanda, block schedule':<38}{min(whole):8.1f} CPU s = {min(whole) / min(floor):.2f} forwards")
    print(f"{'  of which masks':<38}{min(arithmetic):8.1f} CPU s")


if __name__ == "__main__":
    main()
