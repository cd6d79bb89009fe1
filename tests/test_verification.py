"""Stored numbers computed again: an untouched record agrees, and any number that was changed is found."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import tiny_grid, tiny_spec

from calib_study import paths, study
from calib_study.errors import DataError, InputError
from calib_study.records import Metric, Record, Store, read_record
from calib_study.study import run_grid
from calib_study.verification import (
    RELATIVE_TOLERANCE,
    allowance,
    choose,
    compare,
    report,
    sample_of,
    spot_check,
    verify,
)

Files = tuple[Path, Path]


@pytest.fixture(scope="module")
def stored(tiny_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 8 records of the tiny grid. Read only."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CALIB_STUDY_CACHE", str(folder / "cache"))
        run_grid(tiny_grid(*tiny_files), model=str(tiny_files[0]), store=Store(folder), progress=False)
    return folder


@pytest.fixture
def published(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of those records in the place of the published ones, to be tampered with."""
    for file in stored.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(paths, "results_dir", lambda: tmp_path)
    return tmp_path


def wanda(folder: Path, files: Files) -> Path:
    return folder / f"{tiny_spec(*files).run_id}.json"


def tampered(file: Path, edit: Callable[[dict[str, Any]], Any]) -> Record:
    """Return a stored record after `edit` has changed its JSON."""
    fields = json.loads(file.read_text())
    edit(fields)
    file.write_text(json.dumps(fields))
    return read_record(file)


def scale(fields: dict[str, Any], key: str, factor: float) -> None:
    fields[key] *= factor


# --- computing again --------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_untouched_records_are_equal_to_the_last_bit(stored: Path, tiny_files: Files, own_cache: Path) -> None:
    records, _ = Store(stored).scan()
    rows = verify(records, model=str(tiny_files[0]), progress=False)
    assert all(row.within and row.relative == 0 and row.stored == row.again for row in rows)
    source = str(tiny_files[1])
    of_wanda = [row.quantity for row in rows if row.run_id == wanda(stored, tiny_files).stem]
    assert of_wanda == ["model", "calibration tokens", "sparsity", f"perplexity on {source}", f"nll on {source}"]
    # three runs calibrated on text have five rows, the five others have no tokens
    assert len(rows) == 3 * 5 + 5 * 4


@pytest.mark.tiny
def test_a_check_uses_the_threads_of_the_record(
    stored: Path, tiny_files: Files, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(wanda(stored, tiny_files))
    before, used = torch.get_num_threads(), []
    run = study.Laboratory.run
    monkeypatch.setattr(
        study.Laboratory, "run", lambda *args, **named: (used.append(torch.get_num_threads()), run(*args, **named))[1]
    )
    of_three = record.model_copy(update={"environment": record.environment.model_copy(update={"threads": 3})})
    verify([of_three], model=str(tiny_files[0]), progress=False)
    assert used == [3] and torch.get_num_threads() == before


@pytest.mark.tiny
def test_a_tampered_metric_is_found(published: Path, tiny_files: Files, own_cache: Path) -> None:
    record = tampered(wanda(published, tiny_files), lambda f: scale(f["metrics"][0], "value", 1.06))
    text, agrees = report([record], model=str(tiny_files[0]), device="cpu", tolerance=None)
    assert not agrees
    [line] = [line for line in text.splitlines() if "DIFFERS" in line]
    assert "perplexity on" in line and "5.7e-02" in line  # 0.06 / 1.06 of the stored value
    assert report([record], model=str(tiny_files[0]), device="cpu", tolerance=0.08)[1]


@pytest.mark.tiny
def test_a_spot_check_is_of_published_records_only(published: Path, tiny_files: Files, own_cache: Path) -> None:
    records, _ = Store(published).scan()
    table, seed = spot_check(records, 2, model=str(tiny_files[0]), device="cpu")
    assert list(table.columns) == ["run", "quantity", "stored", "here", "relative difference", "agrees"]
    assert table["agrees"].all() and table["run"].nunique() == 2
    assert set(table["run"]) == {record.spec.title for record in sample_of(records, 2, seed)}
    for file in published.glob("*.json"):
        file.unlink()
    assert len(spot_check(records, 2, device="cpu")[0]) == 0


@pytest.mark.tiny
def test_text_that_is_not_the_records_is_refused(
    stored: Path, tiny_files: Files, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_record(wanda(stored, tiny_files))
    monkeypatch.setattr("calib_study.preflight.source_hash", lambda _: "ab" * 32)
    with pytest.raises(InputError, match="Has the text changed"):
        verify([record], model=str(tiny_files[0]), progress=False)


def metric(value: float, unit: str, n: int) -> Metric:
    return Metric(name="m", dataset="d", value=value, unit=unit, higher_is_better=True, n=n)


@pytest.mark.parametrize(
    ("of", "tolerance", "allowed"),
    [
        (metric(50.0, "per token", 64), 0.01, 0.5),
        (metric(0.5, "share of items", 64), 0.03, 4 / 64),  # more than 3 % of it
        (metric(0.5, "share of items", 64), 0.12, 8 / 64),
        (metric(0.5, "share of tokens", 4096), 0.03, 0.015),
        (metric(500.0, "per word", 40), 0.01, 25.0),  # 5 times 1 %, for a 25th of the words
        (metric(500.0, "per word", 5000), 0.01, 5.0),
    ],
)
def test_what_is_allowed_depends_on_what_a_metric_counts(of: Metric, tolerance: float, allowed: float) -> None:
    assert allowance(of, tolerance) == pytest.approx(allowed)


@pytest.mark.tiny
def test_sparsegpt_is_allowed_more(published: Path, tiny_files: Files) -> None:
    record = read_record(wanda(published, tiny_files))
    changed = tampered(wanda(published, tiny_files), lambda f: scale(f["metrics"][0], "value", 1.08))
    assert not all(row.within for row in compare(record, changed, RELATIVE_TOLERANCE))
    unstable = record.model_copy(update={"spec": record.spec.model_copy(update={"method": "sparsegpt"})})
    assert all(row.within for row in compare(unstable, changed, RELATIVE_TOLERANCE))


# --- comparing --------------------------------------------------------------------------------------------

LAYER = "model.layers.1.mlp.down_proj"
EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "value": (lambda f: scale(f["metrics"][1], "value", 0.99), "nll on .*own.txt"),
    "negligible": (lambda f: scale(f["metrics"][1], "value", 1 + 1e-6), ""),
    "window": (lambda f: f["metrics"][1]["items"].__setitem__(2, 1.0), "nll on .*: window 2"),
    "window left out": (lambda f: f["metrics"][1]["items"].pop(), "nll on .*: windows"),
    "standard error": (lambda f: scale(f["metrics"][1], "stderr", 0.5), "nll on .*: stderr"),
    "standard error left out": (lambda f: f["metrics"][0].update(stderr=None), "perplexity on .*: stderr"),
    "tokens scored": (lambda f: f["metrics"][1].update(n=61), "nll on .*: tokens"),
    "sparsity": (lambda f: scale(f["sparsity"], "overall", 0.999), "sparsity"),
    "layer": (lambda f: scale(f["sparsity"]["per_layer"], LAYER, 0.999), f"sparsity of {LAYER}"),
    "layer left out": (lambda f: f["sparsity"]["per_layer"].pop(LAYER), "layers"),
    "calibration tokens": (lambda f: f["calibration"].update(tokens_sha256="ab" * 32), "calibration tokens"),
    "calibration left out": (lambda f: f.update(calibration=None), "calibration tokens"),
    "number of tokens": (lambda f: f["calibration"].update(n_tokens=63), "n_tokens"),
    "number of documents": (lambda f: f["calibration"].update(n_documents=1), "n_documents"),
    "model": (lambda f: f.update(model_sha256="ab" * 32), "model"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_every_changed_number_is_named(kind: str, published: Path, tiny_files: Files) -> None:
    edit, quantity = EDITS[kind]
    file = wanda(published, tiny_files)
    again = read_record(file)
    changed = tampered(file, edit)
    differing = [row for row in compare(changed, again, 0.005) if not row.within]
    assert len(differing) == bool(quantity)
    for row in differing:
        assert re.fullmatch(quantity, row.quantity)
        assert row.stored != row.again


def test_differences_by_hand(published: Path, tiny_files: Files) -> None:
    file = wanda(published, tiny_files)
    again = tampered(file, lambda f: f["metrics"][0].update(value=8.0))
    rows = {
        row.quantity: row for row in compare(tampered(file, lambda f: f["metrics"][0].update(value=10.0)), again, 0.2)
    }
    row = rows[f"perplexity on {tiny_files[1]}"]
    # |8 - 10| / 10 = 0.2, which is still within 0.2
    assert (row.stored, row.again, row.relative, row.within) == (10.0, 8.0, 0.2, True)
    assert (row.run_id, row.title) == (file.stem, "wanda 0.5 on own.txt, seed 0")


# --- choosing ---------------------------------------------------------------------------------------------


def test_the_choice_is_seeded(published: Path) -> None:
    records, problems = Store(published).scan()
    assert problems == [] and len(records) == 8
    chosen, seed = choose(3, 7)
    assert seed == 7 and chosen == choose(3, 7)[0] == sample_of(records, 3, 7)
    assert len(chosen) == len({record.run_id for record in chosen}) == 3
    assert [record for record in records if record in chosen] == chosen  # in the order they had
    assert len({tuple(r.run_id for r in choose(3, seed)[0]) for seed in range(10)}) > 1
    _, drawn = choose(3, None)
    assert choose(3, drawn)[0] == sample_of(records, 3, drawn)
    assert choose(None, 0)[0] == choose(8, 0)[0] == choose(99, 0)[0] == records


def test_every_record_is_chosen_in_the_long_run(published: Path) -> None:
    records, _ = Store(published).scan()
    seen = {record.run_id for seed in range(60) for record in sample_of(records, 1, seed)}
    assert seen == {record.run_id for record in records}  # missed by chance: 8 * (7/8)**60 = 0.3 %, and seeds are fixed


def test_damaged_published_records_are_an_error(published: Path) -> None:
    damaged = min(published.glob("*.json"))
    damaged.write_text("{")
    with pytest.raises(DataError, match=damaged.name):
        choose(None, 0)


def test_no_published_records_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "results_dir", lambda: tmp_path)
    with pytest.raises(DataError, match="holds no records"):
        choose(3, None)
