"""The run specification: everything that determines one record, validated, frozen and hashed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calib_study.errors import InputError
from calib_study.methods import Pattern, method_named

Policy = Literal["document", "packed"]
DType = Literal["float32", "bfloat16"]
Schedule = Literal["block"]


class Frozen(BaseModel):
    """Base of all parts of a specification: no unknown field, no later change, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Calibration(Frozen):
    """The calibration text of a run: which windows of which text.

    `source_hash` and `tokens_sha256` pin text that the catalogue does not: a file of the user's, or token ids
    given back as they were saved.
    """

    source: str
    policy: Policy = "packed"
    n_samples: int = Field(ge=1, description="number of windows")
    seq_len: int = Field(ge=8, description="tokens in a window")
    source_hash: str | None = None
    tokens_sha256: str | None = None


class Evaluation(Frozen):
    """What is measured: perplexity on held-out text of these sources, in windows of `seq_len` tokens."""

    sources: tuple[str, ...] = ("c4", "wikipedia", "code", "instruct")
    seq_len: int = Field(default=512, ge=8)
    n_windows: int = Field(default=8, ge=1, description="windows of each source")


class RunSpec(Frozen):
    """One run: prune `model` by `method` on `calibration`, then evaluate. Equal specifications have equal `run_id`s.

    Args:
        model: packaged name, or the name of the user's own; `model_hash` then pins its content.
        sparsity: fraction of zeros in [0, 1) of every block linear.
        pattern: "unstructured", or "N:M" with N of every M consecutive inputs kept.
        schedule: "block": statistics of the dense block on inputs from the pruned blocks before it.
        calibration: None for methods that use no data, so that their runs are shared by all sources.
        seed: draws the calibration windows (or a random mask); 0 for methods without either.
    """

    model: str
    model_hash: str | None = None
    method: str
    sparsity: float = Field(ge=0, lt=1)
    pattern: str = "unstructured"
    schedule: Schedule = "block"
    calibration: Calibration | None = None
    seed: int = Field(default=0, ge=0)
    dtype: DType = "float32"
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        method = method_named(self.method)
        implied = Pattern.parse(self.pattern).sparsity
        if self.method == "dense":
            if self.sparsity != 0:
                raise InputError(f"method 'dense' prunes nothing: sparsity 0 is meant, not {self.sparsity}.")
        elif implied is not None and abs(implied - self.sparsity) > 1e-9:
            raise InputError(
                f"pattern {self.pattern!r} means sparsity {implied:g}, but sparsity {self.sparsity:g} was asked."
            )
        if method.needs_calibration and self.calibration is None:
            raise InputError(f"method {self.method!r} needs calibration text: name a source.")
        if not method.needs_calibration and self.calibration is not None:
            raise InputError(f"method {self.method!r} uses no calibration text; leave the calibration out.")
        return self

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits: the SHA-256 of the specification's canonical JSON."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """A few words for a progress bar or a table row."""
        text = f" on {self.calibration.source}" if self.calibration else ""
        amount = "" if self.method == "dense" else f" {self.sparsity:g}"
        return f"{self.method}{amount}{text}, seed {self.seed}"


def make_spec(
    *,
    model: str,
    method: str,
    sparsity: float,
    source: str | None = None,
    policy: str = "packed",
    n_samples: int = 32,
    seq_len: int = 256,
    seed: int = 0,
    pattern: str = "unstructured",
    dtype: str = "float32",
    evaluation: Evaluation | None = None,
    model_hash: str | None = None,
    source_hash: str | None = None,
    tokens_sha256: str | None = None,
) -> RunSpec:
    """Return the specification of one cell of a grid, without what its method does not use.

    A method without data gets no calibration, and one without randomness gets seed 0, so that a grid over
    sources and seeds asks for its run once. Raises InputError listing every problem.
    """
    needs = method_named(method)
    if needs.needs_calibration and source is None:
        raise InputError(f"method {method!r} needs calibration text: name a source.")
    calibration = {
        "source": source,
        "policy": policy,
        "n_samples": n_samples,
        "seq_len": seq_len,
        "source_hash": source_hash,
        "tokens_sha256": tokens_sha256,
    }
    fields = {
        "model": model,
        "model_hash": model_hash,
        "method": method,
        "sparsity": 0.0 if method == "dense" else sparsity,
        "pattern": "unstructured" if method == "dense" else pattern,
        "calibration": calibration if needs.needs_calibration else None,
        "seed": seed if needs.needs_seed else 0,
        "dtype": dtype,
        "evaluation": evaluation or Evaluation(),
    }
    return parse_spec(fields)


def parse_spec(fields: Mapping[str, Any]) -> RunSpec:
    """Return the validated specification. Raises InputError with one line for each problem."""
    try:
        return RunSpec.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError("bad run specification:\n" + problem_lines(error)) from error


def problem_lines(error: ValidationError) -> str:
    """Return one indented line for each problem that pydantic found: name, value, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        name = ".".join(str(part) for part in problem["loc"]) or "specification"
        lines.append(f"  - {name} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)
