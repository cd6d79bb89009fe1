"""`calib-study evaluate`: a table and a record, and every mistake found before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest

from calib_study.errors import InputError
from calib_study.evaluate import EvaluateJob, table
from calib_study.records import Metric, Store

Files = tuple[Path, Path]


def checked(files: Files, **changes: Any) -> EvaluateJob:
    model, source = files
    fields: dict[str, Any] = {
        "model": str(model),
        "tasks": [],
        "limit": None,
        "shots": None,
        "sources": [str(source)],
        "seq_len": 16,
        "n_windows": 2,
        "divergence_from": None,
        "dtype": "float32",
        "device": "cpu",
    }
    return EvaluateJob.checked(**fields | changes)


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALIB_STUDY_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


def test_a_model_is_scored_once_and_the_record_found_again(tiny_files: Files, records: Path) -> None:
    said: list[str] = []
    record = checked(tiny_files).run(said.append)
    assert [metric.name for metric in record.metrics] == ["perplexity", "nll"]
    assert said[0] == f"record {records / record.run_id}.json"
    assert said[1].split() == ["metric", "on", "value", "s.e.", "unit", "n"]
    assert len(said) == 4
    again: list[str] = []
    assert checked(tiny_files).run(again.append) == Store.default().get(record.run_id)
    assert "computed before" in again[0]
    assert again[1:] == said[1:]


def test_a_model_does_not_diverge_from_itself(tiny_files: Files, records: Path) -> None:
    record = checked(tiny_files, divergence_from=str(tiny_files[0])).run(lambda _: None)
    source = str(tiny_files[1])
    assert record.metric("jensen_shannon", source).value == pytest.approx(0, abs=1e-6)
    assert record.metric("agreement", source).value == 1
    assert record.metric("bits_per_byte", source).value > 0
    assert record.spec.evaluation.reference == "tiny"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "nothing to measure"),
        ({"limit": 3}, "--limit and --shots are for --tasks"),
        ({"shots": 0}, "--limit and --shots are for --tasks"),
        ({"tasks": ["piqqa"]}, "unknown task 'piqqa'. Did you mean 'piqa'"),
        ({"tasks": ["piqa"], "limit": 0}, "limit 0: ask for at least 1"),
        ({"tasks": ["piqa", "piqa"]}, "each task can be asked once"),
        ({"tasks": ["piqa"], "shots": 3}, "num_fewshot 3"),
        ({"divergence_from": "smollm2-135m"}, "tiny has a vocabulary of .* and smollm2-135m one of 49,152"),
        ({"divergence_from": "smollm"}, "unknown model 'smollm'"),
        ({"sources": ["c5"]}, "unknown source 'c5'. Did you mean 'c4'"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"seq_len": 65}, "evaluation seq_len 65 is longer than the context"),
        ({"n_windows": 0}, "greater than or equal to 1"),
        ({"model": "nowhere/at/all/x"}, "nowhere"),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(
    tiny_files: Files, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calib_study.models.load_model", None)
    with pytest.raises(InputError, match=message):
        checked(tiny_files, **changes)


def test_the_table_lines_up() -> None:
    common: dict[str, Any] = {"unit": "nats", "higher_is_better": False}
    rows = [
        Metric(name="nll", dataset="c4", value=2.5, n=1000, stderr=0.125, **common),
        Metric(name="perplexity", dataset="wikipedia", value=12, n=7, **common),
    ]
    assert table(rows) == [
        "metric      on           value    s.e.  unit      n",
        "nll         c4          2.5000  0.1250  nats  1,000",
        "perplexity  wikipedia  12.0000          nats      7",
    ]
