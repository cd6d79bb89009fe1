"""Tables made from the tidy frame: damage, intervals, balanced cells, the advantage of one's own text."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from calib_study.errors import InputError
from calib_study.frames import advantage_table, cells, damage_table, interval_table, mixed_settings, text_runs

DATASETS = ("c4", "code")
SCHEDULES = {"block": 20.0, "dense": 40.0}


def rows(method: str, source: str | None, seed: int, values: tuple[float, ...], **other: Any) -> list[dict]:
    """Return one run's rows of the tidy frame, one for each perplexity in `values`."""
    run = {
        "run_id": f"{method}-{source}-{seed}", "model": "m", "method": method, "sparsity": 0.5,
        "pattern": "unstructured", "source": source, "policy": "document", "n_samples": 8, "seq_len": 64,
        "min_tokens": None, "seed": seed,
        "dtype": "float32", "schedule": "block", "allocation": "uniform", "options": "",
    } | other  # fmt: skip
    shared = {"metric": "perplexity", "unit": "per token", "stderr": 0.1, "n": 1000}
    return [{**run, **shared, "dataset": name, "value": value} for name, value in zip(DATASETS, values, strict=False)]


DENSE = rows("dense", None, 0, (10.0, 5.0), sparsity=0.0)


def test_damage_by_hand() -> None:
    # ln(20 / 10) = ln 2 and ln(40 / 5) = ln 8; the mean is ln 4 = 1.386294
    table = damage_table(pd.DataFrame(DENSE + rows("wanda", "c4", 3, (20.0, 40.0))))
    assert table[["run_id", "source", "seed", "n_datasets"]].to_numpy().tolist() == [["wanda-c4-3", "c4", 3, 2]]
    assert_allclose(table["damage"], np.log(4))


def test_damage_over_chosen_sets_and_other_metrics_ignored() -> None:
    frame = pd.DataFrame(DENSE + rows("wanda", "c4", 0, (20.0, 40.0)))
    frame = pd.concat([frame, frame.assign(metric="nll", value=-1.0)])
    assert_allclose(damage_table(frame, ["c4"])["damage"], np.log(2))


def test_damage_compares_with_the_dense_run_of_the_same_model_and_dtype() -> None:
    other = rows("dense", None, 0, (1.0, 1.0), dtype="bfloat16", run_id="dense16")
    frame = pd.DataFrame(other + DENSE + rows("wanda", "c4", 0, (20.0, 40.0)))
    assert_allclose(damage_table(frame)["damage"], np.log(4))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (rows("wanda", "c4", 0, (20.0, 40.0)), "no dense run to compare with for m/float32/c4"),
        (DENSE, "no pruned run"),
        (DENSE + rows("wanda", "c4", 0, (20.0,)), "1 runs lack one of the held-out sets c4, code"),
        (DENSE + rows("dense", None, 0, (11.0, 5.0), run_id="d2"), "two perplexities on 'c4'"),
        (DENSE + rows("wanda", "c4", 0, (-1.0, 40.0)), "finite and above zero"),
    ],
)
def test_damage_says_what_is_missing(frame: list[dict], message: str) -> None:
    with pytest.raises(InputError, match=message):
        damage_table(pd.DataFrame(frame))


def test_a_frame_without_rows_or_columns_is_refused() -> None:
    with pytest.raises(InputError, match="lacks the columns"):
        damage_table(pd.DataFrame({"metric": ["perplexity"]}))
    with pytest.raises(InputError, match="has 0 rows"):
        damage_table(pd.DataFrame(DENSE).iloc[:0])


def test_runs_with_text_leave_out_floor_and_data_free_methods() -> None:
    scored = DENSE + rows("wanda", "c4", 1, (20.0, 40.0)) + rows("wanda", "random", 1, (90.0, 90.0))
    scored += rows("magnitude", None, 0, (30.0, 30.0), n_samples=None, seq_len=None)
    divergence = [row | {"metric": "jensen_shannon"} for row in rows("wanda", "c4", 1, (0.1, 0.3))]
    (run,) = text_runs(pd.DataFrame(scored + divergence)).to_dict("records")
    assert (run["source"], run["damage"], run["jensen_shannon"]) == ("c4", pytest.approx(np.log(4)), pytest.approx(0.2))
    assert repr(run["n_samples"]) == "8"  # whole, though magnitude has none
    assert text_runs(pd.DataFrame(scored))["jensen_shannon"].isna().all()


def test_interval_table_by_hand() -> None:
    # c4: 1, 2, 3 -> 2 -/+ 2.484138 (t = 4.302653, s = 1, n = 3); the run without a source stands alone
    frame = pd.DataFrame({"source": ["c4", "c4", None, "c4"], "value": [1.0, 2.0, 9.0, 3.0]})
    table = interval_table(frame, ["source"])
    assert_allclose(table.iloc[0, 1:].astype(float), [2, 2 - 2.484138, 2 + 2.484138, 3], atol=1e-6)
    assert table["source"].isna().tolist() == [False, True]
    assert table.iloc[1][["low", "high"]].isna().all() and table["n"].tolist() == [3, 1]


def test_interval_table_of_logarithms_is_the_geometric_mean() -> None:
    # exp(mean(ln 1, ln 4)) = 2; s of (0, ln 4) = ln 4 / sqrt 2, half width 12.7062 x ln 4 / 2
    table = interval_table(pd.DataFrame({"g": ["a", "a"], "value": [1.0, 4.0]}), ["g"], log=True)
    half = 12.706205 * np.log(4) / 2
    assert_allclose(table[["mean", "low", "high"]].iloc[0].astype(float), 2 * np.exp([0, -half, half]), rtol=1e-5)


def runs() -> pd.DataFrame:
    """Return one row per run: wanda differs by source and seed, random by seed, magnitude by neither."""
    table = [("wanda", s, k, 10 * i + k) for i, s in enumerate(["c4", "code", "math"]) for k in (0, 1)]
    table += [("random", None, 0, 50), ("random", None, 1, 51), ("magnitude", None, 0, 70)]
    return pd.DataFrame(table, columns=["method", "source", "seed", "damage"])


def test_cells_by_hand() -> None:
    got = cells(runs(), ["math", "c4"], ["magnitude", "wanda", "random"], [0, 1], "damage")
    expected = [[[70, 70], [20, 21], [50, 51]], [[70, 70], [0, 1], [50, 51]]]
    assert_allclose(got, expected)


def test_cells_name_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"no run for wanda/c4/seed 7, random/c4/seed 7\. Run them"):
        cells(runs(), ["c4"], ["wanda", "random", "magnitude"], [7], "damage")
    with pytest.raises(InputError, match="and 12 more"):
        cells(runs(), ["chat"], ["wanda"], list(range(20)), "damage")


def test_cells_refuse_two_runs_in_one_cell() -> None:
    with pytest.raises(InputError, match="2 runs for wanda/c4/seed 0; select one model"):
        cells(pd.concat([runs(), runs()]), ["c4"], ["wanda"], [0], "damage")


def test_advantage_by_hand() -> None:
    # geometric means on c4: c4 sqrt(20 x 45) = 30, code 60; on code: c4 8, code 4. Random do not count.
    frame = pd.DataFrame(
        rows("wanda", "c4", 0, (20.0, 8.0))
        + rows("wanda", "c4", 1, (45.0, 8.0))
        + rows("wanda", "code", 0, (60.0, 4.0))
        + rows("wanda", "random", 0, (15.0, 80.0))
    )
    table = advantage_table(frame, "wanda")
    assert_allclose(table.loc["c4"], [0, np.log(2)], atol=1e-12)
    assert_allclose(table.loc["code"], [np.log(2), 0], atol=1e-12)
    assert_allclose(table.loc["random"], np.log([0.5, 20]), atol=1e-12)


@pytest.mark.parametrize("column", ["schedule", "options", "sparsity"])
def test_advantage_mixes_no_settings(column: str) -> None:
    other = {"schedule": "dense", "options": "damping=0.1", "sparsity": 0.6}[column]
    frame = pd.DataFrame(rows("wanda", "c4", 0, (20.0, 8.0)) + rows("wanda", "c4", 1, (45.0, 8.0), **{column: other}))
    with pytest.raises(InputError, match=f"compares sources at one setting, but {column} vary"):
        advantage_table(frame, "wanda")


def test_settings_that_vary_are_found() -> None:
    frame = pd.DataFrame({"schedule": ["block", "dense"], "policy": [None, None], "method": ["wanda", "sparsegpt"]})
    assert mixed_settings(frame) == ["schedule"]
    assert mixed_settings(frame[:1]) == []


def test_damage_keeps_schedules_apart_and_cells_refuse_to_mix_them() -> None:
    # ln(20 / 10) = ln 2 under block, ln(40 / 10) = ln 4 under dense, on one held-out set
    runs = [rows("wanda", "c4", 0, (value,), schedule=name, run_id=name)[0] for name, value in SCHEDULES.items()]
    table = damage_table(pd.DataFrame(DENSE + runs), ["c4"])
    assert dict(zip(table["schedule"], table["damage"], strict=True)) == pytest.approx(
        {"block": np.log(2), "dense": np.log(4)}
    )
    with pytest.raises(InputError, match=r"2 runs for wanda/c4/seed 0; select one model, sparsity, pattern, schedule"):
        cells(table, ["c4"], ["wanda"], [0], "damage")
    assert_allclose(cells(table[table["schedule"] == "dense"], ["c4"], ["wanda"], [0], "damage"), [[[np.log(4)]]])


def test_a_method_with_owl_is_one_of_its_own_and_has_a_source() -> None:
    table = runs().replace({"method": {"wanda": "magnitude+owl"}})
    assert_allclose(cells(table, ["math"], ["magnitude", "magnitude+owl"], [0, 1], "damage"), [[[70, 70], [20, 21]]])


def test_advantage_needs_every_source_on_every_set() -> None:
    frame = pd.DataFrame(rows("wanda", "c4", 0, (20.0, 8.0)) + rows("wanda", "code", 0, (60.0,)))
    with pytest.raises(InputError, match="every source needs every held-out set"):
        advantage_table(frame, "wanda")
    with pytest.raises(InputError, match="no perplexity of method 'sparsegpt'"):
        advantage_table(frame, "sparsegpt")
