"""What the parameters of chapters are put together from: checked types, and grids of runs with one class for each axis.

A chapter's class names `Grid` and its axes: `OneSparsity`, `OneSize`, `OneSchedule`, ... An axis is a list of settings,
each the arguments of `make_spec` that it sets; a grid runs every combination of one setting of each axis.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from calib_study.catalogue import RANDOM
from calib_study.errors import InputError
from calib_study.export import dtype_on
from calib_study.methods import METHODS, Pattern, method_named
from calib_study.model_files import resolve_model
from calib_study.preflight import check_evaluation_source, check_lengths, evaluation_of
from calib_study.records import OWL_SUFFIX, default_owl
from calib_study.sources import resolve_source, source_hash
from calib_study.specs import (
    Evaluation,
    Policy,
    RunSpec,
    Schedule,
    agreeing_pattern,
    make_spec,
    passing,
    problem,
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

Setting = dict[str, Any]  # arguments of `make_spec`


class Parameters(BaseModel):
    """Base of all notebooks' parameters: no unknown name, defaults are checked too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


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

    def includes(self, method: str, setting: Setting) -> bool:
        """Return whether a method runs in a setting of the axes: by default each in all."""
        return True

    def axes(self) -> list[list[Setting]]:
        """Return the settings of each axis of the grid beside source, method and seed."""
        return []


class Readers(Comparison):
    """All methods read text."""

    @field_validator("methods")
    @classmethod
    def _all_read_text(cls, methods: list[str]) -> list[str]:
        if not methods:
            raise problem("at least one is needed, for example 'wanda'.")
        if plain := [name for name in methods if not reads_text(name)]:
            raise problem(f"this chapter compares calibration texts; {', '.join(plain)} reads none.")
        return methods


class OneSparsity(Comparison):
    """All runs at one sparsity and in one pattern."""

    sparsity: float = Field(gt=0, lt=1)
    pattern: Annotated[str, passing(Pattern.parse)]

    @field_validator("pattern")
    @classmethod
    def _possible(cls, pattern: str, info: ValidationInfo) -> str:
        _check_pattern(pattern, info.data.get("methods", ()))
        return agreeing_pattern(pattern, info.data.get("sparsity"))

    def axes(self) -> list[list[Setting]]:
        """Add sparsity and pattern."""
        return [*super().axes(), [{"sparsity": self.sparsity, "pattern": self.pattern}]]


class OneSize(Comparison):
    """All calibration sets of one size, cut by one policy."""

    policy: Policy
    n_samples: int = Field(ge=1)
    seq_len: int = Field(ge=8)

    @field_validator("seq_len")
    @classmethod
    def _within_context(cls, length: int, info: ValidationInfo) -> int:
        return _fitting(length, info)

    def axes(self) -> list[list[Setting]]:
        """Add policy and size."""
        return [
            *super().axes(),
            [{"policy": self.policy, "n_samples": self.n_samples, "seq_len": self.seq_len}],
        ]


class OneSchedule(Comparison):
    """All statistics taken by one schedule; see `prune.prune_`."""

    schedule: Schedule

    def axes(self) -> list[list[Setting]]:
        """Add the schedule."""
        return [*super().axes(), [{"schedule": self.schedule}]]


class Sizes(Comparison):
    """Calibration sets of several sizes, cut by one policy: more windows, or longer ones with as many tokens in all.

    amounts: numbers of windows of `seq_len` tokens. lengths: of the windows that make up `n_tokens` tokens, with the
    first method only.
    """

    policy: Policy
    amounts: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2), EachOnce]
    seq_len: int = Field(ge=8)
    lengths: Annotated[list[Annotated[int, Field(ge=8)]], EachOnce]
    n_tokens: int = Field(ge=8, description="in each calibration set of `lengths`")

    @field_validator("seq_len")
    @classmethod
    def _within_context(cls, length: int, info: ValidationInfo) -> int:
        return _fitting(length, info)

    @field_validator("lengths")
    @classmethod
    def _each_within_context(cls, lengths: list[int], info: ValidationInfo) -> list[int]:
        for length in lengths:
            _fitting(length, info)
        return lengths

    @field_validator("n_tokens")
    @classmethod
    def _whole_windows(cls, n_tokens: int, info: ValidationInfo) -> int:
        if wrong := [length for length in info.data.get("lengths", ()) if n_tokens % length]:
            raise problem(f"must be a multiple of each of `lengths`; not so of {', '.join(map(str, wrong))}.")
        return n_tokens

    def amount_settings(self) -> list[Setting]:
        """Return the settings that differ in the number of windows."""
        return [{"policy": self.policy, "n_samples": n, "seq_len": self.seq_len} for n in self.amounts]

    def length_settings(self) -> list[Setting]:
        """Return the settings that differ in the length of windows, and are alike in the number of tokens."""
        return [{"policy": self.policy, "n_samples": self.n_tokens // n, "seq_len": n} for n in self.lengths]

    def axes(self) -> list[list[Setting]]:
        """Add the sizes."""
        sizes = self.amount_settings()
        return [*super().axes(), sizes + [size for size in self.length_settings() if size not in sizes]]

    def includes(self, method: str, setting: Setting) -> bool:
        """Return whether a method runs in a setting."""
        size = {name: setting[name] for name in ("policy", "n_samples", "seq_len")}
        return method == self.methods[0] or size in self.amount_settings()


class Cuts(Comparison):
    """Calibration sets of one size, cut by several policies, of all documents and of long ones only."""

    policies: Annotated[list[Policy], Field(min_length=2), EachOnce]
    n_samples: int = Field(ge=1)
    seq_len: int = Field(ge=8)
    long_tokens: int = Field(ge=9, description="tokens of a document that counts as long")

    @field_validator("seq_len")
    @classmethod
    def _within_context(cls, length: int, info: ValidationInfo) -> int:
        return _fitting(length, info)

    @field_validator("long_tokens")
    @classmethod
    def _longer_than_a_window(cls, n_tokens: int, info: ValidationInfo) -> int:
        if n_tokens <= info.data.get("seq_len", 0):
            raise problem("must be above `seq_len`: documents shorter than a window give none under 'document' anyway.")
        return n_tokens

    def axes(self) -> list[list[Setting]]:
        """Add policies and lengths of documents."""
        size: Setting = {"n_samples": self.n_samples, "seq_len": self.seq_len}
        cuts = product(self.policies, (None, self.long_tokens))
        return [*super().axes(), [{"policy": policy, "min_tokens": least, **size} for policy, least in cuts]]


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

    def axes(self) -> list[list[Setting]]:
        """Add the schedules."""
        return [*super().axes(), [{"schedule": schedule} for schedule in self.schedules]]


class Levels(Comparison):
    """Several sparsities and patterns: all of them with the first method that reads text, some with the others.

    `compared_sparsities` and `compared_patterns` are those at which the other methods run too. What reads no text
    costs little, and runs at all of them.
    """

    sparsities: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1), EachOnce]
    patterns: Annotated[list[Annotated[str, passing(Pattern.parse)]], EachOnce]
    compared_sparsities: Annotated[list[float], EachOnce]
    compared_patterns: Annotated[list[str], EachOnce]

    @field_validator("patterns")
    @classmethod
    def _structured(cls, patterns: list[str], info: ValidationInfo) -> list[str]:
        for pattern in patterns:
            if not Pattern.parse(pattern).structured:
                raise problem(f"{pattern!r}: name N:M patterns such as '2:4'; unstructured runs are in `sparsities`.")
            _check_pattern(pattern, info.data.get("methods", ()))
        return patterns

    @field_validator("compared_sparsities", "compared_patterns")
    @classmethod
    def _among_all(cls, chosen: list[Any], info: ValidationInfo) -> list[Any]:
        among = str(info.field_name).removeprefix("compared_")
        if among in info.data and (others := [value for value in chosen if value not in info.data[among]]):
            raise problem(f"each must be one of `{among}`; not so {', '.join(map(str, others))}.")
        return chosen

    @property
    def first_reader(self) -> str:
        """The first method that reads text."""
        return next(name for name in self.methods if reads_text(name))

    def levels(self) -> list[tuple[float, str]]:
        """Return every (sparsity, pattern)."""
        return _levels(self.sparsities, self.patterns)

    def axes(self) -> list[list[Setting]]:
        """Add the levels."""
        return [*super().axes(), [{"sparsity": level, "pattern": pattern} for level, pattern in self.levels()]]

    def includes(self, method: str, setting: Setting) -> bool:
        """Return whether a method runs in a setting."""
        if method == self.first_reader or not reads_text(method):
            return True
        return (setting["sparsity"], setting["pattern"]) in _levels(self.compared_sparsities, self.compared_patterns)


class Drawn(Comparison):
    """Several draws of each text, where they are computed, and the held-out texts that decide.

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


class Grid(Drawn):
    """A grid of runs over sources, methods, seeds and axes, and how each is evaluated."""

    def measured(self) -> dict[str, Any]:
        """Return the fields of `Evaluation` that the grid sets."""
        return {"seq_len": self.eval_seq_len, "n_windows": self.eval_windows}

    def specs(self) -> list[RunSpec]:
        """Return the whole grid: the dense model, then seed by seed every cell, repeats left out.

        A model or text of the user's own is pinned by the hash of its content.
        """
        ref = resolve_model(self.model)
        hashes = {source: source_hash(source) for source in self.sources}
        evaluation = evaluation_of(self.eval_sources, **self.measured())
        return self.runs(evaluation, hashes, model=ref.name, model_hash=ref.content_hash())

    def runs(
        self, evaluation: Evaluation, hashes: Mapping[str, str | None], *, model: str, model_hash: str | None = None
    ) -> list[RunSpec]:
        """Return what `specs` does, without looking up model and texts; `hashes` pins each source."""
        common: dict[str, Any] = {
            "model": model,
            "model_hash": model_hash,
            "dtype": dtype_on(self.device, self.dtype),
            "evaluation": evaluation,
        }
        grid = [make_spec(method="dense", sparsity=0, **common)]
        for seed, setting, source, name in product(range(self.n_seeds), self.settings(), self.sources, self.methods):
            if not self.includes(name, setting):
                continue
            method, owl = parse_method(name)
            cell: Setting = {"method": method, "source": source, "source_hash": hashes[source], "seed": seed}
            allocation = default_owl(setting["pattern"]) if owl else None
            grid.append(make_spec(**cell, allocation=allocation, **setting, **common))
        return list(dict.fromkeys(grid))

    def settings(self) -> list[Setting]:
        """Return every combination of one setting of each axis."""
        return [{name: value for part in parts for name, value in part.items()} for parts in product(*self.axes())]


class Diverging(Grid):
    """A grid of runs that are scored by divergence from the dense model, too."""

    def measured(self) -> dict[str, Any]:
        """Add divergence."""
        return {**super().measured(), "divergence": True}


class Tasked(Diverging):
    """A grid of runs that are scored by divergence and tasks, too."""

    tasks: Annotated[list[Task], Field(min_length=1), EachOnce]
    task_limit: int | None = Field(ge=3, description="fewer items than 3 tell nothing of their noise; None: all")

    def measured(self) -> dict[str, Any]:
        """Add tasks."""
        return {**super().measured(), "tasks": tuple(self.tasks), "task_limit": self.task_limit}


class Scored(Tasked, OneSize, OneSparsity):
    """A grid of sources x methods x seeds at one sparsity, scored by divergence and tasks too."""

    @field_validator("methods")
    @classmethod
    def _two_methods(cls, methods: list[str]) -> list[str]:
        if sum(map(reads_text, methods)) < 2:
            raise problem("at least two that use calibration text are needed, for example 'wanda' and 'sparsegpt'.")
        return methods


def _fitting(length: int, info: ValidationInfo) -> int:
    """Return a length; in a validator, report it as a problem if it exceeds the context of the model."""
    if "model" in info.data:
        try:
            check_lengths(resolve_model(info.data["model"]), {str(info.field_name): length})
        except InputError as error:
            raise problem(str(error)) from error
    return length


def _check_pattern(pattern: str, methods: Iterable[str]) -> None:
    """In a validator, report a method that has no form of this pattern as a problem."""
    for name in methods:
        if METHODS[parse_method(name)[0]].unstructured_only and Pattern.parse(pattern).structured:
            raise problem(f"method {name!r} has no N:M form; leave it out, or take the unstructured pattern.")


def _levels(sparsities: Iterable[float], patterns: Iterable[str]) -> list[tuple[float, str]]:
    """Return (sparsity, pattern) of each, unstructured ones first."""
    return [
        *((level, "unstructured") for level in sparsities),
        *((Pattern.parse(pattern).sparsity or 0.0, pattern) for pattern in patterns),
    ]
