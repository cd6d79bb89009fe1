"""Running grids: once each, whatever is killed or runs beside; and a user's own model and text from end to end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny_study
from safetensors.numpy import load_file, save_file
from tiny_study import tiny_grid, tiny_model_directory, tiny_source, tiny_spec

from calib_study import study
from calib_study.errors import InputError, NumericalError
from calib_study.model_files import resolve_model
from calib_study.records import Record, Store, to_frame
from calib_study.specs import RunSpec
from calib_study.study import Laboratory, run_grid

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("own_cache")]
Files = tuple[Path, Path]


def outcome(record: Record) -> dict[str, object]:
    """Return everything in a record that a repetition must give again, exactly."""
    return record.model_dump(include={"run_id", "spec", "model_sha256", "calibration", "sparsity", "metrics"})


def run_alone(specs: list[RunSpec], model: Path, folder: Path) -> list[Record]:
    return run_grid(specs, model=str(model), store=Store(folder), progress=False)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run_ids that are computed in this process, as they are."""
    seen: list[str] = []
    compute = Laboratory.run

    def run(lab: Laboratory, spec: RunSpec, *, progress: bool = False) -> Record:
        seen.append(spec.run_id)
        return compute(lab, spec, progress=progress)

    monkeypatch.setattr(Laboratory, "run", run)
    return seen


# --- one process ------------------------------------------------------------------------------------------


def test_own_model_and_text_from_end_to_end(tiny_files: Files, tmp_path: Path, computed: list[str]) -> None:
    model, source = tiny_files
    grid = tiny_grid(model, source)
    records = run_alone(grid, model, tmp_path)
    assert [record.spec for record in records] == grid
    assert computed == [spec.run_id for spec in grid]
    ref = resolve_model(str(model))
    for record in records:
        assert (record.spec.model, record.spec.model_hash) == ("tiny", ref.content_hash())
        assert record.sparsity.overall == (0 if record.spec.method == "dense" else 0.5)
        assert [(m.name, m.dataset, m.n) for m in record.metrics] == [
            ("perplexity", str(source), 4 * 15),
            ("nll", str(source), 4 * 15),
        ]
        perplexity, nll = record.metrics
        assert perplexity.value == pytest.approx(np.exp(nll.value), rel=1e-12)
        assert nll.value == pytest.approx(np.mean(nll.items), rel=1e-12) and len(nll.items) == 4
        # standard error of the mean over 4 windows, and of its exponential to first order
        assert nll.stderr == pytest.approx(np.std(nll.items, ddof=1) / 2, rel=1e-12)
        assert perplexity.stderr == pytest.approx(perplexity.value * nll.stderr, rel=1e-12)
        assert (record.calibration is None) == (record.spec.method != "wanda")
    wanda = [record for record in records if record.calibration]
    assert all(record.calibration and record.calibration.n_tokens == 4 * 16 for record in wanda)
    assert len({record.calibration.tokens_sha256 for record in wanda if record.calibration}) == 3
    values = to_frame(records).query("metric == 'perplexity'")["value"]
    assert values.nunique() == len(grid)  # every run changed the model in its own way


def test_runs_do_not_affect_each_other(tiny_files: Files, tmp_path: Path) -> None:
    model, source = tiny_files
    grid = tiny_grid(model, source)
    together = run_alone(grid, model, tmp_path / "a")
    backwards = run_alone(grid[::-1], model, tmp_path / "b")[::-1]
    alone = run_alone(grid[-2:-1], model, tmp_path / "c")
    assert [outcome(record) for record in together] == [outcome(record) for record in backwards]
    assert outcome(together[-2]) == outcome(alone[0])


def test_what_is_stored_is_not_computed_and_no_model_is_loaded(
    tiny_files: Files, tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = tiny_files
    grid = tiny_grid(model, source, n_seeds=1)
    first = run_alone(grid, model, tmp_path)
    computed.clear()
    monkeypatch.setattr(study, "load_model", None)
    assert run_alone(grid, model, tmp_path) == first
    assert computed == []


def test_order_is_kept_and_repeats_are_run_once(tiny_files: Files, tmp_path: Path, computed: list[str]) -> None:
    model, source = tiny_files
    dense, magnitude = tiny_spec(model, source, "dense"), tiny_spec(model, source, "magnitude")
    records = run_alone([magnitude, dense, magnitude], model, tmp_path)
    assert [record.spec for record in records] == [magnitude, dense, magnitude]
    assert computed == [magnitude.run_id, dense.run_id]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16"}, "one grid, one model and dtype; got tiny in bfloat16, tiny in float32"),
        ({"model": "other"}, "one grid, one model and dtype; got other in float32, tiny in float32"),
        ({"model_hash": None}, "specified for model 'tiny' with content hash none, but 'tiny' with"),
        ({"model_hash": "ab" * 32}, "content hash abababababab…, but 'tiny' with .* Has the model changed"),
    ],
)
def test_a_grid_is_of_the_one_model_given(
    tiny_files: Files, tmp_path: Path, computed: list[str], change: dict[str, str], message: str
) -> None:
    model, source = tiny_files
    good = tiny_spec(model, source)
    with pytest.raises(InputError, match=message):
        run_alone([good, good.model_copy(update=change)], model, tmp_path)
    assert computed == [] and list(tmp_path.glob("*.json")) == []


def test_text_that_changed_since_is_noticed(tiny_files: Files, tmp_path: Path, computed: list[str]) -> None:
    model, _ = tiny_files
    source = tiny_source(tmp_path / "mine.txt")
    specs = [tiny_spec(model, source), tiny_spec(model, source, "dense")]
    tiny_source(source, seed=1)
    for spec in specs:  # as calibration text, and as evaluation text alone
        with pytest.raises(InputError, match=r"mine.txt': its documents have the hash .* Has the text changed"):
            run_alone([spec], model, tmp_path / "store")
    assert tiny_spec(model, source, "dense").run_id != specs[1].run_id
    assert computed == []


def test_weights_that_changed_make_other_runs(tiny_files: Files, tmp_path: Path) -> None:
    _, source = tiny_files
    model = tiny_model_directory(tmp_path / "tiny")
    spec = tiny_spec(model, source, "dense")
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, model / "model.safetensors", metadata={"format": "pt"})
    assert tiny_spec(model, source, "dense").run_id != spec.run_id
    with pytest.raises(InputError, match="Has the model changed"):
        run_alone([spec], model, tmp_path / "store")


def test_windows_longer_than_the_context_stop_before_any_run(
    tiny_files: Files, tmp_path: Path, computed: list[str]
) -> None:
    model, source = tiny_files
    spec = tiny_spec(model, source)
    assert spec.calibration is not None
    long = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"seq_len": 65})})
    with pytest.raises(InputError, match="seq_len 65 is longer than the context of tiny: 64 tokens"):
        run_alone([spec, long], model, tmp_path)
    assert computed == []


def test_a_laboratory_refuses_runs_of_another_model(tiny_files: Files) -> None:
    model, source = tiny_files
    lab = Laboratory(resolve_model(str(model)), dtype="float32", device="cpu")
    for change in ({"model": "other"}, {"dtype": "bfloat16"}):
        with pytest.raises(InputError, match="but tiny in float32 is loaded"):
            lab.run(tiny_spec(model, source).model_copy(update=change))


def test_saved_tokens_need_their_file(tiny_files: Files) -> None:
    model, source = tiny_files
    lab = Laboratory(resolve_model(str(model)), dtype="float32", device="cpu")
    spec = tiny_spec(model, source)
    assert spec.calibration is not None
    saved = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"tokens_sha256": "ab" * 32})})
    with pytest.raises(InputError, match="calibrated on saved tokens abababababab…: give their file"):
        lab.run(saved)


def test_a_failed_run_is_named_and_what_was_finished_stays(
    tiny_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = tiny_files
    grid = tiny_grid(model, source, n_seeds=1)
    score = study.score
    calls = iter(range(100))

    def fails_third(*arguments: object) -> object:
        if next(calls) == 2:
            raise NumericalError("not finite")
        return score(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(study, "score", fails_third)
        with pytest.raises(NumericalError, match=r"wanda 0\.5 on own\.txt, seed 0, on .*own\.txt: not finite"):
            run_alone(grid, model, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.json")} == {spec.run_id for spec in grid[:2]}
    assert len(run_alone(grid, model, tmp_path)) == len(grid)  # no claim was left behind


# --- claims -----------------------------------------------------------------------------------------------


@contextmanager
def held_by_another(store: Store, spec: RunSpec, until: Callable[[], None]) -> Iterator[None]:
    """Let another thread hold the claim of a run, as another process would, while `until` lasts."""
    held = threading.Event()

    def hold() -> None:
        with store.claim(spec.run_id):
            held.set()
            until()

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    yield
    other.join()


def test_a_run_that_another_holds_is_waited_for(tiny_files: Files, tmp_path: Path, computed: list[str]) -> None:
    model, source = tiny_files
    mine, theirs = tiny_spec(model, source, "dense"), tiny_spec(model, source, "magnitude")
    [record] = run_alone([theirs], model, tmp_path / "elsewhere")
    computed.clear()
    store = Store(tmp_path / "shared")

    def finish_after_the_other_run() -> None:
        for _ in range(1000):
            if store.get(mine.run_id) is not None:
                break
            time.sleep(0.01)
        store.put(record)

    with held_by_another(store, theirs, finish_after_the_other_run):
        found = run_alone([theirs, mine], model, tmp_path / "shared")
    assert found[0] == record and computed == [mine.run_id]


def test_a_claim_that_is_let_go_without_a_record_is_taken_over(
    tiny_files: Files, tmp_path: Path, computed: list[str]
) -> None:
    model, source = tiny_files
    spec = tiny_spec(model, source, "dense")
    with held_by_another(Store(tmp_path), spec, lambda: time.sleep(0.5)):
        assert len(run_alone([spec], model, tmp_path)) == 1
    assert computed == [spec.run_id]


# --- several processes ------------------------------------------------------------------------------------


def start(files: Files, store: Path, log: Path, processes: int, pause: float) -> subprocess.Popen[bytes]:
    """Start a process that runs the grid of `tiny_study.main`; `log` gets the run_ids it computes."""
    log.mkdir(exist_ok=True)
    arguments = [*files, store, log, processes, pause]
    return subprocess.Popen([sys.executable, tiny_study.__file__, *map(str, arguments)])


def logged(log: Path) -> list[list[str]]:
    return [file.read_text().split() for file in sorted(log.glob("*.runs"))]


def test_two_processes_share_a_grid_and_compute_each_run_once(tiny_files: Files, tmp_path: Path) -> None:
    store = tmp_path / "store"
    pair = [start(tiny_files, store, tmp_path / "log", processes=2, pause=0.2) for _ in range(2)]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    grid = tiny_grid(*tiny_files)
    runs = logged(tmp_path / "log")
    assert len(runs) == 2  # both had a share
    assert sorted(runs[0] + runs[1]) == sorted(spec.run_id for spec in grid)
    records, problems = Store(store).scan()
    assert problems == [] and {record.run_id for record in records} == {spec.run_id for spec in grid}


def test_kill_9_loses_only_what_was_being_computed(tiny_files: Files, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = start(tiny_files, store, tmp_path / "first", processes=1, pause=0.3)
    while len(list(store.glob("*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    finished = {file.stem: file.stat().st_mtime_ns for file in store.glob("*.json")}
    grid = tiny_grid(*tiny_files)
    assert 3 <= len(finished) < len(grid)
    assert Store(store).scan()[1] == []

    assert start(tiny_files, store, tmp_path / "again", processes=1, pause=0).wait(timeout=120) == 0
    [computed] = logged(tmp_path / "again")
    assert sorted(computed) == sorted({spec.run_id for spec in grid} - set(finished))
    assert {name: (store / f"{name}.json").stat().st_mtime_ns for name in finished} == finished

    resumed = [Store(store).get(spec.run_id) for spec in grid]
    uninterrupted = run_alone(grid, tiny_files[0], tmp_path / "other")
    for one, other in zip(resumed, uninterrupted, strict=True):
        assert one is not None and outcome(one) == outcome(other)
