"""Which records a text means: run ids and their beginnings, paths, conditions; each refusal says what there is."""

import json
from pathlib import Path

import pytest
from tiny_records import group, keep, spec

from calib_study.errors import InputError, StudyError
from calib_study.records import Store
from calib_study.selection import condition_names, facts, matching, parse_conditions, select_two
from calib_study.specs import Owl, RunSpec

LOSSES = (1.0, 2.0, 3.0, 4.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Wanda on two texts with two seeds each, and magnitude."""
    store = Store(tmp_path / "records")
    for source in ("c4", "code"):
        group(store, {0: LOSSES, 1: LOSSES}, source=source)
    keep(store, spec("magnitude", None), LOSSES)
    return store


def ids(text: str, store: Store, where: str = "") -> list[tuple[str, str, int]]:
    """Return what a text selects: method, source, seed."""
    found = select_two(text, text, where=where, store=store)[0].records
    return sorted((one.spec.method, facts(one.spec)["source"], one.spec.seed) for one in found)


# --- facts and conditions ---------------------------------------------------------------------------------


def test_facts_by_hand() -> None:
    known = facts(spec(allocation=Owl(), evaluation={"tasks": ("piqa", "copa"), "divergence": True}))
    shown = {"method": "wanda+owl", "owl_lam": "0.08", "source": "c4", "sparsity": "0.5", "min_tokens": "none"}
    shown |= {"eval_tasks": "piqa,copa", "eval_divergence": "yes", "eval_n_windows": "4", "options": "none"}
    assert shown.items() <= known.items()
    assert (
        facts(spec("sparsegpt", options={"damping": 0.1, "block_size": 64}))["options"] == "block_size=64,damping=0.1"
    )
    assert facts(spec("magnitude", None))["source"] == "none"


def test_every_field_of_a_specification_is_a_fact() -> None:
    assert list(facts(spec())) == condition_names()
    assert len(condition_names()) == len(set(condition_names()))
    assert len(condition_names()) > len(RunSpec.model_fields)


def test_conditions() -> None:
    assert parse_conditions("") == {}
    assert parse_conditions("source=c4:0.7,code:0.3, seed=0") == {"source": "c4:0.7,code:0.3", "seed": "0"}
    with pytest.raises(InputError, match="Did you mean 'source'"):
        parse_conditions("sorce=c4")
    with pytest.raises(InputError, match="expected name=value"):
        parse_conditions("c4")
    with pytest.raises(InputError, match="'0' and '1' exclude each other"):
        parse_conditions("seed=0,seed=1")


def test_values_may_be_written_in_other_ways(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "texts" / "own.txt"
    keep(store, spec(source=str(own), sparsity=2 / 3), LOSSES)
    monkeypatch.chdir(tmp_path)
    for text in (f"source={own}", "source=own.txt", "source=texts/own.txt", "sparsity=0.666667", "sparsity=.6666667"):
        assert ids(text, store) == [("wanda", str(own), 0)]


def test_conditions_select_from_the_store(store: Store) -> None:
    assert ids("method=wanda,source=code", store) == [("wanda", "code", 0), ("wanda", "code", 1)]
    assert ids("source=code", store, where="seed=1") == [("wanda", "code", 1)]
    assert ids("source=none", store) == [("magnitude", "none", 0)]


def test_conditions_that_none_meets_are_named_with_what_there_is(store: Store) -> None:
    with pytest.raises(InputError, match=r"of 5 records, none has source=c5: unknown source 'c5'\. Did you mean 'c4'"):
        ids("source=c5", store)
    with pytest.raises(InputError, match=r"of 2 records with source=c4, none has seed=7: .* Allowed: 0, 1"):
        ids("source=c4,seed=7", store)
    with pytest.raises(InputError, match="what holds for both exclude each other"):
        ids("source=c4", store, where="source=code")
    with pytest.raises(InputError, match="of 0 records"):
        matching([], {"seed": "0"})


# --- run ids ----------------------------------------------------------------------------------------------


def test_a_run_id_or_its_beginning(store: Store) -> None:
    run_id = spec().run_id
    for text in (run_id, run_id[:4], run_id[:9].upper()):
        assert ids(text, store) == [("wanda", "c4", 0)]
    with pytest.raises(InputError, match="4 digits are needed"):
        ids(run_id[:3], store)


def test_an_ambiguous_beginning_is_refused_with_what_it_may_mean(store: Store) -> None:
    folder = store.write_dir
    for name in ("abcd000000000000", "abcd111111111111"):
        (folder / f"{name}.json").write_text("{}")
    with pytest.raises(InputError, match=r"the beginning of 2: abcd000000000000, abcd111111111111\. Give"):
        ids("abcd", store)


def test_an_unknown_run_id_is_refused_with_near_matches(store: Store) -> None:
    run_id = spec().run_id
    wrong = "0" if run_id[-1] != "0" else "1"
    with pytest.raises(InputError, match=f"Did you mean {run_id}"):
        ids(run_id[:-1] + wrong, store)
    with pytest.raises(InputError, match="'wnada' is no record"):
        ids("wnada", store)


def test_a_damaged_record_is_an_error(store: Store) -> None:
    (store.write_dir / "abcd000000000000.json").write_text("{")
    with pytest.raises(StudyError, match="not JSON"):
        ids("abcd", store)
    _, found = select_two("seed=0", "seed=1", store=store)
    assert len(found.problems) == 1 and "abcd000000000000.json" in found.problems[0]


# --- paths ------------------------------------------------------------------------------------------------


def test_paths(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Store(tmp_path / "none")
    run_id = spec().run_id
    assert ids(str(store.write_dir / f"{run_id}.json"), other) == [("wanda", "c4", 0)]
    assert len(ids(str(store.write_dir), other)) == 5
    assert ids(str(store.write_dir), other, where="source=code,seed=0") == [("wanda", "code", 0)]
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    content = (store.write_dir / f"{run_id}.json").read_text()
    (pruned / "record.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    for text in ("pruned", "pruned/record.json", str(pruned)):
        assert ids(text, other) == [("wanda", "c4", 0)]
    (pruned / "record.json").write_text(json.dumps({**json.loads(content), "finished": 3}))
    with pytest.raises(StudyError, match="not a record of this study"):
        ids("pruned", other)
    (pruned / "record.json").write_text("[]")
    with pytest.raises(StudyError, match="is not a record"):
        ids("pruned", other)


def test_paths_that_hold_no_record_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    with pytest.raises(InputError, match="no such file or folder"):
        ids("elsewhere/x", store)
    with pytest.raises(InputError, match="no such file or folder"):
        ids("0123456789abcdef.json", store)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder holds none"):
        ids(str(tmp_path / "empty"), store)


def test_the_store_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    scan = store.scan
    monkeypatch.setattr(store, "scan", lambda: read.append("all") or scan())
    select_two("source=c4", "source=code", store=store)
    assert read == ["all"]
