"""The benchmark of pruning: what it compares with what, its limits, its file, and the baseline in miniature."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from calib_study.model_files import ModelRef
from calib_study.models import DenseModel
from calib_study.schedule_tables import cost_table

TOKENS = np.random.default_rng(0).integers(0, 97, (8, 16))
FLOOR = "one forward, onednn"


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which finds the modules beside it as Python finds those of a script."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import prune_cost

    return prune_cost


@pytest.fixture
def settings() -> Iterator[None]:
    """What the script sets in its process, put back."""
    products, threads = torch.backends.mkldnn.matmul, torch.get_num_threads()
    before = products.fp32_precision
    yield
    products.fp32_precision = before
    torch.set_num_threads(threads)


def bench(dense: DenseModel | None = None) -> "object":
    rows = sys.modules["prune_rows"]
    found = rows.Bench(TOKENS, TOKENS, "onednn", torch.backends.mkldnn.matmul.fp32_precision)
    if dense is not None:
        found._models["float32"] = found._models["bfloat16"] = dense
    return found


def test_every_row_is_one_of_a_group_and_what_it_is_compared_with_is_there(cost: ModuleType) -> None:
    rows = cost.all_rows("onednn")
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys) and {row.group for row in rows} == set(cost.GROUPS)
    assert {(row.baseline, "float32") for row in rows if row.baseline} <= set(keys)
    assert {row.dtype for row in rows} == {"float32", "bfloat16"}
    columns = {target.column for row in rows for target in row.targets}
    assert columns <= set(cost.COLUMNS)


@pytest.mark.parametrize(
    ("groups", "dtypes", "works"),
    [
        (["choosing"], ["bfloat16"], set()),  # there is none in bfloat16
        (["owl"], ["float32"], {"one forward, torch default", FLOOR, "owl, its extra pass"}),
        (["dsnot"], ["float32"], {"dsnot, block", "wanda, block", "wanda, textbook"}),
        (["wanda"], ["bfloat16"], {"wanda, sequential", "wanda, dense", "wanda, textbook", FLOOR}),
    ],
)
def test_rows_are_selected_with_those_they_need(
    cost: ModuleType, groups: list[str], dtypes: list[str], works: set[str]
) -> None:
    chosen = cost.selected(cost.all_rows("onednn"), groups, dtypes)
    assert works <= {row.work for row in chosen}
    assert len(chosen) <= len(works) + 3
    made = {row.key for row in chosen}
    assert all((row.baseline, "float32") in made for row in chosen if row.baseline)
    assert all((FLOOR, row.dtype) in made for row in chosen if row.group not in ("choosing", "solver"))


def test_ratios_and_verdicts_by_hand(cost: ModuleType) -> None:
    # A forward of 10 s, a baseline of 50, 20 for the engine: 2.0 forwards, 2.5 times as fast. One of 16 zeros differs.
    from prune_work import Measured

    found = bench()
    zeros, other = np.array([0b10110001, 0b11110000], np.uint8), np.array([0b10110001, 0b11110100], np.uint8)
    found.found = {
        (FLOOR, "float32"): Measured(10.0),
        ("wanda, textbook", "float32"): Measured(50.0, zeros, 20.0),
        ("wanda, block", "float32"): Measured(20.0, other, 20.3),
        ("dsnot, block", "float32"): Measured(25.0, zeros),
    }
    rows = {row.key: row for row in cost.all_rows("onednn")}
    block = cost.result(rows["wanda, block", "float32"], found)
    wanted = {"cpu_s": 20, "forwards": 2, "baseline_ratio": 2.5, "masks_differ": 1 / 16, "perplexity_change": 0.015}
    assert {name: block[name] for name in wanted} == pytest.approx(wanted)
    # at most 2.0 forwards, at least 2.2 times as fast: both just so or better; at most 0.1 % of the mask: not
    assert [target["met"] for target in block["targets"]] == [True, True, False] and block["met"] is False
    assert block["target"] == "forwards <= 2; baseline_ratio >= 2.2; masks_differ <= 0.100%"
    dsnot = cost.result(rows["dsnot, block", "float32"], found)
    assert dsnot["wanda_ratio"] == 1.25 and dsnot["met"] is False
    floor = cost.result(rows["wanda, textbook", "float32"], found)
    assert floor["met"] is None and floor["target"] is None and floor["forwards"] == 5
    lines = cost.table([block, dsnot, floor]).splitlines()
    assert lines[1].endswith("NOT MET (masks_differ)") and "6.250%" in lines[1] and "wanda, block" in lines[1]
    assert lines[2].endswith("wanda_ratio <= 1.2: NOT MET (wanda_ratio)")
    assert "MET" not in lines[3]


def test_the_fastest_round_counts(cost: ModuleType) -> None:
    from prune_rows import Row
    from prune_work import Measured

    found, seconds = bench(), iter([3.0, 2.0, 4.0])
    row = Row("wanda", "a work", lambda _: Measured(next(seconds)))
    for _ in range(3):
        found.measure(row)
    assert found.found["a work", "float32"].cpu_s == 2.0


@pytest.mark.tiny
def test_the_engine_removes_what_the_textbook_removes(cost: ModuleType, tiny_model: LlamaForCausalLM) -> None:
    dense = DenseModel(tiny_model, None, ModelRef("tiny", "directory", "nowhere", None, 64, 97))
    found = bench(dense)
    chosen = [
        row
        for row in cost.all_rows("onednn")
        if row.group in ("forward", "choosing", "solver", "dsnot", "owl", "independence")
        or row.work.partition(", ")[2] in ("textbook", "block")
    ]
    for row in chosen:
        found.measure(row)
    assert tiny_model.config._attn_implementation == "sdpa"
    results = {(row.work, row.dtype): cost.result(row, found) for row in chosen}
    assert results["wanda, block", "float32"]["masks_differ"] == 0
    # the textbook takes every score up to the threshold: of each block of columns one weight more where it is odd
    assert results["sparsegpt, block", "float32"]["masks_differ"] < 0.02
    assert all(row["masks_differ"] == 0 for row in results.values() if row["work"].startswith("wanda, batches"))


@pytest.mark.real
def test_it_writes_the_file_that_the_book_reads(
    cost: ModuleType, settings: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results" / "cost.json"
    options = ["--rows", "forward", "choosing", "--dtype", "float32", "--n-samples", "1", "--seq-len", "16"]
    assert cost.main([*options, "--json", str(file)]) == 0
    shown = capsys.readouterr()
    assert "choosing by wanda, 2:4" in shown.out and "cpu_s <= 1: " in shown.out and "measuring" in shown.err
    table = cost_table(file)
    assert len(table) == 5 and table["cpu_s"].gt(0).all()
    assert table["met"].notna().sum() == 3
    content = json.loads(file.read_text())
    assert content["settings"]["n_samples"] == 1 and content["environment"]["threads"] == 1
