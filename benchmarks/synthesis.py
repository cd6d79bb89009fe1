"""The engine that writes texts beside transformers' `generate`: python benchmarks/synthesis.py [--new-tokens 256]

Both continue the same prefixes of C4 with the same sampling rules. `generate` takes the texts in batches of
`--batch-size`, as the papers' code does; the engine once in rows of the same number, once in as many as it chooses
itself. The default product is torch's own for float32, the chosen one that of `select_float32_matmul`. They take
turns, and the best of `--repeats` counts.

Tokens are those that are kept, without prefixes; with `--end-of-text stop` a batch of `generate` goes on until its
last text has ended. "floor" is the greater of two times, both measured here: to read all weights once for each step,
and to multiply them with every token that is kept, at the rate of large products.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from calib_study.benchmark_files import Benchmark, write_benchmark
from calib_study.environment import describe_environment
from calib_study.generation import write
from calib_study.manifests import Synthesis, checked_request
from calib_study.matmul import keep_freed_memory, select_float32_matmul
from calib_study.model_files import resolve_model
from calib_study.models import load_model
from calib_study.progress import bar
from calib_study.prompts import Ends, Prompt, ends_of, prompts_of
from calib_study.sampling import Sampling

SOURCE, SEED = "c4", 0
TARGET = 3.0  # tokens a second of the engine, in rows that it chooses, over those of plain `generate`
BASELINE, OURS = "generate, default product", "engine, rows it chooses"
COLUMNS = ("work", "tokens", "steps", "wall_s", "cpu_s", "tokens_per_s", "speedup", "floor_s", "over_floor")


@dataclass(frozen=True)
class Setup:
    """What is measured: a loaded model, prompts, sampling rules and ends of texts."""

    model: PreTrainedModel
    prompts: list[Prompt]
    sampling: Sampling
    ends: Ends
    new_tokens: int


@torch.no_grad()
def generated(setup: Setup, batch_size: int) -> tuple[int, int]:
    """Let `generate` write all texts; return how many tokens are kept, and the steps it took."""
    torch.manual_seed(SEED)
    kept, steps, rules = 0, 0, setup.sampling
    stops = list(setup.ends.ids) if setup.ends.policy == "stop" else None
    for start in range(0, len(setup.prompts), batch_size):
        some = setup.prompts[start : start + batch_size]
        ids = torch.tensor([prompt.tokens for prompt in some], device=setup.model.device)
        written = setup.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=rules.temperature,
            top_k=rules.top_k,
            top_p=rules.top_p,
            repetition_penalty=rules.repetition_penalty,
            max_new_tokens=setup.new_tokens,
            eos_token_id=stops,
            pad_token_id=setup.ends.ids[0],
        )[:, ids.shape[1] :]
        ended = torch.isin(written, torch.tensor(stops or [], device=written.device, dtype=written.dtype))
        kept += int((ended.cumsum(1) == 0).sum())
        steps += written.shape[1]
    return kept, steps


def engine(setup: Setup, batch_size: int | None) -> tuple[int, int]:
    """Let the engine write all texts; return the same."""
    kept = steps = 0
    options: dict[str, Any] = {"sampling": setup.sampling, "ends": setup.ends, "batch_size": batch_size}
    for finished in write(setup.model, setup.prompts, **options):
        kept += sum(text.n_drawn for text in finished)
        steps += 1
    return kept, steps


@contextmanager
def product(setting: str) -> Iterator[None]:
    """Let torch compute float32 products by its own setting inside."""
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, setting
    try:
        yield
    finally:
        products.fp32_precision = before


def read_seconds(model: PreTrainedModel) -> float:
    """Return the least time of five in which all weights are read once, by summing them."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        total = sum(parameter.sum(dtype=parameter.dtype).item() for parameter in model.parameters())
        times.append(time.perf_counter() - began)
        assert total == total, "weights are not finite"
    return min(times)


def multiply_seconds(model: PreTrainedModel) -> float:
    """Return the time that the products of one token take at the rate of a large product, best of five."""
    size = 1024
    factor = torch.randn(size, size, dtype=model.dtype, device=model.device)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        (factor @ factor)[0, 0].item()
        times.append(time.perf_counter() - began)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    return min(times) / size**3 * weights


def measured(name: str, work: Callable[[], tuple[int, int]], reading: float, token: float) -> dict[str, Any]:
    """Return a row: what one run kept and cost, and how far above the floor it was.

    Args:
        reading, token: seconds to read all weights, and to multiply them with one token.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    tokens, steps = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    floor = max(reading * steps, token * tokens)
    row = {"work": name, "tokens": tokens, "steps": steps, "wall_s": wall, "cpu_s": cpu, "tokens_per_s": tokens / wall}
    return row | {"floor_s": floor, "over_floor": wall / floor}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown, then whether the target is met."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
    for row in rows:
        cells = (f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in COLUMNS)
        lines.append("| " + " | ".join(cells) + " |")
    ours = next(row for row in rows if row["work"] == OURS)["speedup"]
    return (
        "\n".join(lines)
        + f"\n\n{ours:.2f} times `generate`; target {TARGET:g}: "
        + ("met" if ours >= TARGET else "NOT MET")
    )


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="synthesis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=32, help="texts at once, of `generate`")
    parser.add_argument("--n-texts", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--prefix-len", type=int, default=2)
    parser.add_argument("--end-of-text", choices=("stop", "continue"), default="stop")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args(argv)


def prepared(options: argparse.Namespace) -> Setup:
    """Return the loaded model and the texts to write."""
    asked = {name: getattr(options, name) for name in ("n_texts", "new_tokens", "prefix_len", "end_of_text", "dtype")}
    request = checked_request(Synthesis, model=options.model, prefix_source=SOURCE, seed=SEED, **asked)
    dense = load_model(resolve_model(options.model), dtype=options.dtype, device=options.device, keep=False)
    ends = ends_of(dense.model, dense.tokenizer, request)
    return Setup(dense.model, prompts_of(request, dense.tokenizer), Sampling(), ends, request.new_tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the file, and return 0 whether the target is met or not."""
    options = parsed(argv)
    torch.set_num_threads(options.threads)
    setup = prepared(options)
    default = torch.backends.mkldnn.matmul.fp32_precision
    library = select_float32_matmul() if options.device == "cpu" else "default"
    chosen = torch.backends.mkldnn.matmul.fp32_precision
    keep_freed_memory()
    reading, token = read_seconds(setup.model), multiply_seconds(setup.model)
    works: list[tuple[str, str, Callable[[], tuple[int, int]]]] = [
        (BASELINE, default, lambda: generated(setup, options.batch_size)),
        ("generate, chosen product", chosen, lambda: generated(setup, options.batch_size)),
        (f"engine, {options.batch_size} rows", chosen, lambda: engine(setup, options.batch_size)),
        (OURS, chosen, lambda: engine(setup, None)),
    ]
    best: dict[str, dict[str, Any]] = {}
    with bar(options.repeats * len(works), "measuring", "run") as progress:
        for name, setting, work in works * options.repeats:
            with product(setting):
                row = measured(name, work, reading, token)
            best[name] = min(row, best.get(name, row), key=lambda one: -one["tokens_per_s"])
            progress.update()
    rows = [row | {"speedup": row["tokens_per_s"] / best[BASELINE]["tokens_per_s"]} for row in best.values()]
    settings = {"source": SOURCE, "seed": SEED, "target": TARGET, "matmul": library}
    settings |= {"read_weights_s": reading, "multiply_token_s": token}
    settings |= {name: value for name, value in vars(options).items() if name != "json"}
    print(", ".join(f"{name} {value}" for name, value in settings.items()) + f"\n\n{table(rows)}")
    if options.json is not None:
        machine = describe_environment(options.device, library).model_dump()
        write_benchmark(options.json, Benchmark(settings=settings, environment=machine, rows=rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
