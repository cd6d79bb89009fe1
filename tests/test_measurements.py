"""Requests of measurements, and their store: hashed, whole or not at all, damage reported."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from test_records import metric, record

from calib_study import paths
from calib_study.cli import app
from calib_study.errors import InputError, StudyError
from calib_study.measurements import (
    BlockSwap,
    Draw,
    LayerProfile,
    Measurement,
    MeasurementStore,
    Request,
    checked_measurement,
    read_measurement,
)
from calib_study.methods import METHODS, method_named
from calib_study.specs import Calibration, Evaluation, make_spec

C4, CODE = (Draw(text=Calibration(source=name, n_samples=32, seq_len=256), seed=0) for name in ("c4", "code"))
ALIKE: dict[str, Any] = {"model": "smollm2-135m", "method": "wanda", "sparsity": 0.5, "evaluation": Evaluation()}
PROFILE = LayerProfile(draw=C4, **ALIKE)
SWAP = BlockSwap(base=C4, other=CODE, **ALIKE)


def measurement(request: Any = PROFILE) -> Measurement:
    return Measurement(
        measurement_id=request.measurement_id,
        request=request,
        model_sha256="cd" * 32,
        metrics=(metric(0.1 + 0.2, "reconstruction_error"),),
        stages=record().stages,
        environment=record().environment,
        finished="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def store(tmp_path: Path) -> MeasurementStore:
    return MeasurementStore(tmp_path / "new", [tmp_path / "published"])


# --- requests ---------------------------------------------------------------------------------------------


def test_equal_requests_have_equal_ids_and_others_have_others() -> None:
    assert PROFILE.measurement_id == LayerProfile(draw=C4, **ALIKE).measurement_id
    others: list[Request] = [
        PROFILE,
        SWAP,
        LayerProfile(draw=CODE, **ALIKE),
        LayerProfile(draw=C4.model_copy(update={"seed": 1}), **ALIKE),
        LayerProfile(draw=C4, n_positions=8, **ALIKE),
        LayerProfile(draw=C4, stride=2, **ALIKE),
        LayerProfile(draw=C4, **ALIKE | {"sparsity": 0.6}),
        LayerProfile(draw=C4, **ALIKE | {"evaluation": Evaluation(n_windows=2)}),
        BlockSwap(base=CODE, other=C4, **ALIKE),
        BlockSwap(base=None, other=C4, **ALIKE),
        BlockSwap(base=C4, other=None, **ALIKE),
    ]
    assert len({one.measurement_id for one in others}) == len(others)


def test_ids_do_not_change() -> None:
    """Stored files are named by them."""
    assert (PROFILE.measurement_id, SWAP.measurement_id) == ("ba7e940ecae350db", "eee8ff47edd35b03")


def test_runs_that_a_request_rests_on() -> None:
    common = {"model": "smollm2-135m", "sparsity": 0.5, "schedule": "dense"}
    wanda, other = (make_spec(method="wanda", source=name, **common) for name in ("c4", "code"))
    assert PROFILE.specs() == [wanda]
    assert SWAP.specs() == [wanda, other]
    dense = make_spec(model="smollm2-135m", method="dense", sparsity=0)
    assert BlockSwap(base=None, other=CODE, **ALIKE).specs() == [dense, other]


def test_a_method_of_the_users_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement does not hold the hash of its code."""
    own = replace(method_named("wanda"), name="mine", code_sha256="0" * 64)
    monkeypatch.setitem(METHODS, "mine", own)
    with pytest.raises(InputError, match="method 'mine' is your own"):
        checked_measurement(LayerProfile, draw=C4, **ALIKE | {"method": "mine"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "wnda"}, "Did you mean 'wanda'"),
        ({"method": "magnitude"}, "'magnitude' reads no text"),
        ({"pattern": "2:4", "sparsity": 0.6}, "means sparsity 0.5"),
        ({"n_positions": 9}, "multiple of 8"),
        ({"colour": "blue"}, "Extra inputs"),
        ({"schedule": "block"}, "Input should be 'dense'"),
    ],
)
def test_bad_requests_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_measurement(LayerProfile, draw=C4, **ALIKE | changes)


def test_a_swap_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="without one nothing is pruned"):
        checked_measurement(BlockSwap, base=None, other=None, **ALIKE)


def test_a_request_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PROFILE.sparsity = 0.1  # type: ignore[misc]


# --- the store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [PROFILE, SWAP], ids=["profile", "swap"])
def test_put_and_get(request_: Any, store: MeasurementStore) -> None:
    store.put(measurement(request_), {"norms": np.arange(5.0)})
    found = store.get(request_.measurement_id)
    assert found is not None and found.request == request_ and type(found.request) is type(request_)
    assert found.metrics == measurement().metrics
    np.testing.assert_array_equal(store.arrays(found)["norms"], np.arange(5.0))
    assert store.scan() == ([found], [])


def test_the_default_store_keeps_apart_from_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALIB_STUDY_RECORDS", str(tmp_path))
    store = MeasurementStore.default()
    assert store.write_dir == tmp_path / "measurements"
    assert paths.published_measurements_dir() in store.read_dirs


def test_measurements_are_listed(own_cache: Path) -> None:
    store = MeasurementStore.default()
    store.put(measurement(SWAP))
    store.put(measurement()).write_text("{")
    shown = CliRunner().invoke(app, ["list", "measurements"])
    assert shown.exit_code == 0
    said = f"{SWAP.measurement_id}  smollm2-135m: one block by code, seed 0; the rest by c4, seed 0"
    assert said in shown.output and f"not readable: {store.write_dir}: {PROFILE.measurement_id}.json" in shown.output


Damage = Callable[[Path], Any]


def edited(**changes: Any) -> Damage:
    def edit(file: Path) -> None:
        fields = json.loads(file.read_text())
        fields["request"] |= changes
        file.write_text(json.dumps(fields))

    return edit


DAMAGE: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda file: file.write_text(file.read_text()[:300]), "not JSON; perhaps the file is truncated"),
    "binary": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "foreign": (lambda file: file.write_text('{"name": "mine"}'), "not a measurement of this study"),
    "a record": (lambda file: file.write_text(record().to_json()), "not a measurement of this study"),
    "renamed": (lambda file: file.write_text(measurement(SWAP).to_json()), "it was changed or renamed"),
    "edited": (edited(sparsity=0.6), "it was changed or renamed"),
    "of no kind": (edited(kind="guess"), "not a measurement of this study"),
    "newer": (
        lambda file: file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2')),
        r"another version .*\(schema 2\)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_reported_and_the_store_survives(kind: str, store: MeasurementStore) -> None:
    damage, message = DAMAGE[kind]
    file = store.put(measurement())
    store.put(measurement(SWAP))
    damage(file)
    with pytest.raises(StudyError, match=message) as raised:
        store.get(PROFILE.measurement_id)
    assert str(raised.value).startswith(file.name)
    assert f"To compute this measurement again, remove {file}" in str(raised.value)
    found, problems = store.scan()
    assert found == [measurement(SWAP)]
    assert len(problems) == 1 and file.name in problems[0]


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_lost_or_changed_arrays_are_reported(store: MeasurementStore, change: Damage) -> None:
    file = store.put(measurement(), {"norms": np.arange(5.0)})
    change(file.with_suffix(".npz"))
    with pytest.raises(StudyError, match=r"the arrays of measurement \w+ are missing or were changed"):
        store.arrays(read_measurement(file))
