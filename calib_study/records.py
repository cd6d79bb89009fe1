"""Records: what a run produced, with all that is needed to repeat it; and the store that keeps them.

One JSON file per record, named by its run_id. What a run knows item by item (a sample of its masks, the answers to
each question) is in a file of arrays beside it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from calib_study import paths
from calib_study.errors import StudyError
from calib_study.methods import Pattern
from calib_study.specs import Owl, RunSpec
from calib_study.stores import FileStore, Part, Result, parsed, text_of

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
OWL_SUFFIX = "+owl"  # after the name of a method whose sparsity OWL allocates to the blocks


class Metric(Part):
    """One measured number.

    Attributes:
        n: how many tokens it is a mean over.
        stderr: standard error over the evaluated windows, or None if not defined.
        items: the value on each window, in order; what comparisons paired by text need. Empty if derived.
    """

    name: str
    dataset: str
    value: float
    unit: str
    higher_is_better: bool
    n: int
    stderr: float | None = None
    items: tuple[float, ...] = ()


class Stage(Part):
    """Cost of one part of a run: seconds of wall time, and the process's peak memory so far in MB (10^6 bytes)."""

    name: str
    wall_s: float
    peak_memory_mb: float | None


class CalibrationFacts(Part):
    """What the calibration text turned out to be."""

    tokens_sha256: str
    n_tokens: int
    n_documents: int


class SparsityFacts(Part):
    """Achieved sparsity: fraction of exact zeros over all block linears, and of each."""

    overall: float
    per_layer: dict[str, float]


class Environment(Part):
    """Where a record was computed. Two environments that differ may differ in the last digits of a metric."""

    versions: dict[str, str]
    python: str
    platform: str
    processor: str
    device: str
    threads: int
    float32_matmul: str
    git_commit: str | None
    git_dirty: bool | None


class Record(Result):
    """One finished run."""

    schema_version: Literal[1] = 1
    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    spec: RunSpec
    model_sha256: str
    calibration: CalibrationFacts | None
    sparsity: SparsityFacts
    metrics: tuple[Metric, ...]
    stages: tuple[Stage, ...]
    environment: Environment
    finished: str

    @property
    def key(self) -> str:
        """The run_id."""
        return self.run_id

    def metric(self, name: str, dataset: str) -> Metric:
        """Return the metric of that name on that data set. Raises StudyError if the record has none."""
        for metric in self.metrics:
            if (metric.name, metric.dataset) == (name, dataset):
                return metric
        raise StudyError(f"record {self.run_id} has no {name} on {dataset}.")


def parse_record(text: str, name: str) -> Record:
    """Return the record in a JSON text. Raises StudyError saying what is wrong with the file called `name`."""
    record = parsed(text, name, Record, "record", SCHEMA_VERSION)
    if record.spec.run_id != record.run_id or name != f"{record.run_id}.json":
        raise StudyError(f"{name}: its specification has run_id {record.spec.run_id}; it was changed or renamed.")
    return record


def read_record(file: Path) -> Record:
    """Return the record in a file. Raises StudyError if it is none."""
    return parse_record(text_of(file), file.name)


class Store(FileStore[Record]):
    """Records in folders; see `FileStore`."""

    noun = "record"
    computed = "run"

    @classmethod
    def default(cls) -> "Store":
        """Return the store of published records and of those computed here, which go to `paths.records_dir()`."""
        return cls(paths.records_dir(), [paths.results_dir()])

    def read(self, file: Path) -> Record:
        """Return the record in a file. Raises StudyError if it is none."""
        return read_record(file)


def to_frame(records: Iterable[Record]) -> "pd.DataFrame":
    """Return a tidy table: one row for each metric of each record, with the run's specification in columns.

    `method` ends in "+owl" where `allocation` is "owl" instead of "uniform"; `options` are those that differ from the
    defaults, as text.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in records:
        spec, text = record.spec, record.spec.calibration
        run = {
            "run_id": record.run_id,
            "model": spec.model,
            "method": spec.method + (OWL_SUFFIX if spec.allocation else ""),
            "sparsity": spec.sparsity,
            "pattern": spec.pattern,
            "schedule": spec.schedule,
            "allocation": "owl" if spec.allocation else "uniform",
            "options": _options_text(spec),
            "source": text.source if text else None,
            "policy": text.policy if text else None,
            "n_samples": text.n_samples if text else None,
            "seq_len": text.seq_len if text else None,
            "min_tokens": text.min_tokens if text else None,
            "seed": spec.seed,
            "dtype": spec.dtype,
            "achieved_sparsity": record.sparsity.overall,
        }
        for metric in record.metrics:
            rows.append({**run, "metric": metric.name, **metric.model_dump(exclude={"name", "items"})})
    return pd.DataFrame(rows)


def default_owl(pattern: str) -> Owl:
    """Return the published parameters of OWL: lambda is 0.08 of sparsity, or 2 of N for an N:M pattern."""
    return Owl(lam=2.0) if Pattern.parse(pattern).structured else Owl()


def _options_text(spec: RunSpec) -> str:
    """Return the parameters of method and allocation that differ from the defaults: "damping=0.1, lam=0.05"."""
    chosen = dict(spec.options or ())
    if spec.allocation is not None:
        usual = default_owl(spec.pattern).model_dump()
        chosen |= {name: value for name, value in spec.allocation.model_dump().items() if value != usual[name]}
    return ", ".join(f"{name}={value}" for name, value in chosen.items())
