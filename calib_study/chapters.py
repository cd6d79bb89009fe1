"""What each chapter of the book rests on: the runs that its profile `published` asks for, and their records."""

from typing import Any

from calib_study import paths
from calib_study.errors import DataError, InputError, StudyError, unknown
from calib_study.grids import Grid
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_names, profile_parameters, resolve_notebook
from calib_study.parameters import SCHEMAS, DataSources, validate
from calib_study.records import Record, read_record
from calib_study.specs import RunSpec

PUBLISHED = "published"


def chapter_slug(name: str) -> str:
    """Return the slug of the chapter that a slug or a number ("01" or "1") means.

    Raises InputError, with near matches, if there is none.
    """
    slug = resolve_notebook(name).stem
    if slug not in SCHEMAS:
        raise unknown("chapter", slug, SCHEMAS)
    return slug


def published_specs(slug: str) -> list[RunSpec]:
    """Return every run that a chapter's profile `published` asks for, in the order of its grids, repeats left out.

    Raises InputError for a chapter that has no grid, or no such profile.
    """
    if slug not in SCHEMAS:
        raise unknown("chapter", slug, SCHEMAS)
    if not issubclass(SCHEMAS[slug], Grid) or PUBLISHED not in profile_names(slug):
        having = [name for name in SCHEMAS if issubclass(SCHEMAS[name], Grid) and PUBLISHED in profile_names(name)]
        raise InputError(
            f"chapter {slug} has no published records: it runs no grid, or none under a profile {PUBLISHED!r}. "
            f"Chapters that have: {', '.join(having)}."
        )
    return chapter_specs(chapter_parameters(slug, PUBLISHED))


def chapter_parameters(slug: str, profile: str) -> Any:
    """Return the checked parameters of a chapter under a profile: its defaults, and the profile's over them."""
    defaults = parameter_defaults(notebooks_dir() / f"{slug}.py")
    return validate(slug, {**defaults, **profile_parameters(slug, profile)})


def chapter_specs(cfg: Any) -> list[RunSpec]:
    """Return every run that a chapter's parameters ask for, those of a second grid too, repeats left out."""
    specs: list[RunSpec] = cfg.specs()
    if isinstance(cfg, DataSources):
        specs = specs + cfg.crossed().specs()
    return list(dict.fromkeys(specs))


def published_records(slug: str) -> list[Record]:
    """Return the records in data/results of a chapter's published runs, in the order of `published_specs`.

    Runs without one are left out. Raises InputError if none has one, and DataError for a file that is no record.
    """
    specs = published_specs(slug)
    files = [paths.results_dir() / f"{spec.run_id}.json" for spec in specs]
    try:
        records = [read_record(file) for file in files if file.exists()]
    except StudyError as error:
        raise DataError(f"a published record of chapter {slug} cannot be read:\n{error}") from error
    if not records:
        raise InputError(
            f"chapter {slug} has no published records: {paths.results_dir()} holds none of the {len(specs)} runs "
            f"that its profile {PUBLISHED!r} asks for. To compute them: calib-study run {slug} --profile {PUBLISHED}"
        )
    return records
