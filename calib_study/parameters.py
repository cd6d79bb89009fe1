"""The parameters of each notebook: names, types, ranges, and the check that every notebook makes first.

papermill only warns about a name it does not know and never looks at types; `check` stops both before any work.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calib_study.errors import InputError, StudyError, unknown
from calib_study.methods import Pattern, method_named
from calib_study.model_files import resolve_model
from calib_study.preflight import check_evaluation_source, check_lengths
from calib_study.sources import resolve_source
from calib_study.specs import DType, Evaluation, Policy, RunSpec, make_spec, problem_lines

Names = Annotated[list[str], Field(min_length=1)]

# Names that a notebook's kernel, or papermill, puts beside the parameters.
NOT_PARAMETERS = {"In", "Out", "exit", "quit", "open", "get_ipython", "cfg"}


class Parameters(BaseModel):
    """Base of all notebooks' parameters: no unknown name, defaults are checked too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataPage(Parameters):
    """Parameters of 00_data."""

    model: str
    example_characters: int = Field(ge=20, le=2000)


class DataSources(Parameters):
    """Parameters of 01_data_sources: a grid of sources x methods x seeds at one sparsity."""

    model: str
    sources: Names
    methods: Names
    sparsity: float = Field(gt=0, lt=1)
    pattern: str
    policy: Policy
    n_samples: int = Field(ge=1)
    seq_len: int = Field(ge=8)
    n_seeds: int = Field(ge=3, description="fewer give no interval of a variance share")
    dtype: DType | Literal["auto"]
    device: str
    eval_sources: Names
    eval_seq_len: int = Field(ge=8)
    eval_windows: int = Field(ge=1)
    n_spot_checks: int = Field(ge=0)

    @model_validator(mode="after")
    def _exists(self) -> Self:
        """Check names against what exists and lengths against the model's context."""
        implied = Pattern.parse(self.pattern).sparsity
        if implied is not None and abs(implied - self.sparsity) > 1e-9:
            raise InputError(f"pattern {self.pattern!r} means sparsity {implied:g}, not {self.sparsity:g}.")
        for name in self.methods:
            method_named(name)
        if "dense" in self.methods:
            raise InputError("methods: leave 'dense' out; it is always run as the reference.")
        if not any(method_named(name).needs_calibration for name in self.methods):
            raise InputError("methods: at least one must use calibration data, for example 'wanda'.")
        for name in self.sources:
            resolve_source(name)
        if len(set(self.sources)) < max(2, len(self.sources)):
            raise InputError("sources: at least two different ones are needed to compare, each once.")
        for name in self.eval_sources:
            check_evaluation_source(name)
        check_lengths(resolve_model(self.model), {"seq_len": self.seq_len, "eval_seq_len": self.eval_seq_len})
        return self

    def specs(self) -> list[RunSpec]:
        """Return the whole grid: the dense model, then seed by seed every source and method, repeats left out."""
        evaluation = Evaluation(
            sources=tuple(self.eval_sources), seq_len=self.eval_seq_len, n_windows=self.eval_windows
        )
        common: dict[str, Any] = {"model": self.model, "dtype": self.dtype, "evaluation": evaluation}
        grid = [make_spec(method="dense", sparsity=0, **common)]
        grid += [
            make_spec(
                method=method,
                sparsity=self.sparsity,
                pattern=self.pattern,
                source=source,
                policy=self.policy,
                n_samples=self.n_samples,
                seq_len=self.seq_len,
                seed=seed,
                **common,
            )
            for seed in range(self.n_seeds)
            for source in self.sources
            for method in self.methods
        ]
        return list(dict.fromkeys(grid))


SCHEMAS: dict[str, type[Parameters]] = {"00_data": DataPage, "01_data_sources": DataSources}


def validate(slug: str, given: Mapping[str, Any]) -> Parameters:
    """Return the checked parameters of a notebook. Raises InputError listing every problem, with near matches."""
    schema = SCHEMAS[slug]
    problems = [
        str(unknown("parameter", name, schema.model_fields)) for name in given if name not in schema.model_fields
    ]
    try:
        checked = schema.model_validate({name: value for name, value in given.items() if name in schema.model_fields})
    except ValidationError as error:
        problems.append(problem_lines(error))
    except StudyError as error:
        problems.append(str(error))
    if problems:
        raise InputError(f"bad parameters for {slug}:\n" + "\n".join(problems))
    return checked


def check(slug: str, namespace: Mapping[str, Any]) -> Any:
    """Return the checked parameters of the notebook that calls this with its `globals()`.

    Every public name in the notebook that is neither a module nor callable counts as a parameter, so that a
    mistyped name injected by papermill is found.
    """
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and not name.startswith("PAPERMILL_")
        and name not in NOT_PARAMETERS
        and not isinstance(value, ModuleType)
        and not callable(value)
    }
    return validate(slug, given)
