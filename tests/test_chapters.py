"""What a chapter rests on: the runs of its published profile, crossed grids too, and their records."""

import re
import shutil
from pathlib import Path

import pytest

from calib_study import chapters, paths
from calib_study.chapters import chapter_slug, published_records, published_specs
from calib_study.errors import DataError, InputError
from calib_study.generated import is_generated, published_home
from calib_study.grids import Grid
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_parameters
from calib_study.parameters import SCHEMAS, DataSources, validate


@pytest.mark.parametrize("name", ["10", "10_schedules", "10_schedules.ipynb"])
def test_a_chapter_has_a_name_and_a_number(name: str) -> None:
    assert chapter_slug(name) == "10_schedules"
    assert chapter_slug("1") == chapter_slug("01") == "01_data_sources"


def test_unknown_chapters_are_named_with_near_matches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown notebook '10_schedule'\. Did you mean '10_schedules'"):
        chapter_slug("10_schedule")
    other = tmp_path / "10_shedules.py"
    other.touch()
    for call in (lambda: chapter_slug(str(other)), lambda: published_specs("10_shedules")):
        with pytest.raises(InputError, match=r"unknown chapter '10_shedules'\. Did you mean '10_schedules'"):
            call()


def test_the_crossed_grid_counts() -> None:
    given = parameter_defaults(notebooks_dir() / "01_data_sources.py")
    checked = validate("01_data_sources", {**given, **profile_parameters("01_data_sources", "published")})
    assert isinstance(checked, DataSources)
    plain, crossed = checked.specs(), checked.crossed().specs()
    found = published_specs("01_data_sources")
    assert found == plain + [spec for spec in crossed if spec not in plain]
    assert {spec.evaluation.divergence for spec in crossed} == {True}
    assert len(found) == len({spec.run_id for spec in found}) > len(plain)


def test_the_profile_is_put_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {spec.seed for spec in published_specs("10_schedules")}
    monkeypatch.setattr(chapters, "profile_parameters", lambda *_: {"n_seeds": 4})
    assert {spec.seed for spec in published_specs("10_schedules")} == set(range(4)) != seeds


WITH_GRID = [slug for slug, schema in SCHEMAS.items() if issubclass(schema, Grid)]


@pytest.mark.parametrize("slug", WITH_GRID)
def test_every_run_of_a_published_chapter_has_its_record(slug: str) -> None:
    assert [record.spec for record in published_records(slug)] == published_specs(slug)


@pytest.mark.parametrize("slug", ["05_self_generation", "06_filtering"])
def test_texts_of_published_runs_are_part_of_the_project(slug: str) -> None:
    """And not only in the cache of whoever wrote them."""
    sources = {spec.calibration.source for spec in published_specs(slug) if spec.calibration}
    names = {name for source in sources for name in re.findall(r"selfgen:([\w.-]+)", source)}
    assert names
    assert {name for name in names if not is_generated(published_home() / name)} == set()


def test_a_chapter_without_a_grid_has_no_records() -> None:
    with pytest.raises(InputError, match=r"00_data has no published records: .*Chapters that have: 01_data_sources, "):
        published_records("00_data")


def test_runs_without_a_record_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, third, *_ = published_specs("10_schedules")
    published = paths.results_dir()
    monkeypatch.setattr(paths, "results_dir", lambda: tmp_path)
    with pytest.raises(InputError, match=r"holds none of the \d+ runs .* calib-study run 10_schedules"):
        published_records("10_schedules")
    for spec in (third, first):
        shutil.copy(published / f"{spec.run_id}.json", tmp_path)
    assert [record.spec for record in published_records("10_schedules")] == [first, third]
    (tmp_path / f"{first.run_id}.json").write_text("{")
    with pytest.raises(DataError, match=rf"chapter 10_schedules cannot be read:\n{first.run_id}.json: not JSON"):
        published_records("10_schedules")
