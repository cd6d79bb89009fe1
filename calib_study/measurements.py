"""Measurements: results that are no run of a grid, with all that is needed to repeat them, and their store.

A measurement answers a request. Each kind of request is a class of its own here, told apart by its field `kind`; what
computes a kind is elsewhere (`measurement_runs`). To add a kind: write its class, and name it in `AnyRequest`.

The JSON file of a measurement holds the request and its metrics; what it knows layer by layer, block by block or
window by window is in a file of arrays beside it, of which it has the hash.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator

from calib_study import paths
from calib_study.errors import InputError, StudyError
from calib_study.methods import Pattern, method_named
from calib_study.records import Environment, Metric, Stage
from calib_study.specs import (
    Calibration,
    DType,
    Evaluation,
    Frozen,
    RunSpec,
    agreeing_pattern,
    content_id,
    make_spec,
    parse_spec,
    passing,
    problem,
    problem_lines,
)
from calib_study.stores import FileStore, Result, parsed, text_of

SCHEMA_VERSION = 1


# --- requests ---------------------------------------------------------------------------------------------


class Draw(Frozen):
    """A calibration text and the seed that draws its windows."""

    text: Calibration
    seed: int = Field(ge=0)

    @property
    def title(self) -> str:
        """A few words: which text, and which draw of it."""
        return f"{self.text.source}, seed {self.seed}"


class Request(Frozen):
    """What every kind of measurement is asked of: a model.

    Args:
        kind: which class of request it is. model, model_hash, dtype: as in `RunSpec`.
    """

    kind: str
    model: str
    model_hash: str | None = None
    dtype: DType = "float32"

    @property
    def measurement_id(self) -> str:
        """16 hexadecimal digits: the SHA-256 of the request's canonical JSON."""
        return content_id(self)

    @property
    def title(self) -> str:
        """A few words for a progress bar or a table row."""
        raise NotImplementedError

    def specs(self) -> list[RunSpec]:
        """Return the runs whose model, texts and windows it uses: what must be there to answer it."""
        raise NotImplementedError


def _reading(name: str) -> str:
    if method_named(name).code_sha256 is not None:
        raise problem(f"method {name!r} is your own; a measurement does not say which code it was made with.")
    if not method_named(name).needs_calibration:
        raise problem(f"method {name!r} reads no text; name one that does, for example 'wanda'.")
    return name


class PruningRequest(Request):
    """A request about models that were pruned by statistics of the dense model, which the moment cache keeps.

    Args:
        evaluation, method, sparsity, pattern, schedule: as in `RunSpec`.
    """

    evaluation: Evaluation
    method: Annotated[str, passing(method_named), AfterValidator(_reading)]
    sparsity: float = Field(gt=0, lt=1)
    pattern: Annotated[str, passing(Pattern.parse)] = "unstructured"
    schedule: Literal["dense"] = "dense"
    stride: int = Field(default=1, ge=1, description="every so many blocks, from the first, are measured")

    @field_validator("pattern")
    @classmethod
    def _implies_sparsity(cls, pattern: str, info: ValidationInfo) -> str:
        return agreeing_pattern(pattern, info.data.get("sparsity"))

    def spec(self, draw: Draw | None) -> RunSpec:
        """Return the run that prunes by a draw of text; None: the dense model."""
        names = ("model", "model_hash", "dtype", "evaluation")
        fields = {name: getattr(self, name) for name in names}
        if draw is None:
            return make_spec(method="dense", sparsity=0, **fields)
        fields |= {name: getattr(self, name) for name in ("method", "sparsity", "pattern", "schedule")}
        return parse_spec({**fields, "calibration": draw.text, "seed": draw.seed})


class LayerProfile(PruningRequest):
    """What one draw of text says of every layer, and what a mask made from it does to each layer's output.

    Arrays, layers and blocks in the order of the model:
        layers, kinds (n_layers,) full names, and names inside the block; blocks (n_layers,) their blocks.
        mask_layers, mask_sizes, mask_bits: `n_positions` positions of each layer's mask, as in `MaskSample`.
        norms (n_channels,): root mean square of each input channel, input after input, rounded to 12 significant
            bits; inputs (n_layers,): which input a layer reads; widths (n_inputs,): channels of each.
        outliers (n_blocks,): OWL's share of outlying Wanda scores, per cent.
        datasets (n_texts,): held-out texts; errors (n_layers, n_texts): ||X (W - W')||^2 / ||X W||^2 with the inputs X
            that the dense model gives on that text; NaN in blocks that `stride` leaves out.
    """

    kind: Literal["layer_profile"] = "layer_profile"
    draw: Draw
    outlier_multiple: float = Field(default=5.0, gt=1, description="of the block's mean score; M of OWL")
    n_positions: int = Field(default=4096, ge=8, multiple_of=8, description="of each layer's mask that are kept")

    @property
    def title(self) -> str:
        """A few words for a progress bar or a table row."""
        return f"layers under {self.draw.title}"

    def specs(self) -> list[RunSpec]:
        """Return the run whose masks it is about."""
        return [self.spec(self.draw)]


class BlockSwap(PruningRequest):
    """What it does to predictions when one block has other weights than the rest: each block in its turn.

    Arrays: blocks (n_swaps,), the swapped ones; datasets (n_windows,), the held-out text of each window; base_nll
    (n_windows,), of the model all of whose blocks are alike; nll, divergence (n_swaps, n_windows): with that block
    swapped, nats per token, and KL(all alike || swapped), nats per token.

    Args:
        base: what all other blocks are pruned by; None: they are dense.
        other: what the swapped block is pruned by; None: it is dense.
    """

    kind: Literal["block_swap"] = "block_swap"
    base: Draw | None = None
    other: Draw | None = None

    @field_validator("other")
    @classmethod
    def _something_pruned(cls, other: Draw | None, info: ValidationInfo) -> Draw | None:
        if other is None and info.data.get("base") is None:
            raise problem("name a text for `base`, `other` or both; without one nothing is pruned.")
        return other

    @property
    def title(self) -> str:
        """A few words for a progress bar or a table row."""
        one, rest = (draw.title if draw else "dense" for draw in (self.other, self.base))
        return f"one block by {one}; the rest {'' if self.base is None else 'by '}{rest}"

    def specs(self) -> list[RunSpec]:
        """Return the runs that the blocks are taken from."""
        return [self.spec(draw) for draw in dict.fromkeys((self.base, self.other))]


class TextScores(Request):
    """How familiar a draw of text is to the dense model, and how like a reference.

    Arrays: nll, min_k, min_k_plus_plus (n_windows,), as `membership.MembershipScores`; with a reference also inputs
    (n_inputs,), "BLOCK.LAYER" of the first layer that reads each, and norm_distance (n_inputs,), nats. Metrics, with a
    reference: unigram_divergence and norm_distance, the mean over inputs.

    Args:
        reference: a draw of the text that stands in for what the model was trained on. k: share of the tokens, the
            least likely ones, that Min-K % and Min-K %++ are means over.
    """

    kind: Literal["text_scores"] = "text_scores"
    draw: Draw
    reference: Draw | None = None
    k: float = Field(default=0.5, gt=0, le=1)

    @property
    def title(self) -> str:
        """A few words for a progress bar or a table row."""
        return f"familiarity of {self.draw.title}"

    def spec(self, draw: Draw) -> RunSpec:
        """Return the run that would take its statistics from a draw."""
        alike: dict[str, Any] = {"model": self.model, "model_hash": self.model_hash, "dtype": self.dtype}
        alike |= {
            "method": "wanda",
            "sparsity": 0.5,
            "schedule": "dense",
            "evaluation": Evaluation(sources=(), seq_len=8),
        }
        return parse_spec({**alike, "calibration": draw.text, "seed": draw.seed})

    def specs(self) -> list[RunSpec]:
        """Return the runs of the same draws."""
        return [self.spec(draw) for draw in (self.draw, self.reference) if draw is not None]


AnyRequest = Annotated[LayerProfile | BlockSwap | TextScores, Field(discriminator="kind")]
Asked = TypeVar("Asked", bound=Request)


def checked_measurement(kind: type[Asked], **fields: Any) -> Asked:
    """Return a request. Raises InputError with one line for each problem."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"bad request of a {kind.__name__}:\n{problem_lines(error)}") from error


# --- results ----------------------------------------------------------------------------------------------


class Measurement(Result):
    """One finished measurement; its arrays are those that the class of its request names."""

    schema_version: Literal[1] = 1
    measurement_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    request: AnyRequest
    model_sha256: str
    metrics: tuple[Metric, ...]
    stages: tuple[Stage, ...]
    environment: Environment
    finished: str

    @property
    def key(self) -> str:
        """The measurement_id."""
        return self.measurement_id


def read_measurement(file: Path) -> Measurement:
    """Return the measurement in a file. Raises StudyError saying what is wrong with it."""
    name = file.name
    found = parsed(text_of(file), name, Measurement, "measurement", SCHEMA_VERSION)
    if found.request.measurement_id != found.measurement_id or name != f"{found.measurement_id}.json":
        raise StudyError(f"{name}: its request has the id {found.request.measurement_id}; it was changed or renamed.")
    return found


class MeasurementStore(FileStore[Measurement]):
    """Measurements in folders; see `FileStore`."""

    noun = "measurement"
    computed = "measurement"

    @classmethod
    def default(cls) -> "MeasurementStore":
        """Return the store of published measurements and of those made here, in `paths.measurements_dir()`."""
        return cls(paths.measurements_dir(), [paths.published_measurements_dir()])

    def read(self, file: Path) -> Measurement:
        """Return the measurement in a file. Raises StudyError if it is none."""
        return read_measurement(file)
