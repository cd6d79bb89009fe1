"""The rows of prune_cost.py: what each measures, what it is compared with, and the limits it is held to."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from prune_work import (
    PATTERNS,
    Measured,
    Problem,
    choosing,
    forward,
    library_attention,
    library_product,
    outlier_pass,
    problems,
    pruning,
    solving,
    textbook_pruning,
    tokens_per_call,
)

from calib_study.matmul import threads
from calib_study.model_files import resolve_model
from calib_study.models import DenseModel, load_model

MODEL = "smollm2-135m"  # the limits are for this one, and for 32 windows of 256 tokens
GROUPS = ("forward", "choosing", "wanda", "sparsegpt", "solver", "dsnot", "owl", "independence")
SCHEDULES = {"float32": ("block", "sequential", "dense"), "bfloat16": ("sequential", "dense")}


class Bench:
    """The models and windows of a run, and what was measured: for each row the fastest of all rounds.

    Args:
        tokens: (n_samples, seq_len) calibration windows.
        held_out: windows on which pruned models are compared.
        library: which float32 product was chosen; `default_product` is torch's own setting.
    """

    def __init__(self, tokens: np.ndarray, held_out: np.ndarray, library: str, default_product: str) -> None:
        self.tokens, self.held_out = tokens, held_out
        self.library, self.default_product = library, default_product
        self.found: dict[tuple[str, str], Measured] = {}
        self._models: dict[str, DenseModel] = {}
        self._problems: list[Problem] = []

    def dense(self, dtype: str = "float32") -> DenseModel:
        """Return the model in a dtype, loaded at its first use."""
        if dtype not in self._models:
            self._models[dtype] = load_model(resolve_model(MODEL), dtype=dtype)
        return self._models[dtype]

    def problems(self) -> list[Problem]:
        """Return the weights and Gram matrices that SparseGPT starts from, computed once."""
        self._problems = self._problems or problems(self.dense(), self.tokens)
        return self._problems

    def measure(self, row: "Row") -> None:
        """Do a row's work once."""
        with ExitStack() as stack:
            if row.plain:
                stack.enter_context(library_product(self.default_product))
                stack.enter_context(library_attention(self.dense(row.dtype)))
            measured = row.run(self)
        before = self.found.get(row.key)
        if before is None or measured.cpu_s < before.cpu_s:
            self.found[row.key] = measured


@dataclass(frozen=True)
class Target:
    """A limit on one of the columns."""

    column: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Return whether a value keeps to the limit."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        group: what selects it on the command line.
        run: its work.
        baseline: the float32 row whose time and masks it is compared with.
        plain: whether products and attention are the libraries' own instead of those chosen for this machine.
    """

    group: str
    work: str
    run: Callable[[Bench], Measured]
    targets: tuple[Target, ...] = ()
    baseline: str | None = None
    dtype: str = "float32"
    plain: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it."""
        return self.work, self.dtype


def all_rows(library: str) -> list[Row]:
    """Return the lines of the table, in order."""
    second, extra = (Target("cpu_s", 1),), (Target("forwards", 1),)
    rows = forward_rows(library)
    rows += [
        Row("choosing", f"choosing by wanda, {p}", lambda b, p=p: choosing(b.dense(), p), second) for p in PATTERNS
    ]
    rows += method_rows("wanda", library) + method_rows("sparsegpt", library)
    rows += [
        Row("solver", f"sparsegpt solver, {p}", lambda b, p=p: solving(b.problems(), p), (Target("cpu_s", 6),))
        for p in PATTERNS
    ]
    rows += [
        Row("dsnot", "dsnot, block", lambda b: pruning(b.dense(), b.tokens, "dsnot"), (Target("wanda_ratio", 1.2),)),
        Row("owl", "owl, its extra pass", lambda b: outlier_pass(b.dense(), b.tokens), extra),
    ]
    return rows + independence_rows("wanda") + independence_rows("sparsegpt")


def forward_rows(library: str) -> list[Row]:
    """Return one forward by torch's default product, and by the one chosen."""
    default, chosen = "one forward, torch default", f"one forward, {library}"
    return [
        Row("forward", default, lambda b: forward(b.dense(), b.tokens), plain=True),
        Row("forward", chosen, lambda b: forward(b.dense(), b.tokens), baseline=default),
        Row("forward", chosen, lambda b: forward(b.dense("bfloat16"), b.tokens), dtype="bfloat16"),
    ]


def method_rows(method: str, library: str) -> list[Row]:
    """Return the baseline of a method, the baseline by the chosen product, and the engine's schedules."""
    name, targets = f"{method}, textbook", targets_of(method)

    def baseline(b: Bench) -> Measured:
        return textbook_pruning(b.dense(), b.tokens, method, b.held_out)

    def engine(b: Bench, schedule: str, dtype: str) -> Measured:
        return pruning(b.dense(dtype), b.tokens, method, schedule, b.held_out)

    rows = [
        Row(method, name, baseline, plain=True),
        Row(method, f"{name}, {library}", baseline, baseline=name),
    ]
    for dtype, schedules in SCHEDULES.items():
        for schedule in schedules:
            work = f"{method}, {schedule}"
            run = lambda b, schedule=schedule, dtype=dtype: engine(b, schedule, dtype)  # noqa: E731
            rows.append(Row(method, work, run, targets.get((schedule, dtype), ()), name, dtype))
    return rows


def targets_of(method: str) -> dict[tuple[str, str], tuple[Target, ...]]:
    """Return the limits of a method's rows, by schedule and dtype."""
    if method == "sparsegpt":
        block = (Target("forwards", 2.6), Target("baseline_ratio", 2.2, at_least=True), Target("masks_differ", 0.03))
        half = (Target("baseline_ratio", 3.3, at_least=True),)
        return {("block", "float32"): (*block, Target("perplexity_change", 0.01)), ("sequential", "bfloat16"): half}
    block = (Target("forwards", 2.0), Target("baseline_ratio", 2.2, at_least=True), Target("masks_differ", 0.001))
    half = (Target("forwards", 1.3), Target("baseline_ratio", 4.5, at_least=True))
    return {("block", "float32"): block, ("sequential", "bfloat16"): half, ("dense", "bfloat16"): half}


def independence_rows(method: str) -> list[Row]:
    """Return the method on a quarter of the windows, and the same in other batches and with another thread."""
    few = f"{method}, a quarter of the windows"
    agree = (Target("masks_differ", 0.03 if method == "sparsegpt" else 0.001),)

    def run(b: Bench) -> Measured:
        return pruning(b.dense(), b.tokens[: max(1, len(b.tokens) // 4)], method)

    def in_batches(b: Bench, number: int) -> Measured:
        with tokens_per_call(number):
            return run(b)

    def with_threads(b: Bench, number: int) -> Measured:
        with threads(number):
            return run(b)

    rows = [Row("independence", few, run)]
    for n in (256, 4096):
        work = f"{method}, batches of {n} tokens"
        rows.append(Row("independence", work, lambda b, n=n: in_batches(b, n), agree, few))
    return [*rows, Row("independence", f"{method}, 2 threads", lambda b: with_threads(b, 2), agree, few)]


def selected(rows: Sequence[Row], groups: Sequence[str], dtypes: Sequence[str]) -> list[Row]:
    """Return the rows of some groups and dtypes, with those that they are compared with."""
    wanted = {row.key for row in rows if row.group in groups and row.dtype in dtypes}
    if any(row.key in wanted and target.column == "wanda_ratio" for row in rows for target in row.targets):
        wanted.add(("wanda, block", "float32"))

    def with_baselines() -> set[tuple[str, str]]:
        return wanted | {(row.baseline, "float32") for row in rows if row.key in wanted and row.baseline}

    wanted = with_baselines()
    in_use = {dtype for _, dtype in wanted}
    wanted |= {row.key for row in rows if row.group == "forward" and row.dtype in in_use}
    wanted = with_baselines()
    return [row for row in rows if row.key in wanted]


def values_of(row: Row, bench: Bench) -> dict[str, float]:
    """Return those of a row's columns that apply to it, by the names of the file."""
    mine = bench.found[row.key]
    values = {"cpu_s": mine.cpu_s}
    whole = row.group in ("forward", "wanda", "sparsegpt", "dsnot", "owl")  # all windows pass through the model
    if whole:
        values["forwards"] = mine.cpu_s / bench.found[f"one forward, {bench.library}", row.dtype].cpu_s
    if row.group == "dsnot":
        values["wanda_ratio"] = mine.cpu_s / bench.found["wanda, block", "float32"].cpu_s
    if row.baseline is not None:
        other = bench.found[row.baseline, "float32"]
        if whole:
            values["baseline_ratio"] = other.cpu_s / mine.cpu_s
        if mine.zeros is not None and other.zeros is not None:
            values["masks_differ"] = int(np.bitwise_count(mine.zeros ^ other.zeros).sum()) / (8 * len(mine.zeros))
        if mine.perplexity is not None and other.perplexity is not None:
            values["perplexity_change"] = abs(mine.perplexity / other.perplexity - 1)
    return values
