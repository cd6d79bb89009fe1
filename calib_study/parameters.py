"""The parameters of each notebook: names, types, ranges, and the check that every notebook makes first.

papermill only warns about a name it does not know and never looks at types; `check` stops both before any work.
"""

import re
from collections.abc import Mapping
from itertools import product
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from calib_study.catalogue import RANDOM
from calib_study.errors import InputError, unknown
from calib_study.filtering import FilterJob
from calib_study.grids import (
    Cuts,
    Diverging,
    EachOnce,
    Grid,
    Levels,
    Model,
    OneSchedule,
    OneSize,
    OneSparsity,
    Parameters,
    Readers,
    Schedules,
    Scored,
    Sizes,
    Source,
    Tasked,
    reads_text,
)
from calib_study.manifests import EndOfText
from calib_study.mechanism_parameters import Mechanism
from calib_study.model_files import resolve_model
from calib_study.paths import root
from calib_study.sources import resolve_source
from calib_study.specs import RunSpec, passing, problem, problem_lines
from calib_study.synthesis import SynthesisJob

# Names that a notebook's kernel, or papermill, puts beside the parameters.
NOT_PARAMETERS = {"In", "Out", "exit", "quit", "open", "get_ipython", "cfg"}


class DataPage(Parameters):
    """Parameters of 00_data."""

    model: Model
    example_characters: int = Field(ge=20, le=2000)


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


class SparsityScaling(Diverging, OneSize, OneSchedule, Levels):
    """Parameters of 02_sparsity_scaling: sources x methods x seeds at several sparsities and in several patterns."""

    @field_validator("methods")
    @classmethod
    def _one_reads_text(cls, methods: list[str]) -> list[str]:
        if not any(map(reads_text, methods)):
            raise problem("at least one that uses calibration text is needed, for example 'wanda'.")
        return methods

    @field_validator("sparsities")
    @classmethod
    def _two_levels(cls, levels: list[float]) -> list[float]:
        if len(levels) < 2:
            raise problem("at least two are needed to see a trend.")
        return levels


class Amount(Diverging, Sizes, OneSchedule, OneSparsity, Readers):
    """Parameters of 03_amount: sources x methods x numbers of windows x seeds, and lengths of windows."""


class Packing(Diverging, Cuts, OneSchedule, OneSparsity, Readers):
    """Parameters of 04_packing: sources x methods x ways to cut windows x seeds."""


class OwnText(Parameters):
    """How the model writes text of its own; each is a field of `manifests.Synthesis`."""

    n_texts: int = Field(ge=2)
    new_tokens: int = Field(ge=1)
    prefix_len: int = Field(ge=0)
    temperature: float = Field(gt=0)
    top_k: int = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    repetition_penalty: float = Field(gt=0)
    end_of_text: EndOfText
    text_seed: int = Field(ge=0)

    def written_after(self, model: str, source: str, prefix_len: int, dtype: str, device: str) -> SynthesisJob:
        """Return the job that writes text after so many tokens of a source."""
        names = ("n_texts", "new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "end_of_text")
        return SynthesisJob.checked(
            model=model,
            prefix_source=source if prefix_len else None,
            prefix_len=prefix_len,
            seed=self.text_seed,
            dtype=dtype,
            device=device,
            **{name: getattr(self, name) for name in names},
        )


class SelfGeneration(Tasked, OwnText, OneSize, OneSchedule, OneSparsity, Readers):
    """Parameters of 05_self_generation: real texts and the model's own, written after tokens of several sources.

    `jobs` must have been run before `specs` is called.
    """

    prefix_sources: Annotated[list[Source], Field(min_length=1), EachOnce]
    prefix_lens: Annotated[list[Annotated[int, Field(ge=0)]], EachOnce]
    added_sources: Annotated[list[Source], EachOnce]

    @field_validator("prefix_sources")
    @classmethod
    def _compared_too(cls, chosen: list[str], info: ValidationInfo) -> list[str]:
        if others := [name for name in chosen if name not in info.data.get("sources", chosen)]:
            raise problem(f"each must be one of `sources`, to be compared with; not so {', '.join(others)}.")
        return chosen

    @field_validator("added_sources")
    @classmethod
    def _with_own_text(cls, chosen: list[str], info: ValidationInfo) -> list[str]:
        if others := [name for name in chosen if name not in info.data.get("prefix_sources", chosen)]:
            raise problem(f"each must be one of `prefix_sources`; not so {', '.join(others)}.")
        return chosen

    def job(self, source: str, prefix_len: int) -> SynthesisJob:
        """Return the job that writes text after so many tokens of a source."""
        return self.written_after(self.model, source, prefix_len, self.dtype, self.device)

    def own(self) -> dict[str, str]:
        """Return the name of the own text that goes with each of the prefix sources."""
        return {source: self.job(source, self.prefix_len).source for source in self.prefix_sources}

    def by_length(self) -> dict[int, str]:
        """Return the name of the own text for each length of prefix, all from the first of the prefix sources."""
        lengths = sorted({*self.prefix_lens, self.prefix_len})
        return {length: self.job(self.prefix_sources[0], length).source for length in lengths}

    def mixed(self) -> dict[str, str]:
        """Return for each of the added sources the mixture of it and its own text, in equal parts."""
        own = self.own()
        return {source: resolve_source(f"{source}:1,{own[source]}:1") for source in self.added_sources}

    def jobs(self) -> list[SynthesisJob]:
        """Return every job, each once."""
        asked = [(source, self.prefix_len) for source in self.prefix_sources]
        asked += [(self.prefix_sources[0], length) for length in sorted(self.prefix_lens)]
        return list({job.source: job for job in (self.job(*which) for which in asked)}.values())

    def specs(self) -> list[RunSpec]:
        """Return the runs: real and own texts, lengths of prefixes, then texts with as much own or real text added."""
        first, twice = {"methods": self.methods[:1]}, {"n_samples": 2 * self.n_samples}
        parts: list[dict[str, Any]] = [
            {"sources": [*self.sources, *self.own().values()]},
            {"sources": list(self.by_length().values()), **first},
            {"sources": [name for pair in self.mixed().items() for name in pair], **first, **twice},
        ]
        return list(dict.fromkeys(spec for part in parts for spec in Grid.specs(self.model_copy(update=part))))


class Filtering(Diverging, OwnText, OneSize, OneSchedule, OneSparsity, Readers):
    """Parameters of 06_filtering: text that the model wrote after tokens of `sources`, and what filters leave of it.

    `jobs`, then `filters`, must have been run before `specs` is called.
    """

    drops: Annotated[list[Annotated[float, Field(gt=0, lt=100)]], Field(min_length=1), EachOnce]
    ends: Annotated[list[Literal["top", "bottom", "random"]], Field(min_length=1), EachOnce]
    scorer: Annotated[str, passing(lambda name: name and resolve_model(name))]  # "": the model itself

    @field_validator("sources")
    @classmethod
    def _two_texts(cls, sources: list[str]) -> list[str]:
        if not sources or RANDOM in sources:
            raise problem(f"name at least one text that the model continues; {RANDOM!r} is none.")
        return sources

    @field_validator("ends")
    @classmethod
    def _with_control(cls, ends: list[str]) -> list[str]:
        if "random" not in ends or len(ends) < 2:
            raise problem("'random' is the control, and at least one other end is compared with it.")
        return ends

    def jobs(self) -> list[SynthesisJob]:
        """Return the job that writes the text for each of the sources."""
        return [
            self.written_after(self.model, source, self.prefix_len, self.dtype, self.device) for source in self.sources
        ]

    def filters(self) -> list[tuple[str, str, float, int | None, FilterJob]]:
        """Return (source, end, per cent, seed, job) of every filter; the seed of a random one is that of its runs."""
        found: list[tuple[str, str, float, int | None, FilterJob]] = []
        for (source, job), end, drop in product(zip(self.sources, self.jobs(), strict=True), self.ends, self.drops):
            for seed in range(self.n_seeds) if end == "random" else [None]:
                filtered = FilterJob.checked(
                    source=job.source,
                    drop=f"{end}:{drop:g}",
                    seed=seed or 0,
                    scorer=self.scorer or None,
                    dtype=self.dtype,
                    device=self.device,
                )
                found.append((source, end, drop, seed, filtered))
        return found

    def specs(self) -> list[RunSpec]:
        """Return the runs with the whole texts, then those with what each filter leaves."""
        whole = [job.source for job in self.jobs()]
        found = Grid.specs(self.model_copy(update={"sources": whole}))
        for _, _, _, seed, job in self.filters():
            runs = Grid.specs(self.model_copy(update={"sources": [job.source]}))
            found += [spec for spec in runs if seed is None or spec.seed == seed]
        return list(dict.fromkeys(found))


class Claims(Parameters):
    """Parameters of 07_claims: of which profile the records are that the claims are judged by."""

    profile: str

    @field_validator("profile")
    @classmethod
    def _of_some_chapter(cls, profile: str) -> str:
        known = {file.name.split(".")[1] for file in (root() / "notebooks" / "profiles").glob("*.*.yml")}
        if profile not in known:
            raise problem(str(unknown("profile", profile, known)))
        return profile


SCHEMAS: dict[str, type[Parameters]] = {
    "00_data": DataPage,
    "01_data_sources": DataSources,
    "02_sparsity_scaling": SparsityScaling,
    "03_amount": Amount,
    "04_packing": Packing,
    "05_self_generation": SelfGeneration,
    "06_filtering": Filtering,
    "07_claims": Claims,
    "09_mechanism": Mechanism,
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
