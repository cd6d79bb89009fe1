"""Stored numbers computed again: an untouched record agrees, and any number that was changed is found."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import tiny_grid, tiny_spec

from calib_study import chapters, cli, paths, study, verification
from calib_study.errors import DataError, InputError
from calib_study.model_files import resolve_model
from calib_study.records import Metric, Record, Store, read_record
from calib_study.study import run_grid
from calib_study.verification import (
    RELATIVE_TOLERANCE,
    Comparison,
    allowance,
    choose,
    compare,
    explanation,
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
    for file in [*stored.glob("*.json"), *stored.glob("*.npz")]:
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


def rewritten(folder: Path, files: Files, **changes: Any) -> None:
    """Store Wanda's record again, as the package would, with other fields."""
    Store(folder).put(read_record(wanda(folder, files)).model_copy(update=changes))


def command_line(monkeypatch: pytest.MonkeyPatch, files: Files, *arguments: str) -> int:
    """Return the exit code of `calib-study verify` where the records' model is the tiny one."""
    monkeypatch.setattr(verification, "resolve_model", lambda _: resolve_model(str(files[0])))
    monkeypatch.setattr(sys, "argv", ["calib-study", "verify", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


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


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_untouched_records_pass(
    published: Path,
    tiny_files: Files,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_line(monkeypatch, tiny_files, "--all") == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("8 records, ")
    lines = shown.out.splitlines()
    assert len(lines) == 1 + 3 * 5 + 5 * 4 and all(line.endswith("equal") for line in lines[1:])


@pytest.mark.tiny
def test_the_command_finds_a_tampered_metric_among_all(
    published: Path,
    tiny_files: Files,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = read_record(wanda(published, tiny_files))
    first, *others = record.metrics
    rewritten(published, tiny_files, metrics=(first.model_copy(update={"value": first.value * 1.06}), *others))
    assert command_line(monkeypatch, tiny_files, "--all") == 1
    shown = capsys.readouterr()
    assert "could not be reproduced" in shown.err
    [line] = [line for line in shown.out.splitlines() if line.endswith("DIFFERS")]
    assert line.startswith(record.run_id) and "perplexity on" in line
    last = shown.out.splitlines()[-1]
    assert "does not explain" in last and last.endswith(f" {record.run_id}")


@pytest.mark.tiny
def test_what_differs_of_the_machine_is_named(
    published: Path,
    tiny_files: Files,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = read_record(wanda(published, tiny_files))
    here = record.environment
    of_another = here.model_copy(update={"processor": "a chip", "versions": here.versions | {"torch": "1"}})
    rewritten(published, tiny_files, environment=of_another)
    assert command_line(monkeypatch, tiny_files, "--all") == 0
    assert "this machine" not in capsys.readouterr().out  # where all is equal there is nothing to explain
    first, *others = record.metrics
    nearly = first.model_copy(update={"value": first.value * 1.0001})
    rewritten(published, tiny_files, environment=of_another, metrics=(nearly, *others))
    assert command_line(monkeypatch, tiny_files, "--all") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        f"this machine differs from the records' in: versions.torch (1 there, {torch.__version__} here), "
        f"processor (a chip there, {here.processor} here)"
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: tampered_text(file, '"seed": 0', '"seed": 5'), r"has run_id [0-9a-f]{16}; it was changed or"),
        (lambda file: file.write_text(file.read_text()[:500]), "perhaps the file is truncated"),
        (lambda file: file.with_suffix(".npz").write_bytes(b"other"), r"\.npz: the arrays .* were changed"),
        (lambda file: file.with_suffix(".npz").unlink(), r"\.npz: the arrays .* are missing"),
    ],
    ids=["specification", "truncated", "arrays changed", "arrays lost"],
)
def test_a_damaged_record_stops_the_command_before_anything_is_computed(
    edit: Callable[[Path], Any],
    message: str,
    published: Path,
    tiny_files: Files,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verification, "verify", lambda *_, **__: pytest.fail("computed"))
    file = wanda(published, tiny_files)
    edit(file)
    assert command_line(monkeypatch, tiny_files) == 3
    shown = capsys.readouterr().err
    assert file.stem in shown and re.search(message, shown) and "Traceback" not in shown


def tampered_text(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.mark.tiny
def test_a_chapter_limits_the_records(
    published: Path,
    tiny_files: Files,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {}

    def specs(slug: str) -> list[Any]:
        asked[slug] = [tiny_spec(*tiny_files), tiny_spec(*tiny_files, "dense"), tiny_spec(*tiny_files, seed=99)]
        return asked[slug]

    monkeypatch.setattr(chapters, "published_specs", specs)
    assert command_line(monkeypatch, tiny_files, "--all", "--chapter", "10") == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("2 records, ")  # of seed 99 there is none
    assert {line.split()[0] for line in shown.out.splitlines()[1:]} == {
        spec.run_id for spec in asked["10_schedules"][:2]
    }


def unequal(run_id: str, *elsewhere: str, relative: float = 0.01) -> Comparison:
    return Comparison(run_id, "run", "quantity", 1.0, 1.0 + relative, relative, True, elsewhere)


def test_what_explains_a_difference_by_hand() -> None:
    assert explanation([unequal("a", "python (3 there, 4 here)", relative=0.0), unequal("b", relative=0.0)]) == []
    both = [unequal("a", "x", "y"), unequal("a", "x", "y"), unequal("b", "y"), unequal("c"), unequal("d"), unequal("c")]
    first, second = explanation(both)
    assert first == "this machine differs from the records' in: x, y"
    assert second.endswith("does not explain what is not equal in c, d")
    assert explanation(both[:3]) == [first] and explanation(both[3:]) == [second]


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


def test_the_choice_is_among_the_records_given(published: Path) -> None:
    records, _ = Store(published).scan()
    chosen, _ = choose(2, 0, among=records[:3])
    assert len(chosen) == 2 and [record for record in records[:3] if record in chosen] == chosen
    assert choose(None, 0, among=records[:3])[0] == records[:3]


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
