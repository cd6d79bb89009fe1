"""The parameters of each notebook: names, types, ranges, and the check that every notebook makes first.

papermill only warns about a name it does not know and never looks at types; `check` stops both before any work.
A chapter with a grid of runs is put together from `Grid` and one class for each axis: `OneSparsity`, `OneSize`, ...
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from calib_study.catalogue import RANDOM
from calib_study.errors import InputError, unknown
from calib_study.export import dtype_on
from calib_study.methods import METHODS, Pattern, method_named
from calib_study.model_files import resolve_model
from calib_study.preflight import check_evaluation_source, check_lengths, evaluation_of
from calib_study.records import OWL_SUFFIX, default_owl
from calib_study.sources import resolve_source, source_hash
from calib_study.specs import (
    Policy,
    RunSpec,
    Schedule,
    agreeing_pattern,
    make_spec,
    passing,
    problem,
    problem_lines,
)
from calib_study.task_data import check_tasks


def _each_once(names: list[Any]) -> list[Any]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise problem(f"each can be named once only; repeated: {', '.join(map(str, repeated))}.")
    return names


def parse_method(name: str) -> tuple[str, bool]:
    """Return the method that a name means, and whether OWL allocates its sparsity to the blocks ("wanda+owl").

    Raises InputError with near matches for an unknown method, or one that has nothing to allocate.

    >>> parse_method("wanda+owl")
    ('wanda', True)
    """
    method = method_named(name.removesuffix(OWL_SUFFIX)).name
    owl = name.endswith(OWL_SUFFIX)
    if owl and method in ("dense", "random"):
        raise InputError(f"method {method!r} has nothing to allocate; leave {OWL_SUFFIX!r} out.")
    return method, owl


def reads_text(name: str) -> bool:
    """Return whether runs of a method, with or without OWL, depend on calibration text."""
    method, owl = parse_method(name)
    return owl or METHODS[method].needs_calibration


Model = Annotated[str, passing(lambda name: resolve_model(name))]
MethodName = Annotated[str, passing(parse_method)]
# A path is made absolute, so that a source has one name wherever the notebook runs.
Source = Annotated[str, passing(resolve_source), AfterValidator(resolve_source)]
EvaluationSource = Annotated[str, passing(check_evaluation_source), AfterValidator(resolve_source)]
Task = Annotated[str, passing(lambda name: check_tasks([name]))]
EachOnce = AfterValidator(_each_once)

# Names that a notebook's kernel, or papermill, puts beside the parameters.
NOT_PARAMETERS = {"In", "Out", "exit", "quit", "open", "get_ipython", "cfg"}


class Parameters(BaseModel):
    """Base of all notebooks' parameters: no unknown name, defaults are checked too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataPage(Parameters):
    """Parameters of 00_data."""

    model: Model
    example_characters: int = Field(ge=20, le=2000)


# --- what grids are put together from ---------------------------------------------------------------------


class Comparison(Parameters):
    """One model, and the texts and methods that are compared on it. A method may carry OWL: "wanda+owl"."""

    model: Model
    sources: Annotated[list[Source], EachOnce]
    methods: Annotated[list[MethodName], EachOnce]

    @field_validator("sources")
    @classmethod
    def _two_texts(cls, sources: list[str]) -> list[str]:
        if len(set(sources) - {RANDOM}) < 2:
            raise problem(f"at least two texts are needed to compare them; {RANDOM!r} is none.")
        return sources

    @field_validator("methods")
    @classmethod
    def _without_dense(cls, methods: list[str]) -> list[str]:
        if "dense" in methods:
            raise problem("leave 'dense' out; it is always run as the reference.")
        return methods

    def axes(self) -> dict[str, Sequence[Any]]:
        """Return the values of each argument of `make_spec` that the grid sets beside source, method and seed."""
        return {}


class OneSparsity(Comparison):
    """All runs at one sparsity and in one pattern."""

    sparsity: float = Field(gt=0, lt=1)
    pattern: Annotated[str, passing(Pattern.parse)]

    @field_validator("pattern")
    @classmethod
    def _possible(cls, pattern: str, info: ValidationInfo) -> str:
        for name in info.data.get("methods", ()):
            if METHODS[parse_method(name)[0]].unstructured_only and Pattern.parse(pattern).structured:
                raise problem(f"method {name!r} has no N:M form; leave it out, or take the unstructured pattern.")
        return agreeing_pattern(pattern, info.data.get("sparsity"))

    def axes(self) -> dict[str, Sequence[Any]]:
        """Add sparsity and pattern."""
        return {**super().axes(), "sparsity": [self.sparsity], "pattern": [self.pattern]}


class OneSize(Comparison):
    """All calibration sets of one size, cut by one policy."""

    policy: Policy
    n_samples: int = Field(ge=1)
    seq_len: int = Field(ge=8)

    @field_validator("seq_len")
    @classmethod
    def _within_context(cls, length: int, info: ValidationInfo) -> int:
        return _fitting(length, info)

    def axes(self) -> dict[str, Sequence[Any]]:
        """Add policy and size."""
        return {
            **super().axes(),
            "policy": [self.policy],
            "n_samples": [self.n_samples],
            "seq_len": [self.seq_len],
        }


class Schedules(Comparison):
    """Every run under several schedules, of which `block` is the reference."""

    schedules: Annotated[list[Schedule], EachOnce]

    @field_validator("schedules")
    @classmethod
    def _with_reference(cls, schedules: list[str]) -> list[str]:
        if len(schedules) < 2:
            raise problem("at least two are needed to compare them.")
        if schedules[0] != "block":
            raise problem("the first must be 'block': the others are compared with it.")
        return schedules

    def axes(self) -> dict[str, Sequence[Any]]:
        """Add the schedules."""
        return {**super().axes(), "schedule": self.schedules}


class Grid(Comparison):
    """A grid of runs over sources, methods, seeds and axes, and how each is evaluated.

    The order of a chapter's bases is the order of its parameters from the end: the last base's come first.
    """

    n_seeds: int = Field(ge=3, description="fewer give no interval of a variance share")
    dtype: Literal["float32", "bfloat16", "auto"]
    device: str
    eval_sources: Annotated[list[EvaluationSource], Field(min_length=1), EachOnce]
    eval_seq_len: int = Field(ge=8)
    eval_windows: int = Field(ge=1)
    n_spot_checks: int = Field(ge=0)

    @field_validator("eval_seq_len")
    @classmethod
    def _evaluation_within_context(cls, length: int, info: ValidationInfo) -> int:
        return _fitting(length, info)

    def measured(self) -> dict[str, Any]:
        """Return the fields of `Evaluation` that the grid sets."""
        return {"seq_len": self.eval_seq_len, "n_windows": self.eval_windows}

    def specs(self) -> list[RunSpec]:
        """Return the whole grid: the dense model, then seed by seed every cell, repeats left out.

        A model or text of the user's own is pinned by the hash of its content.
        """
        ref = resolve_model(self.model)
        hashes = {source: source_hash(source) for source in self.sources}
        common: dict[str, Any] = {
            "model": ref.name,
            "model_hash": ref.content_hash(),
            "dtype": dtype_on(self.device, self.dtype),
            "evaluation": evaluation_of(self.eval_sources, **self.measured()),
        }
        grid = [make_spec(method="dense", sparsity=0, **common)]
        for seed, setting, source, name in product(range(self.n_seeds), self._settings(), self.sources, self.methods):
            method, owl = parse_method(name)
            cell = {"method": method, "source": source, "source_hash": hashes[source], "seed": seed}
            allocation = default_owl(setting["pattern"]) if owl else None
            grid.append(make_spec(**cell, allocation=allocation, **setting, **common))
        return list(dict.fromkeys(grid))

    def _settings(self) -> list[dict[str, Any]]:
        """Return every combination of the values of the axes."""
        axes = self.axes()
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


class Scored(Grid, OneSize, OneSparsity):
    """A grid of sources x methods x seeds at one sparsity, scored by divergence and tasks too."""

    tasks: Annotated[list[Task], Field(min_length=1), EachOnce]
    task_limit: int | None = Field(ge=3, description="fewer items than 3 tell nothing of their noise; None: all")

    @field_validator("methods")
    @classmethod
    def _two_methods(cls, methods: list[str]) -> list[str]:
        if sum(map(reads_text, methods)) < 2:
            raise problem("at least two that use calibration text are needed, for example 'wanda' and 'sparsegpt'.")
        return methods

    def measured(self) -> dict[str, Any]:
        """Add divergence and tasks."""
        return {**super().measured(), "divergence": True, "tasks": tuple(self.tasks), "task_limit": self.task_limit}


def _fitting(length: int, info: ValidationInfo) -> int:
    """Return a length; in a validator, report it as a problem if it exceeds the context of the model."""
    if "model" in info.data:
        try:
            check_lengths(resolve_model(info.data["model"]), {str(info.field_name): length})
        except InputError as error:
            raise problem(str(error)) from error
    return length


# --- the chapters -----------------------------------------------------------------------------------------


CROSSED = {  # parameters of a scored grid: what chapter 1 calls them
    "sources": "crossed_sources",
    "methods": "crossed_methods",
    "n_seeds": "crossed_seeds",
    "eval_windows": "crossed_windows",
}


class DataSources(Grid, OneSize, OneSparsity):
    """Parameters of 01_data_sources: a grid of sources x methods x seeds at one sparsity, and a smaller, crossed one.

    The second, `crossed`, has several methods that use text, and is also scored by divergence and tasks.
    """

    crossed_sources: list[str]
    crossed_methods: list[str]
    crossed_seeds: int
    crossed_windows: int
    tasks: list[str]
    task_limit: int | None

    @field_validator("methods")
    @classmethod
    def _comparable(cls, methods: list[str]) -> list[str]:
        if len(methods) < 2:
            raise problem("at least two are needed: the first and the last are compared with each other.")
        if not reads_text(methods[-1]):
            raise problem("the last must be one that uses calibration text, for example 'wanda'.")
        return methods

    @model_validator(mode="after")
    def _crossed_is_possible(self) -> "DataSources":
        self.crossed()
        return self

    def crossed(self) -> Scored:
        """Return the crossed grid, alike in all that is not its own. Raises InputError for one that cannot be."""
        own: dict[str, Any] = {name: getattr(self, field) for name, field in CROSSED.items()}
        alike = {name: getattr(self, name) for name in Scored.model_fields if name not in own}
        try:
            return Scored(**own, **alike)
        except ValidationError as error:
            lines = problem_lines(error)
            for name, field in CROSSED.items():
                lines = re.sub(rf"(?m)^  - {name}\b", f"  - {field}", lines)
            raise problem(f"the crossed grid cannot be run:\n{lines}") from error


class Measuring(Scored):
    """Parameters of 11_measuring: a scored grid, and milder sparsities with its first source and first two methods.

    The milder runs are of one draw each: what draws change is little beside what sparsity does.
    """

    milder_sparsities: Annotated[list[float], EachOnce]

    @field_validator("sources")
    @classmethod
    def _three_texts(cls, sources: list[str]) -> list[str]:
        if len(set(sources) - {RANDOM}) < 3:
            raise problem(f"at least three texts are needed to rank them; {RANDOM!r} is none.")
        return sources

    @field_validator("milder_sparsities")
    @classmethod
    def _below(cls, levels: list[float], info: ValidationInfo) -> list[float]:
        if wrong := [level for level in levels if not 0 < level < info.data.get("sparsity", 1)]:
            raise problem(
                f"each must lie between 0 and `sparsity`; not so {', '.join(f'{level:g}' for level in wrong)}."
            )
        return levels

    def specs(self) -> list[RunSpec]:
        """Return the grid, then the milder runs."""
        found = super().specs()
        fewer = {"pattern": "unstructured", "sources": self.sources[:1], "methods": self.methods[:2], "n_seeds": 1}
        for level in self.milder_sparsities:
            found += Scored.specs(self.model_copy(update={**fewer, "sparsity": level}))
        return list(dict.fromkeys(found))


class ScheduleCosts(Grid, OneSize, OneSparsity, Schedules):
    """Parameters of 10_schedules: a grid of sources x calibrated methods x schedules x seeds at one sparsity."""

    @field_validator("methods")
    @classmethod
    def _calibrated(cls, methods: list[str]) -> list[str]:
        if not methods:
            raise problem("at least one is needed, for example 'wanda'.")
        if plain := [name for name in methods if not reads_text(name)]:
            raise problem(f"a schedule says when statistics of text are taken; {', '.join(plain)} has none.")
        return methods


SCHEMAS: dict[str, type[Parameters]] = {
    "00_data": DataPage,
    "01_data_sources": DataSources,
    "10_schedules": ScheduleCosts,
    "11_measuring": Measuring,
}


def validate(slug: str, given: Mapping[str, Any]) -> Parameters:
    """Return the checked parameters of a notebook. Raises InputError listing every problem, with near matches."""
    if slug not in SCHEMAS:
        raise unknown("notebook", slug, SCHEMAS)
    schema = SCHEMAS[slug]
    problems = [
        f"  - {unknown('parameter', name, schema.model_fields)}" for name in given if name not in schema.model_fields
    ]
    try:
        checked = schema.model_validate({name: value for name, value in given.items() if name in schema.model_fields})
    except ValidationError as error:
        problems.append(problem_lines(error))
    if problems:
        raise InputError(f"bad parameters for {slug}:\n" + "\n".join(problems))
    return checked


def check(slug: str, namespace: Mapping[str, Any]) -> Any:
    """Return the checked parameters of the notebook that calls this with its `globals()`.

    Every public name in the notebook that is neither a module nor callable counts as a parameter, so that a
    mistyped name injected by papermill is found. Not so when `cfg` holds parameters already: the notebook is
    being run again in the same kernel, and other names may be results of later cells.
    """
    again = isinstance(namespace.get("cfg"), Parameters)
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and not name.startswith("PAPERMILL_")
        and name not in NOT_PARAMETERS
        and not isinstance(value, ModuleType)
        and not callable(value)
        and not (again and name not in SCHEMAS[slug].model_fields)
    }
    return validate(slug, given)
