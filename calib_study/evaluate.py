"""One model as it is, scored: perplexity, divergence from another model, tasks; a table, and a record to keep."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calib_study.errors import InputError
from calib_study.export import dtype_on
from calib_study.model_files import ModelRef, resolve_model
from calib_study.preflight import check_specs, evaluation_of
from calib_study.records import Metric, Record, Store
from calib_study.specs import RunSpec, make_spec

DIVERGENCE_SOURCES = ("c4", "wikipedia")  # where predictions are compared if no text is named


@dataclass(frozen=True)
class EvaluateJob:
    """A checked request of `calib-study evaluate`."""

    ref: ModelRef
    reference: ModelRef | None
    spec: RunSpec
    device: str

    @classmethod
    def checked(
        cls,
        *,
        model: str,
        tasks: Sequence[str],
        limit: int | None,
        shots: int | None,
        sources: Sequence[str],
        seq_len: int,
        n_windows: int,
        divergence_from: str | None,
        dtype: str,
        device: str,
        remote_code: bool = False,
    ) -> "EvaluateJob":
        """Return the job. Raises InputError for anything that would fail later, without loading a model."""
        if not (tasks or sources or divergence_from):
            raise InputError("nothing to measure: give --tasks, --perplexity or --divergence-from.")
        if not tasks and (limit is not None or shots is not None):
            raise InputError("--limit and --shots are for --tasks.")
        asked: dict[str, Any] = {"seq_len": seq_len, "n_windows": n_windows, "tasks": tuple(tasks)}
        asked |= {"task_limit": limit, "shots": shots, "divergence": divergence_from is not None}
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit}: ask for at least 1 item of a task, or set no limit to take all.")
        ref = resolve_model(model, remote_code=remote_code)
        reference = None
        if divergence_from is not None:
            reference = resolve_model(divergence_from, remote_code=remote_code)
            if ref.vocab_size != reference.vocab_size:
                raise InputError(
                    f"{ref.name} has a vocabulary of {ref.vocab_size:,} tokens and {reference.name} one of "
                    f"{reference.vocab_size:,}. Divergence compares probabilities of the same tokens: give the model "
                    "that it was pruned from."
                )
            asked |= {"reference": reference.name, "reference_hash": reference.content_hash()}
            sources = sources or DIVERGENCE_SOURCES
        spec = make_spec(
            model=ref.name,
            model_hash=ref.content_hash(),
            method="dense",
            sparsity=0,
            dtype=dtype_on(device, dtype),
            evaluation=evaluation_of(sources, **asked),
        )
        check_specs([spec], ref)
        return cls(ref, reference, spec, device)

    def run(self, echo: Callable[[str], Any]) -> Record:
        """Return the record, computed if the store does not have it; `echo` gets the table line by line."""
        store = Store.default()
        record = store.get(self.spec.run_id)
        if record is None:
            from calib_study.study import Laboratory

            lab = Laboratory(self.ref, dtype=self.spec.dtype, device=self.device, reference=self.reference)
            done = lab.run(self.spec, progress=True)
            echo(f"record {store.put(done.record, done.arrays)}")
            record = done.record
        else:
            echo(f"record {record.run_id}, computed before: {record.finished}")
        for line in table(record.metrics):
            echo(line)
        return record


def table(metrics: Sequence[Metric]) -> list[str]:
    """Return the lines of a table: metric, data set, value with its standard error, unit, how many tokens or items."""
    rows = [("metric", "on", "value", "s.e.", "unit", "n")]
    for metric in metrics:
        stderr = "" if metric.stderr is None else f"{metric.stderr:.4f}"
        rows.append((metric.name, metric.dataset, f"{metric.value:.4f}", stderr, metric.unit, f"{metric.n:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, 1, 4)
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
