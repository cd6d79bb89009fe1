"""The benchmark of the adapter, read from its file."""

import json
from pathlib import Path

import pytest

from calib_study.errors import InputError
from calib_study.harness_tables import HARNESS_COLUMNS, harness_table

ROW = {"task": "boolq", "shots": 0, "items": 40, "acc_stock": 0.5, "acc_adapter": 0.5, "met": True, "other": 1}


def test_the_benchmarks_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "harness.json"
    settings = {"device": "cpu", "limits": {"mmlu": 12}}
    file.write_text(json.dumps({"settings": settings, "environment": {}, "rows": [ROW, {**ROW, "shots": 5}]}))
    table = harness_table(file)
    assert table.attrs == settings and list(table.columns) == HARNESS_COLUMNS
    known = ["task", "shots", "items", "acc_stock", "met"]
    assert table[known].to_numpy().tolist() == [["boolq", 0, 40, 0.5, True], ["boolq", 5, 40, 0.5, True]]
    assert table.drop(columns=[*known, "acc_adapter"]).isna().all(axis=None)


def test_without_the_file_there_are_no_rows(tmp_path: Path) -> None:
    table = harness_table(tmp_path / "none.json")
    assert len(table) == 0 and list(table.columns) == HARNESS_COLUMNS and table.attrs == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {}, "environment": {}, "rows": [3]}', '{"rows": []}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "harness.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"harness\.json is no result of benchmarks/harness\.py --json"):
        harness_table(file)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "harness.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no result"):
        harness_table(file)
