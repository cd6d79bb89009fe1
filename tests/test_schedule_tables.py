"""What schedules change: differences by hand, coverage and size by simulation, rules at their edges."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from calib_study import schedule_tables
from calib_study.errors import InputError
from calib_study.schedule_tables import (
    apart,
    change_table,
    changes,
    concluded_otherwise,
    cost_table,
    order_table,
    schedule_differences,
    stratified_interval,
)
from calib_study.statistics import Interval

TEXTS = ("c4", "code", "math")
# Damage of each text under block, its three draws 0.01 apart.
BLOCK = {"c4": 0.5, "code": 0.7, "math": 0.9}


def runs(shifts: dict[str, dict[str, float]], method: str = "wanda", n_seeds: int = 3) -> pd.DataFrame:
    """Return a row for each run: block, and schedules whose texts are shifted from it."""
    table = [
        (method, schedule, text, seed, BLOCK[text] + 0.01 * seed + shift.get(text, 0.0))
        for schedule, shift in {"block": {}, **shifts}.items()
        for text in TEXTS
        for seed in range(n_seeds)
    ]
    frame = pd.DataFrame(table, columns=["method", "schedule", "source", "seed", "damage"])
    return frame.assign(model="m", dtype="float32", sparsity=0.5, pattern="2:4", policy="packed", n_samples=8)


# --- rule 1 -------------------------------------------------------------------------------------------------


def test_differences_by_hand() -> None:
    table = schedule_differences(runs({"sequential": {"c4": 0.02}, "dense": {"math": -0.03}}))
    assert list(table.columns) == ["method", "schedule", "source", "seed", "difference"]
    by_text = table.groupby(["schedule", "source"])["difference"].mean()
    expected = {("dense", "c4"): 0, ("dense", "code"): 0, ("dense", "math"): -0.03}
    expected |= {("sequential", "c4"): 0.02, ("sequential", "code"): 0, ("sequential", "math"): 0}
    assert by_text.to_dict() == pytest.approx(expected)


def test_differences_pair_runs_in_whatever_order_and_by_method() -> None:
    both = pd.concat([runs({"dense": {"c4": 0.1}}), runs({"dense": {"c4": 0.3}}, "sparsegpt")])
    table = schedule_differences(both.sample(frac=1, random_state=0))
    found = table[table["source"] == "c4"].groupby("method")["difference"].mean()
    assert found.to_dict() == pytest.approx({"wanda": 0.1, "sparsegpt": 0.3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[t["schedule"] == "block"], "0 of 0 have none"),
        (lambda t: t[(t["schedule"] != "block") | (t["seed"] > 0)], "3 of 9 have none"),
        (lambda t: pd.concat([t, t[:2]]), "2 runs twice"),
        (lambda t: t.assign(sparsity=[0.5] * 9 + [0.6] * 9), "several of sparsity"),
    ],
)
def test_differences_need_partners_at_one_setting(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        schedule_differences(change(runs({"dense": {}})))


def test_change_table_by_hand() -> None:
    # differences: c4 0.02, 0.02, 0.02; code 0; math 0.01, 0.01, 0.01 and 0.03 more in the last draw of math
    table = runs({"dense": {"c4": 0.02, "math": 0.01}})
    table.loc[(table["schedule"] == "dense") & (table["source"] == "math") & (table["seed"] == 2), "damage"] += 0.03
    (row,) = change_table(schedule_differences(table)).to_dict("records")
    # mean (0.02 + 0 + 0.02) / 3; variance within: 0, 0 and of (0.01, 0.01, 0.04) 3e-4, on average 1e-4;
    # half = t(0.975, 6) * 0.01 / 3
    assert row["mean"] == pytest.approx(0.04 / 3)
    assert row["high"] - row["mean"] == pytest.approx(2.446912 * 0.01 / 3, rel=1e-6)
    assert row["mean"] - row["low90"] == pytest.approx(1.943180 * 0.01 / 3, rel=1e-6)
    assert (row["n_sources"], row["n_seeds"], row["verdict"]) == (3, 3, "inconclusive")


def test_change_table_needs_all_draws_of_all_texts() -> None:
    with pytest.raises(InputError, match="wanda, dense lacks some seeds"):
        change_table(schedule_differences(runs({"dense": {}}))[:-1])


def test_one_stratum_gives_students_interval() -> None:
    # 1, 2, 6: mean 3, variance 7, half = t(0.975, 2) sqrt(7 / 3)
    found = stratified_interval([[1.0, 2.0, 6.0]])
    assert found.high is not None
    assert_allclose([found.mean, found.high - found.mean, found.n], [3, 4.302653 * np.sqrt(7 / 3), 3], rtol=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_how_strata_differ_does_not_widen_the_interval(levels: list[float]) -> None:
    values = np.array([[0.0, 1.0, 2.0, 5.0]] * 3)
    one, other = stratified_interval(values), stratified_interval(values + np.array(levels)[:, None])
    assert one.high is not None and other.high is not None
    assert_allclose(other.high - other.mean, one.high - one.mean, atol=1e-9)


@pytest.mark.parametrize(("n_strata", "n_draws"), [(4, 3), (2, 3), (7, 5)])
def test_the_interval_covers_what_it_promises(n_strata: int, n_draws: int) -> None:
    """2,000 simulated experiments whose strata lie far apart; 95 % give a standard error of 0.5 %."""
    rng = np.random.default_rng(n_strata)
    levels = 10 * rng.normal(size=(n_strata, 1))
    covered = 0
    for _ in range(2000):
        found = stratified_interval(levels + rng.normal(size=(n_strata, n_draws)))
        assert found.low is not None and found.high is not None
        covered += found.low < levels.mean() < found.high
    assert 0.935 < covered / 2000 < 0.965


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0], [2.0]], [[1.0, float("nan")]], np.zeros((0, 3))])
def test_intervals_need_draws(values: Any) -> None:
    with pytest.raises(InputError, match=r"n_draws >= 2\), got shape"):
        stratified_interval(values)


@pytest.mark.parametrize(
    ("wide", "narrow", "verdict"),
    [
        ((0.011, 0.03), (0.012, 0.029), "supported"),
        ((-0.03, -0.011), (-0.029, -0.012), "supported"),
        ((0.009, 0.03), (0.0095, 0.029), "inconclusive"),  # not zero, but perhaps below 0.01
        ((-0.005, 0.011), (-0.004, 0.0099), "not supported"),  # the 90 % interval decides
        ((0.002, 0.008), (0.003, 0.007), "not supported"),  # not zero, and surely below 0.01
        ((-0.02, 0.02), (-0.015, 0.015), "inconclusive"),
        ((0.01, 0.03), (0.012, 0.029), "inconclusive"),  # at the edge is not beyond
        ((None, None), (None, None), "inconclusive"),
    ],
)
def test_rule_1_at_its_edges(wide: Any, narrow: Any, verdict: str) -> None:
    assert changes(Interval(0.0, *wide, 9), Interval(0.0, *narrow, 9)) == verdict


# --- rule 2 -------------------------------------------------------------------------------------------------


def test_apart_by_hand() -> None:
    # s = 1, n = 3, k = 3: least = q(0.95; 3, 6) / sqrt 3 = 4.339195 / 1.732051 = 2.505236
    draws = np.array([-1.0, 0.0, 1.0])
    assert apart([draws, draws + 2.5052, draws - 2.5053]).tolist() == [0, 1, 1]
    assert apart([draws, draws + 2.5053, draws]).tolist() == [-1, 0, 1]


def test_apart_of_two_groups_is_students_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x = rng.normal(size=(2, 5)) + np.array([[0.0], [1.2]])
        assert (apart(x)[0] != 0) == (stats.ttest_ind(*x).pvalue < 0.05)


def test_one_text_is_seldom_told_from_itself() -> None:
    """Six equal texts: some pair is told apart in 5 % of 2,000 simulated experiments (standard error 0.5 %)."""
    rng = np.random.default_rng(1)
    wrong = np.mean([apart(rng.normal(size=(6, 3))).any() for _ in range(2000)])
    assert 0.035 < wrong < 0.065


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0, 2.0]], [[1.0], [2.0]], [[1.0, np.inf], [1.0, 2.0]]])
def test_apart_needs_groups(values: Any) -> None:
    with pytest.raises(InputError, match="at least 2 x 2"):
        apart(values)


def test_order_by_hand() -> None:
    # all pairs are 0.1 or more apart, with s = 0.01; under dense c4 and code change places (0.5 + 0.3 > 0.7)
    table = order_table(runs({"sequential": {"c4": 0.1}, "dense": {"c4": 0.3}})).set_index("schedule")
    assert table.loc["block", ["best", "worst", "tau", "told_apart", "verdict"]].tolist() == ["c4", "math", 1, 3, ""]
    assert_allclose(table["range"], [0.4, 0.3, 0.2])
    assert_allclose(table["tau"], [1, 1, 1 / 3])  # two of three pairs agree: (2 - 1) / 3
    assert table[["kept", "reversed"]].to_numpy().tolist() == [[3, 0], [3, 0], [2, 1]]
    assert table["best"].tolist() == ["c4", "c4", "code"]
    assert table["differ"].tolist() == ["supported"] * 3
    assert table["verdict"].tolist() == ["", "not supported", "supported"]


def test_order_is_of_each_method_and_the_null_is_that_of_chapter_1() -> None:
    both = pd.concat([runs({"dense": {}}), runs({"dense": {"c4": 0.4}}, "sparsegpt")])
    table = order_table(both)
    assert table[["method", "schedule"]].to_numpy().tolist() == [
        ["wanda", "block"],
        ["wanda", "dense"],
        ["sparsegpt", "block"],
        ["sparsegpt", "dense"],
    ]
    values = np.array([[BLOCK[text] + 0.01 * seed for seed in range(3)] for text in TEXTS])
    null = schedule_tables.same_source_null(values, seed=0)
    assert table["null_q95"].iloc[0] == null.null_q95 and table["p_value"].iloc[0] == null.p_value


def test_order_needs_the_same_texts_under_all_schedules() -> None:
    table = runs({"dense": {}})
    with pytest.raises(InputError, match="wanda has other texts under 'dense'"):
        order_table(table[(table["schedule"] == "block") | (table["source"] != "math")])
    with pytest.raises(InputError, match="wanda has other texts under 'dense'"):
        order_table(table[table["schedule"] == "dense"])


@pytest.mark.parametrize(
    ("before", "here", "counts", "verdict"),
    [
        ("supported", "supported", (3, 3, 0), "not supported"),
        ("supported", "supported", (3, 2, 1), "supported"),
        ("supported", "supported", (3, 2, 0), "inconclusive"),  # changed places, but are not told apart here
        ("supported", "not supported", (3, 3, 0), "supported"),
        ("not supported", "supported", (0, 0, 0), "supported"),
        ("supported", "inconclusive", (3, 3, 0), "inconclusive"),
        ("inconclusive", "inconclusive", (0, 0, 0), "inconclusive"),  # nothing was concluded that could change
    ],
)
def test_rule_2_at_its_edges(before: Any, here: Any, counts: tuple[int, int, int], verdict: str) -> None:
    assert concluded_otherwise(before, here, *counts) == verdict


# --- cost ---------------------------------------------------------------------------------------------------


def test_cost_is_read_from_the_benchmarks_file(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    rows = [{"work": "wanda, block", "dtype": "float32", "cpu_s": 26.0, "forwards": 1.9, "other": 1}]
    file.write_text(json.dumps({"settings": {"threads": 1}, "environment": {}, "rows": rows}))
    table = cost_table(file)
    assert table.attrs == {"threads": 1}
    assert table[["work", "dtype", "cpu_s", "forwards"]].to_numpy().tolist() == [["wanda, block", "float32", 26.0, 1.9]]
    assert table[["baseline_ratio", "target", "met", "masks_differ"]].isna().all(axis=None)


def test_without_the_file_there_are_no_rows(tmp_path: Path) -> None:
    assert len(cost_table(tmp_path / "none.json")) == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rows": 3, "settings": {}}', '{"rows": [3], "settings": {}}', '{"rows": []}']
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cost.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"is no result of benchmarks/prune_cost\.py --json"):
        cost_table(file)
