"""The papers' claims, the rule that decides each, and what the records say of it.

The registry is `data/claims.yml`. The verdicts are the chapters' own: each has a function that judges its checked
parameters and records. Nothing is computed here that a chapter does not compute; a chapter whose records are not all
there is not run, but named.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from calib_study.chapters import chapter_parameters, chapter_specs
from calib_study.errors import DataError, InputError, StudyError, unknown
from calib_study.notebooks import profile_names
from calib_study.paths import root
from calib_study.records import Store
from calib_study.specs import Frozen, problem, problem_lines
from calib_study.verdicts import Judgement
from calib_study.yaml_values import read_yaml

# What judges a chapter: a module, imported when it is needed, and its function of (parameters, records).
CHAPTERS = {
    "01_data_sources": ("crossed_judgements", "judge_sources"),
    "02_sparsity_scaling": ("scaling_tables", "judge"),
    "03_amount": ("amount_tables", "judge"),
    "04_packing": ("packing_tables", "judge"),
    "05_self_generation": ("own_text_tables", "judge"),
    "06_filtering": ("filter_tables", "judge"),
    "11_measuring": ("crossed_judgements", "judge_measuring"),
}
Word = Literal["supported", "not supported", "inconclusive", "mixed", "not computed", "not tested"]
WORDS: tuple[Word, ...] = ("supported", "not supported", "inconclusive", "mixed", "not computed", "not tested")
LONGEST_REASON = 160  # characters of an error that a table repeats


class Claim(Frozen):
    """One claim of a paper.

    Attributes:
        paper: its key in book/references.bib.
        title: a few words for a figure.
        claim: in one sentence, in our words.
        evidence: what the paper has for it, with numbers.
        sourced: how we know the evidence: from the paper or its code and logs; from what others write about the paper;
            or read out of their files by us, without their saying so.
        where: what we have it from.
        rule: what decides it here, in one sentence; None if nothing does.
        chapters: those that judge it.
        untested: what of it could not be tested here, and why; needed if no chapter judges it.
    """

    id: str = Field(pattern=r"^[JWSK][1-9][0-9]?$")
    paper: str
    title: str = Field(min_length=5, max_length=64)
    claim: str = Field(min_length=10)
    evidence: str = Field(min_length=10)
    sourced: Literal["first hand", "second hand", "inferred"]
    where: str
    rule: str | None = None
    chapters: tuple[str, ...] = ()
    untested: str | None = None

    @field_validator("chapters")
    @classmethod
    def _judged_by_known_ones(cls, chapters: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for slug in chapters:
            if slug not in CHAPTERS:
                raise problem(str(unknown("judging chapter", slug, CHAPTERS)))
        if bool(chapters) != bool(info.data.get("rule")):
            raise problem("a claim has a rule if a chapter judges it, and only then.")
        return chapters

    @field_validator("untested")
    @classmethod
    def _chapter_or_reason(cls, reason: str | None, info: ValidationInfo) -> str | None:
        if not reason and not info.data.get("chapters"):
            raise problem("a claim that no chapter judges needs the reason why.")
        return reason


class Registry(Frozen):
    """All claims, in the papers' order."""

    claims: tuple[Claim, ...] = Field(min_length=1)

    @field_validator("claims")
    @classmethod
    def _ids_are_unique(cls, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if repeated := [name for name, n in Counter(claim.id for claim in claims).items() if n > 1]:
            raise problem(f"each id can be used once only; repeated: {', '.join(repeated)}.")
        return claims


def load_claims(file: Path | None = None) -> tuple[Claim, ...]:
    """Return the claims of `data/claims.yml`. Raises DataError listing every problem of the file."""
    file = file or root() / "data" / "claims.yml"
    try:
        return Registry.model_validate(read_yaml(file.read_text(encoding="utf-8"))).claims
    except ValidationError as error:
        raise DataError(f"{file} is no registry of claims:\n{problem_lines(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error


@cache
def claims() -> tuple[Claim, ...]:
    """Return the project's claims, read once."""
    return load_claims()


# --- what the records say -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with all judgements on it, each with its chapter, and a line for each chapter that gave none."""

    claim: Claim
    judgements: tuple[tuple[str, Judgement], ...] = ()
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def word(self) -> Word:
        """The verdict if all judgements have the same, "mixed" if they differ."""
        found = {judgement.verdict for _, judgement in self.judgements}
        if not found:
            return "not computed" if self.claim.chapters else "not tested"
        return found.pop() if len(found) == 1 else "mixed"


def judged(profile: str, store: Store | None = None, registry: Sequence[Claim] | None = None) -> list[Judged]:
    """Return every claim with what the records of a profile say of it, in the registry's order.

    Only stored records are read. A chapter is judged if all that its profile asks for are there; if not, its claims say
    what to run. Raises StudyError if a chapter judges a claim that the registry does not assign to it.
    """
    known = registry if registry is not None else claims()
    store = store or Store.default()
    chapters = [slug for slug in CHAPTERS if any(slug in claim.chapters for claim in known)]
    found = {slug: chapter_judgements(slug, profile, store) for slug in chapters}
    for slug, result in found.items():
        assigned = {claim.id for claim in known if slug in claim.chapters}
        if not isinstance(result, str) and (others := {j.claim for j in result} - assigned):
            raise StudyError(
                f"chapter {slug} judges {', '.join(sorted(others))}, which the registry does not assign to it."
            )
    return [_of_claim(claim, found, profile) for claim in known]


def _of_claim(claim: Claim, found: dict[str, list[Judgement] | str], profile: str) -> Judged:
    judgements, missing = [], []
    for slug in claim.chapters:
        result = found[slug]
        if isinstance(result, str):
            missing.append((slug, result))
            continue
        own = [(slug, judgement) for judgement in result if judgement.claim == claim.id]
        judgements += own
        if not own:
            missing.append((slug, f"not decided: the runs of profile `{profile}` do not hold what the rule compares"))
    return Judged(claim, tuple(judgements), tuple(missing))


def chapter_judgements(slug: str, profile: str, store: Store) -> list[Judgement] | str:
    """Return a chapter's judgements on the records of a profile, or a line that says what to run if some are missing.

    Parameters that cannot be checked here (a model or a text that is not there yet) are runs that are missing.
    """
    run = f"not computed: run `calib-study run {slug} --profile {profile}`"
    if profile not in profile_names(slug):
        return f"not computed: the chapter has no profile `{profile}`; its profiles: {', '.join(profile_names(slug))}"
    try:
        cfg = chapter_parameters(slug, profile)
        specs = chapter_specs(cfg)
    except (InputError, DataError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0]  # what comes after says what to do instead
        return f"{run} ({reason[:LONGEST_REASON]}{'…' if len(reason) > LONGEST_REASON else ''})"
    records = [store.get(spec.run_id) for spec in specs]
    there = [record for record in records if record is not None]
    if len(there) < len(specs):
        return f"{run} ({len(specs) - len(there):,} of {len(specs):,} runs have no record)"
    module, function = CHAPTERS[slug]
    result: list[Judgement] = getattr(import_module(f"calib_study.{module}"), function)(cfg, there)
    return result
