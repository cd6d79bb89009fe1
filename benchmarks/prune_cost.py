"""What pruning costs, in forwards, beside a textbook program: python benchmarks/prune_cost.py [--rows wanda owl]

One "forward" is a dense pass of the calibration windows through the decoder blocks, without lm_head, in the same
process, dtype and batch. CPU seconds of this process are compared, since wall time depends on what else the machine is
doing; of `--repeats` rounds the best counts. The baseline is benchmarks/textbook.py in float32: window by window, full
sorts, torch's default product. Its masks, and the perplexity they leave on held-out text, are compared with the
engine's. OPENBLAS_NUM_THREADS=1 should go with `--threads 1`.

Groups of rows: forward (by torch's default product and by the one chosen here); choosing (scores and masks of Wanda for
the whole model, statistics given); wanda; sparsegpt; solver (SparseGPT's factorisation and column loop, Gram matrices
given); dsnot; owl (its extra pass); independence (masks from other batches and numbers of threads, on a quarter of the
windows). Rows that others are compared with are measured with them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from prune_rows import GROUPS, MODEL, Bench, Row, all_rows, selected, values_of
from prune_work import SPARSITY

from calib_study.benchmark_files import Benchmark, write_benchmark
from calib_study.environment import describe_environment
from calib_study.matmul import keep_freed_memory, select_float32_matmul
from calib_study.model_files import resolve_model
from calib_study.models import load_tokenizer
from calib_study.progress import bar
from calib_study.windows import draw_windows

SOURCE, SEED, HELD_OUT_WINDOWS = "c4", 0, 16
COLUMNS = {  # of the file -> of the table
    "cpu_s": "CPU s",
    "forwards": "forwards",
    "baseline_ratio": "baseline/this",
    "wanda_ratio": "this/wanda",
    "masks_differ": "masks differ",
    "perplexity_change": "perplexity",
}
SHARES = ("masks_differ", "perplexity_change")  # shown in per cent


def result(row: Row, bench: Bench) -> dict[str, Any]:
    """Return a row as it is written to the file; `met` is true if all its targets are, null if it has none."""
    values = values_of(row, bench)
    targets = [{**asdict(one), "value": values[one.column], "met": one.met(values[one.column])} for one in row.targets]
    limits = [f"{t['column']} {'>=' if t['at_least'] else '<='} {shown(t['column'], t['limit'])}" for t in targets]
    return {
        "work": row.work,
        "dtype": row.dtype,
        **values,
        "target": "; ".join(limits) or None,
        "met": all(target["met"] for target in targets) if targets else None,
        "targets": targets,
    }


def shown(column: str, value: float | None) -> str:
    """Return a value as the table shows it."""
    if value is None:
        return ""
    return f"{value:.3%}" if column in SHARES else f"{value:.3g}"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return one line for each row: its columns, then its targets and which of them it does not meet."""
    lines = [f"{'work':<38}{'dtype':<10}" + "".join(f"{title:>14}" for title in COLUMNS.values()) + "  target"]
    for row in results:
        cells = "".join(f"{shown(column, row.get(column)):>14}" for column in COLUMNS)
        missed = ", ".join(target["column"] for target in row["targets"] if not target["met"])
        verdict = (
            "" if row["met"] is None else f"  {row['target']}: " + ("met" if row["met"] else f"NOT MET ({missed})")
        )
        lines.append(f"{row['work']:<38}{row['dtype']:<10}{cells}{verdict}")
    return "\n".join(lines)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="prune_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--n-samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1, help="rounds over all rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the file, and return 0 whether targets are met or not."""
    options = parsed(argv)
    torch.set_num_threads(options.threads)
    default_product = torch.backends.mkldnn.matmul.fp32_precision
    library = select_float32_matmul()
    keep_freed_memory()
    tokenizer, shape = load_tokenizer(resolve_model(MODEL)), {"seq_len": options.seq_len, "seed": SEED}
    windows = draw_windows(SOURCE, tokenizer, n_samples=options.n_samples, **shape)
    held_out = draw_windows(SOURCE, tokenizer, n_samples=HELD_OUT_WINDOWS, part="held_out", **shape)
    bench = Bench(windows.tokens, held_out.tokens, library, default_product)
    rows = selected(all_rows(library), options.rows, options.dtype)
    with bar(len(rows) * options.repeats, "measuring", "row") as done:
        for row in rows * options.repeats:
            done.set_postfix_str(f"{row.work}, {row.dtype}")
            bench.measure(row)
            done.update()
    results = [result(row, bench) for row in rows]
    print(f"{MODEL}, {options.n_samples} x {options.seq_len} tokens of {SOURCE}, sparsity {SPARSITY}, ", end="")
    print(f"{options.threads} thread(s), best of {options.repeats}\n{table(results)}")
    if options.json is not None:
        settings = {"model": MODEL, "source": SOURCE, "n_samples": options.n_samples, **shape, "sparsity": SPARSITY}
        settings |= {"threads": options.threads, "repeats": options.repeats}
        machine = describe_environment("cpu", library).model_dump()
        write_benchmark(options.json, Benchmark(settings=settings, environment=machine, rows=results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
