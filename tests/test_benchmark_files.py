"""The file of a benchmark: written whole, read back, and gone on with only where nothing that counts has changed."""

import os
from pathlib import Path
from typing import Any

import pytest

from calib_study import benchmark_files
from calib_study.benchmark_files import Benchmark, begun, code_hash, read_benchmark, write_benchmark
from calib_study.errors import InputError

ENVIRONMENT = {"processor": "one", "threads": 1, "git_commit": "a", "git_dirty": False, "code_sha256": "c"}


def benchmark(rows: list[dict[str, Any]], **changed: Any) -> Benchmark:
    settings = {"limit": 40, "limits": {"mmlu": 12}, "rule": None}
    environment = ENVIRONMENT | {name: value for name, value in changed.items() if name in ENVIRONMENT}
    settings |= {name: value for name, value in changed.items() if name not in ENVIRONMENT}
    return Benchmark(settings=settings, environment=environment, rows=rows)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    wanted = benchmark([{"task": "a", "acc": 1 / 3, "acc_norm": None, "met": True}])
    write_benchmark(file, wanted)
    assert read_benchmark(file, "x.py") == wanted
    assert file.read_text().endswith("}\n") and os.listdir(file.parent) == ["results.json"]


def test_a_file_that_cannot_be_written_keeps_what_it_had(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_benchmark(file, benchmark([{"task": "a"}]))
    with pytest.raises(TypeError):
        write_benchmark(file, benchmark([{"task": object()}]))
    assert read_benchmark(file, "x.py").rows == [{"task": "a"}] and os.listdir(tmp_path) == ["results.json"]


def test_without_a_file_a_benchmark_begins_as_it_is(tmp_path: Path) -> None:
    wanted = benchmark([])
    assert begun(tmp_path / "none.json", wanted, "x.py") is wanted


def test_it_goes_on_after_a_commit_and_names_the_first(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_benchmark(file, benchmark([{"task": "a"}]))
    assert begun(file, benchmark([], git_commit="b", git_dirty=True), "x.py") == benchmark([{"task": "a"}])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"limit": 50}, "measured with limit 40, not 50"),
        ({"limits": {}}, r"limits \{'mmlu': 12\}, not \{\}"),
        ({"new": 1}, "with new None, not 1"),
        ({"processor": "two"}, "processor 'one', not 'two'"),
        ({"threads": 2}, "threads 1, not 2"),
        ({"code_sha256": "d"}, "code_sha256 'c', not 'd'"),
    ],
)
def test_rows_of_other_settings_machines_or_code_are_not_mixed(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    file = tmp_path / "results.json"
    write_benchmark(file, benchmark([{"task": "a"}]))
    with pytest.raises(InputError, match=message):
        begun(file, benchmark([], **changed), "x.py")
    assert read_benchmark(file, "x.py") == benchmark([{"task": "a"}])


def test_a_setting_that_is_gone_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_benchmark(file, benchmark([], old=1))
    with pytest.raises(InputError, match="with old 1, not None"):
        begun(file, benchmark([]), "x.py")


def test_another_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(InputError, match=r"is no result of benchmarks/x\.py --json"):
        begun(tmp_path / "results.json", benchmark([]), "x.py")


def test_the_hash_of_code_is_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calib_study").mkdir()
    for name in ("a", "b"):
        (tmp_path / "calib_study" / f"{name}.py").write_text("first\n")
    monkeypatch.setattr(benchmark_files.paths, "root", lambda: tmp_path)
    before = code_hash(["a", "b"])
    assert before == code_hash(["b", "a"]) != code_hash(["a"])
    (tmp_path / "calib_study" / "b.py").write_text("second\n")
    assert code_hash(["a", "b"]) != before and len(before) == 64
