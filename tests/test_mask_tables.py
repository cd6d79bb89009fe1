"""Pairs of runs that differ in one thing only, and whether a schedule moves the mask less than a draw does."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_records import record
from tiny_study import tiny_model_directory, tiny_source

from calib_study.frames import damage_table
from calib_study.mask_samples import POSITIONS, MaskSample
from calib_study.mask_tables import COMPARED, mask_changes, mask_table
from calib_study.notebooks import notebooks_dir, parameter_defaults
from calib_study.parameters import ScheduleCosts, validate
from calib_study.records import Record, Store, to_frame
from calib_study.schedule_tables import schedule_differences
from calib_study.specs import Owl, make_spec
from calib_study.study import run_grid

COLUMNS = ["differs", "one", "other", *COMPARED, "share"]


def run(method: str = "wanda", source: str = "c4", seed: int = 0, schedule: str = "block", owl: bool = False) -> Record:
    spec = make_spec(
        model="smollm2-135m",
        method=method,
        sparsity=0.5,
        source=source,
        seed=seed,
        schedule=schedule,
        allocation=Owl() if owl else None,
    )
    return record(spec)


def sample(n_zero: int) -> MaskSample:
    """Return the mask of one layer whose first `n_zero` positions are removed."""
    return MaskSample(("layer",), np.array([1000]), np.arange(POSITIONS)[None] < n_zero)


def test_pairs_differ_in_one_thing() -> None:
    runs = [
        (run(), 128),
        (run(schedule="dense"), 130),
        (run(seed=1), 136),
        (run(source="code"), 144),
        (run(method="sparsegpt"), 160),
        (run(method="sparsegpt", schedule="dense"), 192),
        (run(owl=True), 64),
    ]
    table = mask_table([one for one, _ in runs], {one.run_id: sample(n_zero) for one, n_zero in runs})
    expected = [
        ("schedule", "block", "dense", None, 0, "c4", "wanda", 2),
        ("schedule", "block", "dense", None, 0, "c4", "sparsegpt", 32),
        ("seed", "0", "1", "block", None, "c4", "wanda", 8),
        ("source", "c4", "code", "block", 0, None, "wanda", 16),
        ("method", "wanda", "sparsegpt", "block", 0, "c4", None, 32),
        ("method", "wanda", "wanda+owl", "block", 0, "c4", None, 64),
        ("method", "wanda", "sparsegpt", "dense", 0, "c4", None, 62),
        ("method", "sparsegpt", "wanda+owl", "block", 0, "c4", None, 96),
    ]
    wanted = pd.DataFrame(expected, columns=COLUMNS).assign(share=[row[-1] / POSITIONS for row in expected])
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)


def test_runs_without_a_sample_or_without_text_are_left_out() -> None:
    dense, one, other = record(make_spec(model="m", method="dense", sparsity=0)), run(), run(seed=1)
    samples = {dense.run_id: sample(0), one.run_id: sample(5)}
    table = mask_table([dense, one, other], samples)
    assert len(table) == 0 and list(table.columns) == COLUMNS
    assert len(mask_changes(table, "block")) == 0


def masks(turned: dict[str, list[float]], drawn: dict[str, list[float]], one: str = "block") -> pd.DataFrame:
    """Return mask shares of each text: between block and dense, and between draws."""
    other = "dense" if one == "block" else "block"
    rows = [("schedule", one, other, None, 0, text, "wanda", x) for text, shares in turned.items() for x in shares]
    rows += [("seed", "0", "1", "block", None, text, "wanda", x) for text, shares in drawn.items() for x in shares]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize("one", ["block", "dense"])
def test_mask_changes_by_hand(one: str) -> None:
    # c4: 0.05 - 0.02 = 0.03, code: 0.07 - 0.03 = 0.04; mean 0.035, half = 12.706205 * 0.007071 / sqrt 2 = 0.063531
    table = mask_changes(
        masks({"c4": [0.01, 0.03], "code": [0.03]}, {"c4": [0.05], "code": [0.06, 0.08]}, one), "block"
    )
    (row,) = table.to_dict("records")
    assert (row["method"], row["schedule"], row["n"], row["verdict"]) == ("wanda", "dense", 2, "inconclusive")
    numbers = [row[name] for name in ("schedule_share", "draw_share", "mean", "low", "high")]
    np.testing.assert_allclose(numbers, [0.025, 0.06, 0.035, 0.035 - 0.063531, 0.035 + 0.063531], atol=1e-6)


@pytest.mark.parametrize(("share", "verdict"), [(0.02, "supported"), (0.09, "not supported")])
def test_mask_changes_decide(share: float, verdict: str) -> None:
    drawn = {"c4": [0.050], "code": [0.051], "math": [0.052]}
    table = mask_changes(masks({text: [share] for text in drawn}, drawn), "block")
    assert table["verdict"].tolist() == [verdict]


def test_texts_without_other_draws_are_left_out() -> None:
    table = mask_changes(masks({"c4": [0.01], "code": [0.02]}, {"c4": [0.05]}), "block")
    assert table[["n", "verdict"]].to_numpy().tolist() == [[1, "inconclusive"]]
    assert len(mask_changes(masks({"c4": [0.01]}, {"code": [0.05]}), "block")) == 0


@pytest.mark.tiny
def test_masks_of_a_grid_of_schedules(tmp_path: Path, own_cache: Path) -> None:
    """A tiny model, two texts, three draws, three schedules: every kind of pair is found, and none is a mask apart."""
    model = tiny_model_directory(tmp_path / "tiny")
    texts = [str(tiny_source(tmp_path / name, seed=seed)) for seed, name in enumerate(("one.txt", "other.txt"))]
    small = {"n_samples": 4, "seq_len": 16, "eval_seq_len": 16, "eval_windows": 4}
    defaults = parameter_defaults(notebooks_dir() / "10_schedules.py")
    chapter = validate(
        "10_schedules", defaults | small | {"model": str(model), "sources": texts, "eval_sources": texts}
    )
    assert isinstance(chapter, ScheduleCosts)
    store = Store(tmp_path / "store")
    records = run_grid(chapter.specs(), model=chapter.model, store=store, progress=False)
    samples = {run.run_id: MaskSample.of_arrays(store.arrays(run)) for run in records}
    table = mask_table(records, samples)
    # 6 cells of text and draw: 3 pairs of schedules each; 6 of text and schedule: 3 of draws; 9 of draw and schedule: 1
    assert table["differs"].value_counts().to_dict() == {"schedule": 18, "seed": 18, "source": 9}
    assert table["share"].between(0, 0.5).all() and (table["share"] > 0).any()
    assert len(schedule_differences(damage_table(to_frame(records)))) == 12
    assert mask_changes(table, "block")["n"].tolist() == [2, 2]
