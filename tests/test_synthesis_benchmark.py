"""The benchmark of synthesis in miniature: what it compares, and that both sides do the same work."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from calib_study.benchmark_files import read_benchmark

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("own_cache", "settings")]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tiny_files: tuple[Path, Path]) -> ModuleType:
    """The script, on a tiny text."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    monkeypatch.delitem(sys.modules, "synthesis", raising=False)
    import synthesis

    monkeypatch.setattr(synthesis, "SOURCE", str(tiny_files[1]))
    return synthesis


@pytest.fixture
def settings() -> Iterator[None]:
    """What the script sets in its process, put back."""
    products, threads = torch.backends.mkldnn.matmul, torch.get_num_threads()
    before = products.fp32_precision
    yield
    products.fp32_precision = before
    torch.set_num_threads(threads)


def options(tiny_files: tuple[Path, Path], *more: str) -> list[str]:
    sizes = ["--n-texts", "10", "--batch-size", "4", "--new-tokens", "12", "--threads", "1"]
    return ["--model", str(tiny_files[0]), *sizes, *more]


def test_rows_target_and_file(
    benchmark: ModuleType, tiny_files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "synthesis.json"
    assert benchmark.main(options(tiny_files, "--json", str(file), "--repeats", "2")) == 0
    shown = capsys.readouterr().out
    assert "times `generate`; target 3: " in shown
    rows = read_benchmark(file, "synthesis.py").rows
    assert [row["work"] for row in rows] == [
        "generate, default product",
        "generate, chosen product",
        "engine, 4 rows",
        "engine, rows it chooses",
    ]
    assert rows[0]["speedup"] == 1 and all(row["over_floor"] > 1 for row in rows)
    assert all(set(benchmark.COLUMNS) <= set(row) for row in rows)


def test_both_sides_keep_the_same_number_of_tokens(benchmark: ModuleType, tiny_files: tuple[Path, Path]) -> None:
    setup = benchmark.prepared(benchmark.parsed(options(tiny_files, "--end-of-text", "continue")))
    # 10 texts of 12 tokens; `generate` takes batches of 4, 4 and 2 in 12 steps each
    assert benchmark.generated(setup, 4) == (120, 36)
    # All at once: two steps for the prefix after the start token, then 12.
    assert benchmark.engine(setup, None) == (120, 14)
    # Some texts end, but no batch as a whole: `generate` goes on for all of its steps.
    setup = benchmark.prepared(benchmark.parsed(options(tiny_files, "--n-texts", "30", "--new-tokens", "30")))
    kept, steps = benchmark.generated(setup, 10)
    assert 500 < kept < 900 and steps == 90
    kept, steps = benchmark.engine(setup, 10)
    assert 500 < kept < 900 and steps <= 96


def test_times_by_hand(benchmark: ModuleType) -> None:
    # 3 steps of 2 s to read are 6 s, 10 tokens of 1 s to multiply are 10 s: the greater counts.
    row = benchmark.measured("work", lambda: (10, 3), 2.0, 1.0)
    assert (row["floor_s"], row["tokens"], row["steps"]) == (10.0, 10, 3)
    rows = [{**row, "work": benchmark.OURS, "speedup": 2.5}]
    assert "2.50 times `generate`; target 3: NOT MET" in benchmark.table(rows)
