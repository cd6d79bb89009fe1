"""The benchmark of the adapter beside the stock class: its rows by hand, and how its file is gone on with."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from calib_study.benchmark_files import read_benchmark
from calib_study.errors import InputError, NumericalError
from calib_study.harness_tables import HARNESS_COLUMNS, harness_table
from calib_study.task_data import task_names
from calib_study.task_items import TaskMetric, TaskResult

OPTIONS = ["--tasks", "mmlu", "copa", "--limit", "3", "--limits", "mmlu=2"]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, and what it sets in its process put back."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import harness as script

    products, threads = torch.backends.mkldnn.matmul, torch.get_num_threads()
    before = products.fp32_precision
    yield script
    products.fp32_precision = before
    torch.set_num_threads(threads)


def scored(task: str = "copa", n: int = 3, *, norm: bool = True) -> TaskResult:
    """Return results on n items with two answers each, but the last with one; all are right."""
    loglikelihoods = np.tile(np.array([-1.0, -2.0], np.float32), (n, 1))
    loglikelihoods[-1, 1] = np.nan
    metrics = [TaskMetric("acc", 1.0, None, n, True)] + [TaskMetric("acc_norm", 0.75, None, n, True)] * norm
    zeros, lengths = np.zeros(n, np.int64), np.ones((n, 2), np.int64)
    return TaskResult(
        task=task,
        version="1",
        split="validation",
        n_total=100,
        num_fewshot=0,
        limit=n,
        seed=0,
        metrics={metric.name: metric for metric in metrics},
        primary="acc",
        parts=(task,),
        part_of=zeros,
        item_ids=np.arange(n),
        gold=zeros,
        chosen=zeros,
        correct=np.ones(n, bool),
        correct_norm=np.ones(n, bool) if norm else None,
        loglikelihoods=loglikelihoods,
        n_chars=lengths,
        n_bytes=lengths,
    )


@pytest.fixture
def fakes(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script with results made up: the tasks' data are not read and no model is loaded. What was asked is kept."""
    asked: dict[str, Any] = {"rows": [], "loaded": 0, "fails_at": None}

    def loaded(_: argparse.Namespace) -> list[None]:
        asked["loaded"] += 1
        return [None, None]

    def measured(_: Any, task: str, shots: int, options: argparse.Namespace) -> list[Any]:
        if asked["fails_at"] == (task, shots):
            raise NumericalError("the machine was switched off")
        limit = harness.limit_of(task, options)
        asked["rows"].append((task, shots, limit))
        return [harness.Measured(scored(task, limit), seconds, 0.01) for seconds in (3.0, 2.0)]

    monkeypatch.setattr(harness, "check_tasks", lambda *_: None)
    monkeypatch.setattr(harness, "loaded", loaded)
    monkeypatch.setattr(harness, "measured", measured)
    return asked


# --- rows -------------------------------------------------------------------------------------------------


def test_a_row_by_hand(harness: ModuleType) -> None:
    one = scored("piqa")
    assert one.correct_norm is not None
    shifted = one.loglikelihoods + np.array([0.25, -0.5], np.float32)  # NaN stays NaN
    # the first item differs in acc, the first two in acc_norm: two items
    other = replace(
        one,
        loglikelihoods=shifted,
        correct=np.array([False, True, True]),
        correct_norm=np.array([False, False, True]),
        metrics={"acc": replace(one.metrics["acc"], value=2 / 3)},
    )
    row = harness.row_of("piqa", 0, harness.Measured(one, 9.0, 0.1), harness.Measured(other, 6.0, 0.2))
    assert row == {
        "task": "piqa",
        "shots": 0,
        "items": 3,
        "n_total": 100,
        "acc_stock": 1.0,
        "acc_norm_stock": 0.75,
        "perplexity_stock": None,
        "acc_adapter": 2 / 3,
        "acc_norm_adapter": None,
        "perplexity_adapter": None,
        "items_that_differ": 2,
        "max_abs_difference": 0.5,
        "stock_s": 9.0,
        "adapter_s": 6.0,
        "ratio": 1.5,
        "target": 1.8,
        "met": False,
        "overhead_s": 0.2,
    }
    assert set(row) == set(HARNESS_COLUMNS)
    assert json.loads(json.dumps(row)) == row
    line = harness.line(row)
    assert "| piqa | 0 | 3 of 100 | 1.0000 | 0.6667 | 2 items differ | 5.0e-01 |" in line
    assert line.endswith("| 1.50 | 1.8: NOT MET | 0.20 |")
    assert harness.header("cpu").splitlines()[0].count("|") == line.count("|")


def test_a_task_without_acc_norm_and_a_ratio_at_its_target(harness: ModuleType) -> None:
    one = harness.Measured(scored("boolq", norm=False), 4.0, 1.5)
    row = harness.row_of("boolq", 0, one, one)
    assert (row["acc_norm_stock"], row["items_that_differ"], row["max_abs_difference"]) == (None, 0, 0.0)
    assert (row["ratio"], row["target"], row["met"]) == (1.0, 1.0, True)
    line = harness.line(row)
    assert "| equal |" in line and line.endswith("| 1.0: met | 1.50 (NOT below 1) |")


def test_the_higher_target_is_for_tasks_of_the_catalogue(harness: ModuleType) -> None:
    assert set(harness.SHARING) < set(task_names())


def test_a_models_time_and_the_overhead_add_up_to_the_evaluation(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks of the first and second round of two models: begin of the evaluation and of the answers, ends of both."""
    ticks = iter([0, 1, 6, 8, 10, 11, 13, 13, 20, 21, 25, 28, 30, 32, 33, 34])
    asked = [Instance("loglikelihood", {}, ("a", " b"), 0)]

    class Plain:
        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool) -> list[tuple[float, bool]]:
            assert requests is asked and disable_tqdm
            return [(-1.0, True)]

    def evaluation(model: Any, *_: Any, **__: Any) -> list[TaskResult]:
        assert model.loglikelihood(asked) == [(-1.0, True)]
        return [scored()]

    monkeypatch.setattr(harness.time, "process_time", lambda: next(ticks))
    monkeypatch.setattr(harness, "prepare", lambda *_: None)
    monkeypatch.setattr(harness, "run_tasks", evaluation)
    options = harness.parsed(["--repeats", "2"])
    found = harness.measured([Plain(), Plain()], "copa", 0, options)
    # first model: answers 5 and 4 s, overhead 8 - 5 = 3 and 8 - 4 = 4; second: 2 and 1 s, 3 - 2 = 1 and 4 - 1 = 3
    assert [(one.seconds, one.overhead) for one in found] == [(4, 3), (1, 1)]


# --- options ----------------------------------------------------------------------------------------------


def test_a_task_can_have_a_limit_of_its_own(harness: ModuleType) -> None:
    options = harness.parsed(["--limit", "40", "--limits", "mmlu=12", "copa=7"])
    assert [harness.limit_of(task, options) for task in ("mmlu", "copa", "piqa")] == [12, 7, 40]


@pytest.mark.parametrize("text", ["mmlu", "mmlu=", "=3", "mmlu=0", "mmlu=-1", "mmlu=a"])
def test_a_limit_is_a_task_and_a_number(harness: ModuleType, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        harness.parsed(["--limits", text])
    assert f"{text!r} is not TASK=N, such as mmlu=20" in capsys.readouterr().err


def test_a_limit_is_of_a_task_that_is_measured(harness: ModuleType, fakes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--limits names mlmu, not measured here: copa, mmlu"):
        harness.main(["--tasks", "copa", "mmlu", "--limits", "mlmu=3"])
    assert fakes["loaded"] == 0


# --- the file ---------------------------------------------------------------------------------------------


def test_every_row_is_kept_as_soon_as_it_is_measured(
    harness: ModuleType, fakes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "harness.json"
    fakes["fails_at"] = ("copa", 0)
    with pytest.raises(NumericalError):
        harness.main([*OPTIONS, "--json", str(file)])
    assert fakes["rows"] == [("mmlu", 5, 2), ("mmlu", 0, 2)]
    first = read_benchmark(file, "harness.py")
    assert [(row["task"], row["shots"], row["items"]) for row in first.rows] == fakes["rows"]

    fakes |= {"rows": [], "fails_at": None}
    capsys.readouterr()
    assert harness.main([*OPTIONS, "--json", str(file)]) == 0
    assert fakes["rows"] == [("copa", 0, 3)] and fakes["loaded"] == 2
    both = read_benchmark(file, "harness.py")
    assert both.rows[:2] == first.rows and both.rows[2]["task"] == "copa"
    assert both.settings == first.settings and both.environment == first.environment
    shown = capsys.readouterr()
    assert [line[:8] for line in shown.out.splitlines()[-3:]] == ["| mmlu |", "| mmlu |", "| copa |"]
    assert "measuring" in shown.err


def test_a_whole_file_needs_no_model(harness: ModuleType, fakes: dict[str, Any], tmp_path: Path) -> None:
    options = [*OPTIONS, "--json", str(tmp_path / "harness.json")]
    harness.main(options)
    content = (tmp_path / "harness.json").read_bytes()
    assert harness.main(options) == 0
    assert fakes["loaded"] == 1 and (tmp_path / "harness.json").read_bytes() == content


def test_other_tasks_are_added_in_the_catalogues_order(
    harness: ModuleType, fakes: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "harness.json"
    for tasks in (["copa"], ["lambada_openai", "boolq"]):
        harness.main(["--tasks", *tasks, "--limit", "3", "--json", str(file)])
    rows = read_benchmark(file, "harness.py").rows
    assert [row["task"] for row in rows] == ["boolq", "lambada_openai", "copa"]
    assert len(fakes["rows"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--limit", "4"], "limit 3, not 4"),
        (["--limits", "mmlu=4"], r"limits \{'mmlu': 2\}, not \{'mmlu': 4\}"),
        (["--seed", "1"], "seed 0, not 1"),
        (["--dtype", "bfloat16"], "dtype 'float32', not 'bfloat16'"),
        (["--batch-size", "4"], "batch_size 16, not 4"),
        (["--repeats", "2"], "repeats 1, not 2"),
    ],
)
def test_rows_of_other_settings_are_not_mixed(
    harness: ModuleType, fakes: dict[str, Any], tmp_path: Path, change: list[str], message: str
) -> None:
    options = [*OPTIONS, "--json", str(tmp_path / "harness.json")]
    harness.main(options)
    content = (tmp_path / "harness.json").read_bytes()
    with pytest.raises(InputError, match=message):
        harness.main([*options, *change])
    assert fakes["loaded"] == 1 and (tmp_path / "harness.json").read_bytes() == content


def test_rows_of_another_adapter_are_not_mixed(
    harness: ModuleType, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*OPTIONS, "--json", str(tmp_path / "harness.json")]
    harness.main(options)
    monkeypatch.setattr(harness, "code_hash", lambda _: "another")
    with pytest.raises(InputError, match="not 'another'"):
        harness.main(options)


def test_without_a_file_nothing_is_written(
    harness: ModuleType, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert harness.main(OPTIONS) == 0
    assert len(fakes["rows"]) == 3 and not list(tmp_path.iterdir())


@pytest.mark.real
def test_it_writes_the_file_that_the_book_reads(
    harness: ModuleType, tmp_path: Path, tiny_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """On the model in miniature, to which almost all words are unknown; the tasks are the real ones."""
    file = tmp_path / "harness.json"
    options = ["--tasks", "piqa", "lambada_openai", "--limit", "3", "--limits", "piqa=2", "--model", str(tiny_files[0])]
    assert harness.main([*options, "--json", str(file)]) == 0
    assert "| piqa | 0 | 2 of 1838 |" in capsys.readouterr().out
    table = harness_table(file)
    assert table["task"].tolist() == ["piqa", "lambada_openai"] and table["items"].tolist() == [2, 3]
    assert table[["stock_s", "adapter_s", "ratio"]].gt(0).all(axis=None)
    assert table["items_that_differ"].eq(0).all() and table["max_abs_difference"].lt(1e-3).all()
    assert table["overhead_s"].between(0, harness.OVERHEAD).all()
    assert table["perplexity_stock"].notna().tolist() == [False, True]
    assert table["acc_norm_adapter"].notna().tolist() == [True, False]
    assert table.attrs["limits"] == {"piqa": 2} and table.attrs["lm_eval"]
    environment = json.loads(file.read_text())["environment"]
    assert environment["threads"] == 1 and len(environment["code_sha256"]) == 64
    assert sys.modules["harness"] is harness
