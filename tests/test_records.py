"""Records and their store: written whole or not at all, exact to the last bit, and nothing foreign gets in."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import Timeout
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calib_study import paths
from calib_study.errors import InputError, StudyError
from calib_study.records import (
    CalibrationFacts,
    Environment,
    Metric,
    Record,
    SparsityFacts,
    Stage,
    Store,
    read_record,
    to_frame,
)
from calib_study.specs import Owl, RunSpec, make_spec

WANDA = make_spec(model="smollm2-135m", method="wanda", sparsity=0.5, source="c4", seed=3)
DENSE = make_spec(model="smollm2-135m", method="dense", sparsity=0)


def metric(value: Any = 12.5, name: str = "perplexity", dataset: str = "c4", **other: Any) -> Metric:
    fields = {"unit": "per token", "higher_is_better": False, "n": 4088, "stderr": 0.25} | other
    return Metric(name=name, dataset=dataset, value=value, **fields)


def record(spec: RunSpec = WANDA, metrics: tuple[Metric, ...] = (metric(),)) -> Record:
    facts = CalibrationFacts(tokens_sha256="ab" * 32, n_tokens=8192, n_documents=7)
    return Record(
        run_id=spec.run_id,
        spec=spec,
        model_sha256="cd" * 32,
        calibration=facts if spec.calibration else None,
        sparsity=SparsityFacts(overall=spec.sparsity, per_layer={"model.layers.0.self_attn.q_proj": spec.sparsity}),
        metrics=metrics,
        stages=(Stage(name="prune", wall_s=1.5, peak_memory_mb=900.0),),
        environment=Environment(
            versions={"torch": "2"},
            python="3.11",
            platform="Linux-x86_64",
            processor="a chip",
            device="cpu",
            threads=2,
            float32_matmul="default",
            git_commit=None,
            git_dirty=None,
        ),
        finished="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "new", [tmp_path / "published"])


def rewrite(file: Path, edit: Any) -> None:
    """Change a stored record's JSON in place by `edit(fields)`."""
    fields = json.loads(file.read_text())
    edit(fields)
    file.write_text(json.dumps(fields))


# --- records ----------------------------------------------------------------------------------------------


@given(st.floats(allow_nan=False, allow_infinity=False), st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_survive_to_the_last_bit(value: float, items: list[float]) -> None:
    stored = Record.model_validate_json(record(metrics=(metric(value, items=tuple(items)),)).to_json()).metrics[0]
    assert np.array([stored.value, *stored.items]).tobytes() == np.array([value, *items]).tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        metric(value)
    with pytest.raises(ValidationError, match="finite number"):
        metric(items=(1.0, value))
    with pytest.raises(ValueError, match="not JSON compliant"):  # even if validation was gone around
        record(metrics=(Metric.model_construct(**metric().model_dump() | {"value": value}),)).to_json()


@pytest.mark.parametrize("value", ["12.5", None, True, [12.5], {}, object(), 1 + 2j, np.zeros(2)])
def test_unknown_types_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="valid number"):
        metric(value)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        metric(colour="blue")
    with pytest.raises(ValidationError, match="frozen"):
        metric().value = 3.0  # type: ignore[misc]


def test_a_metric_is_found_by_name_and_data_set() -> None:
    both = record(metrics=(metric(), metric(2.5, "nll"), metric(9.5, dataset="code")))
    assert both.metric("perplexity", "code").value == 9.5
    with pytest.raises(StudyError, match=f"record {WANDA.run_id} has no nll on code"):
        both.metric("nll", "code")


# --- the store --------------------------------------------------------------------------------------------


def test_put_and_get(store: Store) -> None:
    assert store.get(WANDA.run_id) is None
    assert store.put(record()) == store.write_dir / f"{WANDA.run_id}.json"
    assert store.get(WANDA.run_id) == record()
    assert store.scan() == ([record()], [])


def test_published_records_are_read_and_never_written(store: Store, tmp_path: Path) -> None:
    Store(tmp_path / "published").put(record())
    assert store.get(WANDA.run_id) == record()
    store.put(record(DENSE))
    assert [path.name for path in (tmp_path / "published").glob("*.json")] == [f"{WANDA.run_id}.json"]
    assert [found.run_id for found in store.scan()[0]] == sorted([WANDA.run_id, DENSE.run_id])


def test_the_default_store_reads_published_records_and_writes_elsewhere(own_cache: Path) -> None:
    store = Store.default()
    assert paths.results_dir() in store.read_dirs and store.write_dir == paths.records_dir()
    assert own_cache in store.write_dir.parents and paths.results_dir() not in store.write_dir.parents


def test_a_record_of_both_folders_is_listed_once(store: Store, tmp_path: Path) -> None:
    store.put(record())
    Store(tmp_path / "published").put(record())
    assert store.scan() == ([record()], [])


def test_a_failing_writer_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, text: str, encoding: str) -> None:
        with path.open("w") as stream:
            stream.write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="No space left"):
            store.put(record())
    assert list(store.write_dir.iterdir()) == []
    assert store.get(WANDA.run_id) is None
    store.put(record())
    assert store.get(WANDA.run_id) == record()


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_read(store: Store, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(record().to_json())
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom calib_study.records import Record, Store\n"
        "def half(path, text, encoding):\n"
        "    with path.open('w') as stream:\n        stream.write(text[:len(text) // 2])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "record = Record.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "Path.write_text = half\nStore(Path(sys.argv[2])).put(record)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "record.json", store.write_dir], timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = list(store.write_dir.iterdir())
    assert len(left) == 1 and 0 < left[0].stat().st_size < len(record().to_json())
    assert store.get(WANDA.run_id) is None
    assert store.scan() == ([], [])
    store.put(record())
    assert store.scan() == ([record()], [])


def test_a_write_folder_that_cannot_be_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Store(tmp_path / "file" / "below").put(record())
    with pytest.raises(InputError, match="cannot write"):
        Store(tmp_path / "file" / "below").claim(WANDA.run_id)


def test_a_claim_excludes_others_until_it_is_released(store: Store) -> None:
    with store.claim(WANDA.run_id):
        with pytest.raises(Timeout):
            store.claim(WANDA.run_id).acquire()
        with store.claim(DENSE.run_id):
            pass
    with store.claim(WANDA.run_id):
        pass
    assert store.scan() == ([], [])


# Ways in which WANDA's file can be bad, and what is said.
DAMAGE = {
    "truncated": (lambda file: file.write_text(file.read_text()[:500]), "not JSON; perhaps the file is truncated"),
    "empty": (lambda file: file.write_text(""), "not JSON; perhaps the file is truncated"),
    "binary": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "cannot be read"),
    "foreign": (lambda file: file.write_text('{"name": "somebody else\'s"}'), "not a record of this study"),
    "a list": (lambda file: file.write_text("[1, 2]"), "not a record of this study"),
    "renamed": (lambda file: file.write_text(record(DENSE).to_json()), f"has run_id {DENSE.run_id}; it was changed or"),
    "newer": (lambda file: rewrite(file, lambda f: f.update(schema_version=2)), r"another version .*\(schema 2\)"),
    "seed edited": (lambda file: rewrite(file, lambda f: f["spec"].update(seed=4)), "it was changed or renamed"),
    "sparsity edited": (lambda file: rewrite(file, lambda f: f["spec"].update(sparsity=0.6)), "it was changed"),
    "source edited": (
        lambda file: rewrite(file, lambda f: f["spec"]["calibration"].update(source="code")),
        "it was changed or renamed",
    ),
    "method unknown": (lambda file: rewrite(file, lambda f: f["spec"].update(method="wnda")), "Did you mean 'wanda'"),
    "field unknown": (lambda file: rewrite(file, lambda f: f.update(mood="good")), "mood = 'good': Extra inputs"),
    "field missing": (lambda file: rewrite(file, lambda f: f.pop("metrics")), "metrics: Field required"),
    "text for a number": (
        lambda file: rewrite(file, lambda f: f["metrics"][0].update(value="12.5")),
        r"metrics\.0\.value = '12\.5': Input should be a valid number",
    ),
    "NaN": (
        lambda file: rewrite(file, lambda f: f["metrics"][0].update(value=float("nan"))),
        r"metrics\.0\.value = nan: Input should be a finite number",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_reported_and_the_store_survives(kind: str, store: Store) -> None:
    damage, message = DAMAGE[kind]
    file = store.put(record())
    store.put(record(DENSE))
    damage(file)
    with pytest.raises(StudyError, match=message) as raised:
        store.get(WANDA.run_id)
    assert str(raised.value).startswith(file.name) and f"remove {file}" in str(raised.value)
    found, problems = store.scan()
    assert found == [record(DENSE)]
    assert len(problems) == 1 and str(file.parent) in problems[0] and file.name in problems[0]
    assert store.get(DENSE.run_id) == record(DENSE)


def test_other_files_beside_the_records_are_no_matter(store: Store) -> None:
    store.put(record())
    (store.write_dir / "README.md").write_text("notes")
    (store.write_dir / ".hidden.json.part").write_text("{")
    assert store.scan() == ([record()], [])


def test_records_written_before_a_field_was_added_are_still_read(store: Store) -> None:
    file = store.put(record())
    rewrite(file, lambda fields: fields["spec"]["evaluation"].pop("source_hashes"))
    assert read_record(file) == record()


# --- the table --------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_metric() -> None:
    frame = to_frame(
        [record(metrics=(metric(), metric(2.5, "nll", unit="nats/token", items=(2.0, 3.0)))), record(DENSE)]
    )
    assert (
        list(frame.columns)
        == (
            "run_id model method sparsity pattern schedule allocation options "
            "source policy n_samples seq_len min_tokens seed dtype achieved_sparsity "
            "metric dataset value unit higher_is_better n stderr"
        ).split()
    )
    assert frame["metric"].tolist() == ["perplexity", "nll", "perplexity"]
    assert frame["value"].tolist() == [12.5, 2.5, 12.5]
    first = frame.iloc[0]
    assert (first["source"], first["n_samples"], first["seq_len"], first["seed"]) == ("c4", 32, 256, 3)
    assert frame.iloc[2][["source", "policy", "n_samples", "seq_len"]].isna().all()
    assert frame["run_id"].tolist() == [WANDA.run_id, WANDA.run_id, DENSE.run_id]


def test_the_table_tells_schedule_allocation_and_options() -> None:
    common = {"model": "smollm2-135m", "sparsity": 0.5, "source": "c4"}
    specs = [
        make_spec(method="wanda", schedule="dense", **common),
        make_spec(method="wanda", allocation=Owl(), **common),
        make_spec(method="magnitude", allocation=Owl(lam=0.05), **common),
        make_spec(method="sparsegpt", options={"damping": 0.1, "block_size": 128}, **common),
        make_spec(method="wanda", pattern="4:8", allocation=Owl(lam=2.0, outlier_multiple=6), **common),
    ]
    frame = to_frame([record(spec) for spec in specs])
    assert frame["method"].tolist() == ["wanda", "wanda+owl", "magnitude+owl", "sparsegpt", "wanda+owl"]
    assert frame["schedule"].tolist() == ["dense", "block", "block", "block", "block"]
    assert frame["allocation"].tolist() == ["uniform", "owl", "owl", "uniform", "owl"]
    # what is usual is not said: 0.08 and 5, for N:M 2 and 5
    assert frame["options"].tolist() == ["", "", "lam=0.05", "damping=0.1", "outlier_multiple=6.0"]
    assert frame["source"].tolist() == ["c4"] * 5


def test_a_table_of_nothing_has_no_rows() -> None:
    assert len(to_frame([])) == 0


# --- arrays beside records --------------------------------------------------------------------------------

ARRAYS = {"bits": np.arange(5, dtype=np.uint8)}


def test_arrays_are_kept_beside_their_record(store: Store) -> None:
    store.put(record(), ARRAYS)
    found = store.get(WANDA.run_id)
    assert found is not None
    assert list(store.arrays(found)) == ["bits"]
    np.testing.assert_array_equal(store.arrays(found)["bits"], ARRAYS["bits"])
    assert sorted(file.suffix for file in store.write_dir.iterdir()) == [".json", ".npz"]
    assert store.scan()[1] == []


def test_a_record_without_arrays_has_none(store: Store) -> None:
    store.put(record())
    found = store.get(WANDA.run_id)
    assert found is not None
    assert found.arrays_sha256 is None
    assert store.arrays(found) == {}


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_lost_or_changed_arrays_are_reported(store: Store, change: Any) -> None:
    store.put(record(), ARRAYS)
    found = store.get(WANDA.run_id)
    assert found is not None
    change(store.write_dir / f"{WANDA.run_id}.npz")
    with pytest.raises(StudyError, match=rf"{WANDA.run_id}\.npz.*missing or were changed"):
        store.arrays(found)
