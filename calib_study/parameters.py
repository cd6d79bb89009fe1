"""The parameters of each notebook: names, types, ranges, and the check that every notebook makes first.

papermill only warns about a name it does not know and never looks at types; `check` stops both before any work.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from calib_study.catalogue import RANDOM
from calib_study.errors import InputError, unknown
from calib_study.methods import Pattern, method_named
from calib_study.model_files import resolve_model
from calib_study.preflight import check_evaluation_source, check_lengths, evaluation_of
from calib_study.sources import resolve_source, source_hash
from calib_study.specs import Policy, RunSpec, agreeing_pattern, make_spec, passing, problem, problem_lines


def _each_once(names: list[str]) -> list[str]:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise problem(f"each can be named once only; repeated: {', '.join(repeated)}.")
    return names


Model = Annotated[str, passing(lambda name: resolve_model(name))]
Method = Annotated[str, passing(method_named)]
# A path is made absolute, so that a source has one name wherever the notebook runs.
Source = Annotated[str, passing(resolve_source), AfterValidator(resolve_source)]
EvaluationSource = Annotated[str, passing(check_evaluation_source), AfterValidator(resolve_source)]
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


class DataSources(Parameters):
    """Parameters of 01_data_sources: a grid of sources x methods x seeds at one sparsity."""

    model: Model
    sources: Annotated[list[Source], EachOnce]
    methods: Annotated[list[Method], EachOnce]
    sparsity: float = Field(gt=0, lt=1)
    pattern: Annotated[str, passing(Pattern.parse)]
    policy: Policy
    n_samples: int = Field(ge=1)
    seq_len: int = Field(ge=8)
    n_seeds: int = Field(ge=3, description="fewer give no interval of a variance share")
    dtype: Literal["float32", "bfloat16", "auto"]
    device: str
    eval_sources: Annotated[list[EvaluationSource], Field(min_length=1), EachOnce]
    eval_seq_len: int = Field(ge=8)
    eval_windows: int = Field(ge=1)
    n_spot_checks: int = Field(ge=0)

    @field_validator("sources")
    @classmethod
    def _two_texts(cls, sources: list[str]) -> list[str]:
        if len(set(sources) - {RANDOM}) < 2:
            raise problem(f"at least two texts are needed to compare them; {RANDOM!r} is none.")
        return sources

    @field_validator("methods")
    @classmethod
    def _comparable(cls, methods: list[str]) -> list[str]:
        if "dense" in methods:
            raise problem("leave 'dense' out; it is always run as the reference.")
        if len(methods) < 2:
            raise problem("at least two are needed: the first and the last are compared with each other.")
        if not method_named(methods[-1]).needs_calibration:
            raise problem("the last must be one that uses calibration text, for example 'wanda'.")
        return methods

    @field_validator("pattern")
    @classmethod
    def _implies_sparsity(cls, pattern: str, info: ValidationInfo) -> str:
        return agreeing_pattern(pattern, info.data.get("sparsity"))

    @field_validator("seq_len", "eval_seq_len")
    @classmethod
    def _within_context(cls, length: int, info: ValidationInfo) -> int:
        if "model" in info.data:
            try:
                check_lengths(resolve_model(info.data["model"]), {str(info.field_name): length})
            except InputError as error:
                raise problem(str(error)) from error
        return length

    def specs(self) -> list[RunSpec]:
        """Return the whole grid: the dense model, then seed by seed every source and method, repeats left out.

        A model or text of the user's own is pinned by the hash of its content.
        """
        ref = resolve_model(self.model)
        hashes = {source: source_hash(source) for source in self.sources}
        common: dict[str, Any] = {
            "model": ref.name,
            "model_hash": ref.content_hash(),
            "dtype": self._dtype(),
            "evaluation": evaluation_of(self.eval_sources, seq_len=self.eval_seq_len, n_windows=self.eval_windows),
        }
        grid = [make_spec(method="dense", sparsity=0, **common)]
        grid += [
            make_spec(
                method=method,
                sparsity=self.sparsity,
                pattern=self.pattern,
                source=source,
                source_hash=hashes[source],
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

    def _dtype(self) -> str:
        """Return the dtype that "auto" means on this machine."""
        if self.dtype != "auto":
            return self.dtype
        from calib_study.models import check_device, choose_dtype

        check_device(self.device)
        return choose_dtype(self.dtype, self.device)


SCHEMAS: dict[str, type[Parameters]] = {"00_data": DataPage, "01_data_sources": DataSources}


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
