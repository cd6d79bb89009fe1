"""Running specifications: one, or a grid of them.

`run_grid` is what notebooks call: it returns the records of a list of specifications, computing only those that
the store does not have. Nothing else writes records.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from calib_study.array_files import Array
from calib_study.criteria import Request
from calib_study.divergence import DenseOutputs, check_vocabularies, score
from calib_study.environment import describe_environment, peak_memory_mb
from calib_study.errors import InputError, NumericalError
from calib_study.mask_samples import sample_mask
from calib_study.matmul import select_float32_matmul
from calib_study.methods import Pattern, method_named
from calib_study.metrics import task_metrics, text_metrics
from calib_study.model_files import ModelRef, resolve_model
from calib_study.models import DenseModel, check_device, load_model
from calib_study.moment_cache import MomentCache
from calib_study.offload import Placement, streamed
from calib_study.perplexity import bits_per_byte
from calib_study.preflight import check_specs
from calib_study.prune import achieved_sparsity, allocated, prune_
from calib_study.records import CalibrationFacts, Metric, Record, SparsityFacts, Stage, Store
from calib_study.specs import RunSpec
from calib_study.stores import compute_missing
from calib_study.task_items import TaskResult, item_arrays
from calib_study.windows import Windows, draw_windows, load_tokens

# Held-out windows are drawn once and for all, so that every run is scored on the same tokens.
EVALUATION_SEED = 0


class Laboratory:
    """A loaded model on a device, ready to run any number of specifications that name it.

    Args:
        ref: the model; its pristine weights are kept, so that runs do not affect each other.
        tokens_file: calibration tokens to use instead of drawing windows (`spec.calibration.tokens_sha256` must
            then be theirs).
        reference: the model from which divergence is measured, if it is another than this one unpruned.
        offload: keep the model in the CPU's memory, and move its blocks to the device one at a time.
        hidden: where the hidden states of the calibration windows are kept; see `Walk`.
        once: only one specification is to be run, so that the pristine weights need not be kept.
    """

    def __init__(
        self,
        ref: ModelRef,
        *,
        dtype: str,
        device: str,
        tokens_file: Path | None = None,
        reference: ModelRef | None = None,
        offload: bool = False,
        hidden: Placement = "device",
        once: bool = False,
    ) -> None:
        check_device(device)
        self.matmul = select_float32_matmul() if device == "cpu" else "default"
        self.device = device
        self.dtype = dtype
        self.dense: DenseModel = load_model(ref, dtype=dtype, device="cpu" if offload else device, keep=not once)
        self.visited = device if offload else None  # by one block at a time
        self.hidden = hidden
        self.weights_sha256 = self.dense.weights_sha256()
        self.tokens_file = tokens_file
        self.reference = reference
        # statistics of the dense model depend on its weights, whatever file they came from, and on the arithmetic
        self.cache = MomentCache(f"{self.weights_sha256}:{dtype}:{device}:{self.matmul}")
        self.held_out = lru_cache(maxsize=None)(self._held_out)
        self._references = lru_cache(maxsize=None)(self._reference_outputs)

    def calibration_windows(self, spec: RunSpec) -> Windows | None:
        """Return the windows that a specification names; None if its method uses none."""
        text = spec.calibration
        if text is None:
            return None
        if text.tokens_sha256 is None:
            return draw_windows(
                text.source,
                self.dense.tokenizer,
                n_samples=text.n_samples,
                seq_len=text.seq_len,
                seed=spec.seed,
                policy=text.policy,
                min_tokens=text.min_tokens,
            )
        if self.tokens_file is None:
            raise InputError(f"this run was calibrated on saved tokens {text.tokens_sha256[:12]}…: give their file.")
        windows = load_tokens(self.tokens_file, vocab_size=self.dense.ref.vocab_size)
        if windows.sha256 != text.tokens_sha256:
            raise InputError(f"{self.tokens_file}: hash {windows.sha256[:12]}…, not {text.tokens_sha256[:12]}….")
        return windows

    def _held_out(self, source: str, n_windows: int, seq_len: int) -> Windows:
        return draw_windows(
            source,
            self.dense.tokenizer,
            n_samples=n_windows,
            seq_len=seq_len,
            seed=EVALUATION_SEED,
            policy="packed",
            part="held_out",
        )

    def prune(self, spec: RunSpec, *, progress: bool = False) -> Windows | None:
        """Prune the model in place as specified, from its dense weights; return the calibration windows used."""
        windows = self.calibration_windows(spec)
        self.dense.restore()
        tokens = windows.tokens if windows else None
        alike = Request(
            method_named(spec.method), spec.sparsity, Pattern.parse(spec.pattern), spec.seed, dict(spec.options or ())
        )
        where: Any = {"cache": self.cache, "device": self.visited, "hidden": self.hidden}
        request: Request | list[Request] = alike
        if spec.allocation is not None and tokens is not None:
            request = allocated(self.dense.model, alike, tokens, spec.allocation, **where, progress=progress)
        prune_(self.dense.model, request, tokens, schedule=spec.schedule, **where, progress=progress)
        return windows

    def evaluate(self, spec: RunSpec, *, progress: bool = False) -> tuple[tuple[Metric, ...], list[TaskResult]]:
        """Return the metrics of the model as it is now, and its answers to tasks.

        Divergence is from the model that `reference_outputs` saw, which must have been called before pruning.
        """
        asked, metrics = spec.evaluation, []
        for source in asked.sources:
            held_out = self.held_out(source, asked.n_windows, asked.seq_len).tokens
            dense = self.reference_outputs(spec, source) if asked.divergence else None
            try:
                with streamed(self.dense.model, self.visited):
                    perplexity, divergence = score(self.dense.model, held_out, dense)
            except NumericalError as error:
                raise NumericalError(f"{spec.title}, on {source}: {error}") from error
            bits = bits_per_byte(perplexity, held_out, self.dense.tokenizer) if asked.divergence else None
            metrics += text_metrics(source, perplexity, divergence, bits)
        results: list[TaskResult] = []
        if asked.tasks:
            from calib_study.branching import BranchingLM
            from calib_study.tasks import run_tasks  # the harness takes seconds to import

            lm = BranchingLM(self.dense.model, self.dense.tokenizer, progress=progress)
            results = run_tasks(lm, asked.tasks, limit=asked.task_limit, seed=EVALUATION_SEED, num_fewshot=asked.shots)
        return (*metrics, *task_metrics(results)), results

    def reference_outputs(self, spec: RunSpec, source: str) -> DenseOutputs:
        """Return what the dense model, or the specification's other reference, predicts on a held-out text.

        Computed once for a text; that first call puts the dense weights back.
        """
        asked = spec.evaluation
        if asked.reference != (self.reference and self.reference.name):
            raise InputError(
                f"the run compares with {asked.reference or 'its own dense model'}: give that as reference."
            )
        return self._references(source, asked.n_windows, asked.seq_len)

    def _reference_outputs(self, source: str, n_windows: int, seq_len: int) -> DenseOutputs:
        tokens = self.held_out(source, n_windows, seq_len).tokens
        if self.reference is not None:
            other = load_model(self.reference, dtype=self.dtype, device=self.device).model
            check_vocabularies(other, self.dense.model)
            return DenseOutputs(other, tokens)
        self.dense.restore()
        return DenseOutputs(self.dense.model, tokens)

    def run(self, spec: RunSpec, *, progress: bool = False) -> "Run":
        """Prune and evaluate; return the run, which the caller stores. The model is left pruned."""
        if (spec.model, spec.dtype) != (self.dense.ref.name, self.dtype):
            loaded = f"{self.dense.ref.name} in {self.dtype}"
            raise InputError(f"the run is of {spec.model} in {spec.dtype}, but {loaded} is loaded.")
        stages: list[Stage] = []
        if spec.evaluation.divergence:
            with _timed("reference", stages, self.device):
                for source in spec.evaluation.sources:
                    self.reference_outputs(spec, source)
        with _timed("prune", stages, self.device):
            windows = self.prune(spec, progress=progress)
        with _timed("evaluate", stages, self.device):
            metrics, results = self.evaluate(spec, progress=progress)
        overall, per_layer = achieved_sparsity(self.dense.model)
        facts = None
        if windows is not None:
            facts = CalibrationFacts(
                tokens_sha256=windows.sha256, n_tokens=windows.tokens.size, n_documents=windows.n_documents
            )
        record = Record(
            run_id=spec.run_id,
            spec=spec,
            model_sha256=self.weights_sha256,
            calibration=facts,
            sparsity=SparsityFacts(overall=overall, per_layer=per_layer),
            metrics=metrics,
            stages=tuple(stages),
            environment=describe_environment(self.device, self.matmul),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Run(record, sample_mask(self.dense.model).arrays() | item_arrays(results))


@dataclass(frozen=True)
class Run:
    """What a run produced: its record, and the arrays that `Store.put` writes beside it."""

    record: Record
    arrays: Mapping[str, Array]


@contextmanager
def _timed(name: str, stages: list[Stage], device: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages.append(Stage(name=name, wall_s=round(time.perf_counter() - start, 3), peak_memory_mb=peak_memory_mb(device)))


def run_grid(
    specs: Sequence[RunSpec],
    *,
    model: str | None = None,
    device: str = "cpu",
    store: Store | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the records of all specifications, in their order; compute those that the store does not have.

    Every record is stored as soon as it is finished. Several processes may be given the same grid and store:
    each computes runs that no other is computing, then waits for the rest. Everything is checked first.

    Args:
        specs: they may name one model and one dtype at most; repeated ones are run once.
        model: where to load the model from if its name does not say (a path); by default the name itself.
    """
    store = store or Store.default()
    wanted = {spec.run_id: spec for spec in specs}
    missing = {run_id: spec for run_id, spec in wanted.items() if store.get(run_id) is None}
    if missing:
        ref = _common_model(list(missing.values()), model)
        check_specs(missing.values(), ref)
        _compute(missing, ref, device, store, progress)
    found = {run_id: store.get(run_id) for run_id in wanted}
    return [record for spec in specs if (record := found[spec.run_id]) is not None]


def _common_model(specs: list[RunSpec], model: str | None) -> ModelRef:
    names = {(spec.model, spec.dtype) for spec in specs}
    if len(names) > 1:
        got = ", ".join(f"{name} in {dtype}" for name, dtype in sorted(names))
        raise InputError(f"one grid, one model and dtype; got {got}. Run a grid for each.")
    return resolve_model(model or specs[0].model)


def _compute(missing: dict[str, RunSpec], ref: ModelRef, device: str, store: Store, progress: bool) -> None:
    """Compute runs until the store has all of `missing`, leaving to other processes what they have claimed."""

    @cache
    def laboratory(dtype: str) -> Laboratory:
        return Laboratory(ref, dtype=dtype, device=device)

    def compute(spec: RunSpec) -> None:
        done = laboratory(spec.dtype).run(spec)
        store.put(done.record, done.arrays)

    compute_missing(missing, store, compute, title=lambda spec: spec.title, progress=progress)
