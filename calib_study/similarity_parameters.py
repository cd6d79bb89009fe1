"""The parameters of 08_similarity: its runs are of several models, and its measurements of texts under each."""

from itertools import product
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from calib_study.errors import DataError, InputError
from calib_study.export import dtype_on
from calib_study.generated import generated_folder
from calib_study.glassbox_reports import model_folder, read_report
from calib_study.grids import (
    Diverging,
    EachOnce,
    EvaluationSource,
    Grid,
    MethodName,
    Model,
    OneSchedule,
    OneSize,
    OneSparsity,
    Readers,
    Source,
    reads_text,
)
from calib_study.measurements import Draw, TextScores, checked_measurement
from calib_study.model_files import resolve_model
from calib_study.sources import resolve_source, source_hash
from calib_study.specs import Calibration, RunSpec, problem
from calib_study.synthesis import SynthesisJob


class Similarity(Diverging, OneSize, OneSchedule, OneSparsity, Readers):
    """Parameters of 08_similarity: models of known training text crossed with texts, and likeness measured on `model`.

    Fields that begin with `glass` are of the crossed runs: every model of `glass_models` calibrated with each of
    `corpora`, its unseen part by every method at every sparsity, its seen part by the first method. `reference` stands
    in for the training text of `model`, which is not known. `jobs` must have been run before `requests` is called.
    """

    reference: Source
    score_windows: int = Field(ge=2, description="of each text that are scored")
    score_seq_len: int = Field(ge=8)
    own_sources: Annotated[list[Source], Field(min_length=1), EachOnce]
    glass_models: Annotated[list[Model], Field(min_length=2), EachOnce]
    corpora: Annotated[list[EvaluationSource], Field(min_length=2), EachOnce]
    glass_methods: Annotated[list[MethodName], Field(min_length=1), EachOnce]
    glass_sparsities: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1), EachOnce]
    glass_samples: int = Field(ge=1)
    glass_seq_len: int = Field(ge=8)
    glass_windows: int = Field(ge=1, description="held-out windows of each corpus")
    glass_seeds: int = Field(ge=3)
    own_texts: int = Field(ge=2, description="texts that each of the models writes")
    own_tokens: int = Field(ge=8)

    @field_validator("own_sources")
    @classmethod
    def _written(cls, chosen: list[str], info: ValidationInfo) -> list[str]:
        if others := [name for name in chosen if name not in info.data.get("sources", chosen)]:
            raise problem(f"each must be one of `sources`; not so {', '.join(others)}.")
        if real := [name for name in chosen if generated_folder(name) is None]:
            raise problem(f"name texts that the model wrote, such as 'selfgen:NAME'; not so {', '.join(real)}.")
        return chosen

    @field_validator("glass_models")
    @classmethod
    def _known_text(cls, names: list[str]) -> list[str]:
        for name in names:
            try:
                read_report(model_folder(name))
            except (InputError, DataError) as error:
                raise problem(f"of {name} it is not known what it was trained on: {error}") from error
        return names

    @field_validator("glass_methods")
    @classmethod
    def _reading(cls, methods: list[str]) -> list[str]:
        if plain := [name for name in methods if not reads_text(name)]:
            raise problem(f"this chapter compares calibration texts; {', '.join(plain)} reads none.")
        return methods

    @field_validator("corpora")
    @classmethod
    def _a_model_each(cls, corpora: list[str], info: ValidationInfo) -> list[str]:
        names = info.data.get("glass_models", [])
        known = {name: read_report(model_folder(name)).recipe.sources for name in names}
        single = [texts[0] for texts in known.values() if len(texts) == 1]
        if known and sorted(single) != sorted(corpora):
            raise problem(
                f"one of `glass_models` must be trained on each of them alone, and none on another; they are "
                f"models of {', '.join(single) or 'mixtures only'}."
            )
        return corpora

    def trained(self) -> dict[str, tuple[str, ...]]:
        """Return what each of the models was trained on, by the name that its records have."""
        folders = {resolve_model(name).name: model_folder(name) for name in self.glass_models}
        return {name: read_report(folder).recipe.sources for name, folder in folders.items()}

    def crossed(self) -> dict[str, list[RunSpec]]:
        """Return the crossed runs of each of the models of known training text."""
        size: dict[str, Any] = {"n_samples": self.glass_samples, "seq_len": self.glass_seq_len}
        held_out: dict[str, Any] = {"eval_sources": self.corpora, "eval_windows": self.glass_windows}
        held_out |= {"eval_seq_len": self.glass_seq_len, "n_seeds": self.glass_seeds, "pattern": "unstructured"}
        parts = [("unseen", self.glass_methods), ("seen", self.glass_methods[:1])]
        found: dict[str, list[RunSpec]] = {name: [] for name in self.glass_models}
        for name, sparsity, (view, methods) in product(self.glass_models, self.glass_sparsities, parts):
            sources = [resolve_source(f"{corpus}@{view}") for corpus in self.corpora]
            change = {"model": name, "sources": sources, "methods": methods, "sparsity": sparsity, **size, **held_out}
            found[name] += Grid.specs(self.model_copy(update=change))
        return {name: list(dict.fromkeys(specs)) for name, specs in found.items()}

    def grids(self) -> dict[str, list[RunSpec]]:
        """Return all runs of each model: those of `model` with `sources`, then the crossed ones."""
        found = {self.model: Grid.specs(self)}
        for name, specs in self.crossed().items():
            found[name] = list(dict.fromkeys([*found.get(name, []), *specs]))
        return found

    def specs(self) -> list[RunSpec]:
        """Return all runs, of all models."""
        return [spec for specs in self.grids().values() for spec in specs]

    def jobs(self) -> dict[str, SynthesisJob]:
        """Return for each model of known training text the job that writes text of its own, after nothing."""
        return {
            name: SynthesisJob.checked(
                model=name,
                prefix_source=None,
                prefix_len=0,
                n_texts=self.own_texts,
                new_tokens=self.own_tokens,
                end_of_text="continue",
                dtype=self.dtype,
                device=self.device,
            )
            for name in self.glass_models
        }

    def requests(self) -> dict[str, list[TextScores]]:
        """Return what is measured of the texts: of `model` every source; of each other what it saw, not, and wrote."""
        reference = self._draw(self.reference, 1)  # another draw than the one that is scored
        found = {self.model: [self._scores(self.model, source, reference) for source in self.sources]}
        for name, job in self.jobs().items():
            corpora = [corpus for corpus in self.corpora if corpus in read_report(model_folder(name)).recipe.sources]
            texts = [resolve_source(f"{corpus}@{view}") for view in ("seen", "unseen") for corpus in corpora]
            found.setdefault(name, []).extend(self._scores(name, source, None) for source in (*texts, job.source))
        return found

    def _scores(self, model: str, source: str, reference: Draw | None) -> TextScores:
        ref = resolve_model(model)
        alike: dict[str, Any] = {"model": ref.name, "model_hash": ref.content_hash()}
        alike |= {"dtype": dtype_on(self.device, self.dtype), "reference": reference}
        return checked_measurement(TextScores, draw=self._draw(source, 0), **alike)

    def _draw(self, source: str, seed: int) -> Draw:
        size: dict[str, Any] = {"n_samples": self.score_windows, "seq_len": self.score_seq_len}
        return Draw(text=Calibration(source=source, source_hash=source_hash(source), **size), seed=seed)
