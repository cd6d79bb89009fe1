"""The run specification: everything that determines one record, validated, frozen and hashed."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from calib_study.errors import InputError, StudyError, unknown
from calib_study.methods import METHODS, Method, Pattern, method_named

Policy = Literal["document", "packed"]
DType = Literal["float32", "bfloat16"]
Schedule = Literal["block", "sequential", "dense"]
Options = tuple[tuple[str, float | str], ...]


def problem(message: str) -> PydanticCustomError:
    """Return the error to raise inside a validator, so that pydantic lists it beside the others it finds."""
    return PydanticCustomError("study", "{message}", {"message": message})


def passing(check: Callable[[str], Any]) -> AfterValidator:
    """Return the validator of a field whose value `check` refuses by raising a StudyError."""

    def validator(value: str) -> str:
        try:
            check(value)
        except StudyError as error:
            raise problem(str(error)) from error
        return value

    return AfterValidator(validator)


class Frozen(BaseModel):
    """Base of all parts of a specification: no unknown field, no later change, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Calibration(Frozen):
    """The calibration text of a run: which windows of which text.

    `source_hash` and `tokens_sha256` pin text that the catalogue does not: a file of the user's, or token ids
    given back as they were saved. `min_tokens` leaves shorter documents out; None, the default, none.
    """

    source: str
    policy: Policy = "packed"
    n_samples: int = Field(ge=1, description="number of windows")
    seq_len: int = Field(ge=8, description="tokens in a window")
    source_hash: str | None = None
    tokens_sha256: str | None = None
    min_tokens: int | None = Field(default=None, ge=2)


class Evaluation(Frozen):
    """What is measured: perplexity on held-out text of these sources, in windows of `seq_len` tokens, and tasks.

    `source_hashes`, one for each source, pin texts of the user's; None where the catalogue does, and as a whole if
    it pins them all. `preflight.evaluation_of` fills them. `divergence` compares predictions on the same windows with
    those of the dense model, or of another one, `reference`, pinned by its hash.

    A specification without tasks and divergence has the `run_id` that it had before there were any; so they are None
    rather than empty or False.
    """

    sources: tuple[str, ...] = ("c4", "wikipedia", "code", "instruct")
    seq_len: int = Field(default=512, ge=8)
    n_windows: int = Field(default=8, ge=1, description="windows of each source")
    source_hashes: tuple[str | None, ...] | None = None
    divergence: Literal[True] | None = None
    reference: str | None = None
    reference_hash: str | None = None
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    task_limit: int | None = Field(default=None, ge=1, description="items of each task, drawn once; None: all")
    shots: int | None = Field(default=None, ge=0, description="examples before each item; None: the task's own number")

    @field_validator("tasks")
    @classmethod
    def _one_of_each(cls, tasks: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if tasks is not None and len(set(tasks)) < len(tasks):
            raise problem("each task can be asked once only.")
        return tasks

    @field_validator("divergence")
    @classmethod
    def _on_some_text(cls, divergence: Literal[True] | None, info: ValidationInfo) -> Literal[True] | None:
        if divergence and not info.data.get("sources"):
            raise problem("name the held-out text on which predictions are compared.")
        return divergence

    @field_validator("reference", "reference_hash")
    @classmethod
    def _of_divergence(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("divergence") is None:
            raise problem("a reference is for divergence, which was not asked.")
        return name

    @field_validator("task_limit", "shots")
    @classmethod
    def _of_tasks(cls, number: int | None, info: ValidationInfo) -> int | None:
        if number is not None and info.data.get("tasks") is None:
            raise problem("there are no tasks that it could be about.")
        return number

    @field_validator("sources")
    @classmethod
    def _each_once(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sources)) < len(sources):
            raise problem("each text can be scored once only.")
        return sources

    @field_validator("source_hashes")
    @classmethod
    def _one_each(cls, hashes: tuple[str | None, ...] | None, info: ValidationInfo) -> tuple[str | None, ...] | None:
        if hashes is not None and (len(hashes) != len(info.data.get("sources", hashes)) or not any(hashes)):
            raise problem("give one for each source, with None for those of the catalogue; none if all are.")
        return hashes


class Owl(Frozen):
    """OWL's allocation of sparsity to blocks; None in a specification means the same sparsity for every block.

    Source: Yin et al. 2024. `lam`: half the range of the blocks' sparsities, or of N for an N:M pattern.
    `outlier_multiple`: scores above this multiple of their block's mean are outliers (M in the paper).
    """

    lam: float = Field(default=0.08, gt=0)
    outlier_multiple: float = Field(default=5.0, gt=1)


class RunSpec(Frozen):
    """One run: prune `model` by `method` on `calibration`, then evaluate. Equal specifications have equal `run_id`s.

    Args:
        model: packaged name, or the name of the user's own; `model_hash` then pins its content.
        method: one of the project, or of the user's own; `method_hash` then is the hash of its source text, with which
            a record can be read where the method is not registered.
        sparsity: fraction of zeros in [0, 1) of every block linear.
        pattern: "unstructured", or "N:M" with N of every M consecutive inputs kept.
        schedule: when statistics are taken, see `prune.prune_`: "block", "sequential" or "dense".
        options: (name, value) of the method's own parameters where they differ from its defaults, by name.
        allocation: how blocks share the sparsity; None: equally.
        calibration: None for methods that use no data, so that their runs are shared by all sources.
        seed: draws the calibration windows (or a random mask); 0 for methods without either.
    """

    model: str
    model_hash: str | None = None
    method_hash: str | None = None
    method: str
    sparsity: float = Field(ge=0, lt=1)
    pattern: Annotated[str, passing(Pattern.parse)] = "unstructured"
    schedule: Schedule = "block"
    options: Options | None = None
    allocation: Owl | None = None
    calibration: Calibration | None = None
    seed: int = Field(default=0, ge=0)
    dtype: DType = "float32"
    evaluation: Evaluation = Evaluation()

    @field_validator("method")
    @classmethod
    def _known_or_pinned(cls, method: str, info: ValidationInfo) -> str:
        pinned = info.data.get("method_hash") is not None
        if pinned and method not in METHODS:
            return method
        try:
            own = method_named(method).code_sha256 is not None
        except StudyError as error:
            raise problem(str(error)) from error
        if own != pinned:
            raise problem("method_hash is for a method of the user's own, and only for one; `make_spec` fills it.")
        return method

    @field_validator("sparsity")
    @classmethod
    def _dense_is_whole(cls, sparsity: float, info: ValidationInfo) -> float:
        if info.data.get("method") == "dense" and sparsity != 0:
            raise problem("method 'dense' prunes nothing: sparsity 0 is meant.")
        return sparsity

    @field_validator("pattern")
    @classmethod
    def _implies_sparsity(cls, pattern: str, info: ValidationInfo) -> str:
        method = METHODS.get(info.data.get("method", ""))
        if method and method.unstructured_only and Pattern.parse(pattern).structured:
            raise problem(f"method {method.name!r} has no N:M form; use method 'wanda', or the unstructured pattern.")
        return agreeing_pattern(pattern, info.data.get("sparsity"))

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: Options | None, info: ValidationInfo) -> Options | None:
        method = METHODS.get(info.data.get("method", ""))
        if method is None:
            return None
        for name, value in options or ():
            if name not in method.options:
                raise problem(str(unknown(f"option of {method.name}", name, method.options)))
            if isinstance(value, str) != isinstance(method.options[name], str):
                raise problem(f"{name} = {value!r}: expected something like {method.options[name]!r}.")
        return options or None

    @field_validator("allocation")
    @classmethod
    def _of_something(cls, allocation: Owl | None, info: ValidationInfo) -> Owl | None:
        if allocation is not None and info.data.get("method") in ("dense", "random"):
            raise problem(f"method {info.data['method']!r} has nothing to allocate.")
        return allocation

    @field_validator("calibration")
    @classmethod
    def _as_needed(cls, calibration: Calibration | None, info: ValidationInfo) -> Calibration | None:
        method = METHODS.get(info.data.get("method", ""))
        allocated = info.data.get("allocation") is not None
        if method and (method.needs_calibration or allocated) and calibration is None:
            raise problem(f"{'OWL' if allocated else f'method {method.name!r}'} needs calibration text: name a source.")
        if method and not (method.needs_calibration or allocated) and calibration is not None:
            raise problem(f"method {method.name!r} uses no calibration text; leave the calibration out.")
        return calibration

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits: the SHA-256 of the specification's canonical JSON."""
        return content_id(self)

    @property
    def title(self) -> str:
        """A few words for a progress bar or a table row."""
        text = f" on {PurePath(self.calibration.source).name}" if self.calibration else ""
        amount = "" if self.method == "dense" else f" {self.sparsity:g}"
        how = "" if self.schedule == "block" else f", {self.schedule}"
        owl = "" if self.allocation is None else " + OWL"
        return f"{self.method}{owl}{amount}{text}{how}, seed {self.seed}"


def content_id(asked: BaseModel) -> str:
    """Return 16 hexadecimal digits: the SHA-256 of the canonical JSON of what is asked, without what is None."""
    text = json.dumps(asked.model_dump(mode="json", exclude_none=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    schedule: str = "block",
    options: Mapping[str, float | str] | None = None,
    allocation: Owl | None = None,
    dtype: str = "float32",
    evaluation: Evaluation | None = None,
    model_hash: str | None = None,
    source_hash: str | None = None,
    tokens_sha256: str | None = None,
    min_tokens: int | None = None,
) -> RunSpec:
    """Return the specification of one cell of a grid, without what its method does not use.

    A method without data gets no calibration, and one without randomness gets seed 0, so that a grid over
    sources and seeds asks for its run once. Raises InputError listing every problem.
    """
    known = METHODS.get(method)  # an unknown name is reported below, with all other problems
    reads_text = known is None or known.needs_calibration or allocation is not None
    calibration = {
        "source": source,
        "policy": policy,
        "n_samples": n_samples,
        "seq_len": seq_len,
        "source_hash": source_hash,
        "tokens_sha256": tokens_sha256,
        "min_tokens": min_tokens,
    }
    fields = {
        "model": model,
        "model_hash": model_hash,
        "method_hash": known.code_sha256 if known else None,
        "method": method,
        "sparsity": 0.0 if method == "dense" else _exact(sparsity, pattern),
        "pattern": "unstructured" if method == "dense" else pattern,
        "schedule": schedule if reads_text else "block",
        "options": _chosen(options, known),
        "allocation": allocation,
        "calibration": calibration if source is not None and reads_text else None,
        "seed": seed if reads_text or known is None or known.needs_seed else 0,
        "dtype": dtype,
        "evaluation": evaluation or Evaluation(),
    }
    return parse_spec(fields)


def checked_owl(**values: float) -> Owl:
    """Return OWL's parameters. Raises InputError listing what is wrong with them."""
    try:
        return Owl(**values)
    except ValidationError as error:
        raise InputError("bad OWL parameters:\n" + problem_lines(error)) from error


def _chosen(options: Mapping[str, float | str] | None, method: Method | None) -> Options | None:
    """Return the options that differ from the method's defaults, None if there are none."""
    defaults = method.options if method else {}
    return (
        tuple(sorted((name, value) for name, value in (options or {}).items() if defaults.get(name) != value)) or None
    )


def agreeing_pattern(pattern: str, sparsity: float | None) -> str:
    """Return the pattern; in a validator, report it as a problem if it implies another sparsity (None: unknown)."""
    implied = Pattern.parse(pattern).sparsity
    if implied is not None and sparsity is not None and not math.isclose(implied, sparsity, abs_tol=1e-6):
        raise problem(f"pattern {pattern!r} means sparsity {implied:g}, but sparsity {sparsity:g} was asked.")
    return pattern


def _exact(sparsity: float, pattern: str) -> float:
    """Return the sparsity that an N:M pattern implies for one that was written with fewer digits: 0.666667 for 1:3."""
    try:
        implied = Pattern.parse(pattern).sparsity
    except InputError:
        return sparsity  # reported with all other problems
    if implied is None or not isinstance(sparsity, int | float):
        return sparsity
    return implied if math.isclose(implied, sparsity, abs_tol=1e-6) else sparsity


def parse_spec(fields: Mapping[str, Any]) -> RunSpec:
    """Return the validated specification. Raises InputError with one line for each problem."""
    try:
        return RunSpec.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError("bad run specification:\n" + problem_lines(error)) from error


def problem_lines(error: ValidationError) -> str:
    """Return one indented line for each problem that pydantic found: name, value, what is allowed."""
    lines = []
    for found in error.errors(include_url=False):
        name = ".".join(str(part) for part in found["loc"]) or "specification"
        value = f" = {found['input']!r}" if isinstance(found["input"], str | int | float | None) else ""
        lines.append(f"  - {name}{value}: {found['msg']}")
    return "\n".join(lines)
