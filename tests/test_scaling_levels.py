"""How far texts lie apart at each level: spreads by hand, coverage and false alarms by simulation, rules."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from calib_study.errors import InputError
from calib_study.frames import scored_runs
from calib_study.scaling_levels import (
    chains,
    compared,
    gap_table,
    grows,
    growth_table,
    layouts,
    levels_of,
    spread_change,
    text_spread,
    with_level,
)
from calib_study.statistics import Interval, mean_interval, same_source_null

TEXTS = {"c4": 0.0, "code": 0.1, "math": 0.4}  # what each adds to the damage, in units of the level's
LEVELS = {(0.5, "unstructured"): 1.0, (0.7, "unstructured"): 3.0, (0.5, "2:4"): 2.0, (0.5, "4:8"): 1.5}
DRAWS = (-0.01, 0.0, 0.01)


def runs(methods: dict[str, Any] | None = None, texts: dict[str, float] | None = None) -> pd.DataFrame:
    """Return a row for each run: a level's damage, times 1 + what the text adds + what the draw adds.

    methods: those that read text, with the levels of each; None: wanda at all, dsnot at the unstructured ones.
    """
    usual = {"wanda": list(LEVELS), "dsnot": list(LEVELS)[:2]}
    rows: list[tuple[Any, ...]] = []
    for level, damage in LEVELS.items():
        rows.append(("magnitude", *level, None, 0, 4 * damage))
        rows += [("random", *level, None, seed, 12.0 + seed) for seed in range(3)]
    for method, levels in (methods or usual).items():
        for level in levels:
            for text, more in (texts or TEXTS).items():
                rows += [
                    (method, *level, text, seed, LEVELS[level] * (1 + more + draw)) for seed, draw in enumerate(DRAWS)
                ]
    return pd.DataFrame(rows, columns=["method", "sparsity", "pattern", "source", "seed", "damage"])


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Return the tidy frame of which `table` is the damage table: two held-out texts, and divergence 0.1 of damage."""
    setting = {"model": "m", "dtype": "float32", "schedule": "dense", "options": "", "allocation": "uniform"}
    setting |= {"policy": "packed", "n_samples": 8, "seq_len": 128, "min_tokens": None}
    dense = pd.DataFrame({"method": ["dense"], "sparsity": 0.0, "pattern": "unstructured", "source": None, "seed": 0})
    whole = pd.concat([dense.assign(damage=0.0), table], ignore_index=True)
    whole = whole.assign(run_id=[f"run{i}" for i in range(len(whole))], **setting)
    parts = []
    for dataset, shift in (("c4", -0.02), ("code", 0.02)):  # the mean over both is the damage
        more = np.where(whole["method"] == "dense", 0.0, shift)
        perplexity = 20 * np.exp(whole["damage"] + more)
        parts.append(whole.assign(dataset=dataset, metric="perplexity", value=perplexity))
        parts.append(whole.assign(dataset=dataset, metric="jensen_shannon", value=0.1 * whole["damage"] + more))
    return pd.concat(parts, ignore_index=True).drop(columns="damage")


# --- runs and levels ----------------------------------------------------------------------------------------


def test_runs_have_damage_and_divergence_and_no_random_tokens() -> None:
    table = runs(texts={**TEXTS, "random": 2.0})
    found = scored_runs(tidy(table))
    expected = table[table["source"] != "random"]
    assert_allclose(found["damage"], expected["damage"])
    assert_allclose(found["jensen_shannon"], 0.1 * expected["damage"])
    assert (found["method"] == "random").sum() == 12  # the random mask stays


def test_levels_are_sorted_from_the_freest() -> None:
    table = runs().sample(frac=1, random_state=0)
    assert levels_of(table) == [(0.5, "unstructured"), (0.7, "unstructured"), (0.5, "4:8"), (0.5, "2:4")]
    assert with_level(table[:0])["level"].tolist() == []
    assert set(with_level(table)["level"]) == {"50 %", "70 %", "4:8", "2:4"}


def test_chains_hold_sparsities_and_patterns_of_one_sparsity() -> None:
    free = "unstructured"
    assert chains([(0.75, "1:4"), (0.5, "2:4"), (0.5, free), (0.3, free), (0.75, free), (0.5, "4:8")]) == [
        ("sparsity", [(0.3, free), (0.5, free), (0.75, free)]),
        ("structure at 50 %", [(0.5, free), (0.5, "4:8"), (0.5, "2:4")]),
        ("structure at 75 %", [(0.75, free), (0.75, "1:4")]),
    ]
    assert chains([(0.5, free), (0.75, "1:4")]) == []


def test_layouts_hold_each_cell_in_the_order_of_texts_and_seeds() -> None:
    found = layouts(runs().sample(frac=1, random_state=1).sort_values("source"))
    assert {layout.key for layout in found} == {
        *(("wanda", *level) for level in LEVELS),
        *(("dsnot", *level) for level in list(LEVELS)[:2]),
    }
    (here,) = [layout for layout in found if layout.key == ("wanda", 0.7, "unstructured")]
    assert here.texts == ["c4", "code", "math"]
    assert_allclose(here.values, [[3 * (1 + more + draw) for draw in DRAWS] for more in TEXTS.values()])


def test_layouts_need_all_draws_of_two_texts() -> None:
    table = runs()
    lacking = table.drop(table.index[(table["source"] == "code") & (table["seed"] == 2)][0])
    with pytest.raises(InputError, match=r"no run for wanda/code/seed 2"):
        layouts(lacking)
    with pytest.raises(InputError, match="the table has 1 text"):
        layouts(runs(texts={"c4": 0.0}))


# --- the gap ------------------------------------------------------------------------------------------------


def test_gap_by_hand() -> None:
    table = gap_table(runs()).set_index(["method", "sparsity", "pattern"])
    row = table.loc[("wanda", 0.7, "unstructured")]
    # means 3, 3.3, 4.2; draws 0.03 apart, so s = 0.03; variance of the means 0.39, less 0.0009 / 3
    assert row[["best", "worst", "n_sources", "n_seeds", "differ"]].tolist() == ["c4", "math", 3, 3, "supported"]
    expected = {"gap": 1.2, "within_sd": 0.03, "relative": 40, "damage": 3.5, "share": 1.2 / 3.5, "without_worst": 0.3}
    assert row[list(expected)].to_dict() == pytest.approx(expected)
    assert row["spread"] == pytest.approx(np.sqrt(0.39 - 0.0003))
    values = 3 * (1 + np.array(list(TEXTS.values()))[:, None] + np.array(DRAWS))
    null = same_source_null(values, seed=0)
    assert row[["null_q95", "p_value"]].tolist() == pytest.approx([null.null_q95, null.p_value])
    assert_allclose(table["share"], 0.4 / (1 + 0.5 / 3))  # the same at every level
    assert compared(table.reset_index())["pattern"].unique().tolist() == ["unstructured"]


def test_gap_is_also_of_another_measure_and_of_two_texts() -> None:
    table = runs(texts={"c4": 0.0, "math": 0.4})
    table["jensen_shannon"] = table["damage"] / 5
    found = gap_table(table, "jensen_shannon")
    assert_allclose(found["gap"] * 5, gap_table(table)["gap"])
    assert found["without_worst"].isna().all()


def test_spread_is_less_what_draws_add() -> None:
    # means 1, 2, 3: variance 1; within a text variance 4.5 over 2 draws: sqrt(1 - 2.25) has no root, so below zero
    assert text_spread([[-0.5, 2.5], [0.5, 3.5], [1.5, 4.5]]) == pytest.approx(-np.sqrt(1.25))
    assert text_spread([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]) == pytest.approx(1)


@given(st.floats(0.1, 100), st.floats(-100, 100))
def test_spread_has_the_unit_of_the_values(scale: float, shift: float) -> None:
    values = np.array([[0.0, 1.0, 3.0], [5.0, 4.0, 4.5], [9.0, 7.0, 8.0]])
    assert text_spread(scale * values + shift) == pytest.approx(scale * text_spread(values), rel=1e-6)


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, np.nan], [1.0, 2.0]]])
def test_spread_needs_texts_and_draws(values: Any) -> None:
    with pytest.raises(InputError, match="text_spread"):
        text_spread(values)


# --- trends -------------------------------------------------------------------------------------------------


def test_change_by_hand() -> None:
    # two texts without noise, 2 and 6 apart: spreads 2 / sqrt 2 and 6 / sqrt 2, whichever seed is left out
    lower = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
    found = spread_change(lower, 3 * lower)
    assert (found.mean, found.low, found.high) == pytest.approx([4 / np.sqrt(2)] * 3)
    # the mean of all values triples too, so that nothing is left of it as a share
    share = spread_change(lower, 3 * lower, relative=True)
    assert (share.mean, share.low, share.high) == pytest.approx((0, 0, 0))
    # one seed differs: jackknife of spread(higher) with lower's constant sqrt 2
    higher = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 5.0]])
    left_out = [text_spread(np.delete(higher, i, axis=1)) - np.sqrt(2) for i in range(3)]
    half = stats.t.ppf(0.975, 2) * np.sqrt(4 / 3 * np.var(left_out, ddof=1))
    found = spread_change(lower, higher)
    assert found.high is not None and found.high - found.mean == pytest.approx(half)


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ((0.2, (0.0, 0.1, 0.2, 1.0)), (0.5, (0.0, 0.5, 1.0, 4.0))),  # grows, and its noise too
        ((0.2, (0.0, 0.2, 0.4, 4.0)), (1.0, (0.0, 0.2, 0.4, 4.0))),  # only the noise grows
        ((0.1, (0.0, 0.3, 0.6, 0.9)), (0.3, (0.0, 0.6, 1.2, 1.8))),
    ],
)
def test_the_interval_covers_what_it_promises(lower: Any, higher: Any) -> None:
    """1,000 simulated experiments of four texts and three draws, the draws of the two levels correlated."""
    rng = np.random.default_rng(0)
    truth = np.std(higher[1], ddof=1) - np.std(lower[1], ddof=1)
    covered = 0
    for _ in range(1000):
        z, other = rng.normal(size=(2, 4, 3))
        x = np.asarray(lower[1])[:, None] + lower[0] * z
        y = np.asarray(higher[1])[:, None] + higher[0] * (0.7 * z + np.sqrt(1 - 0.49) * other)
        found = spread_change(x, y)
        assert found.low is not None and found.high is not None
        covered += found.low < truth < found.high
    assert 0.91 < covered / 1000 < 0.99


def test_growing_noise_is_no_growing_gap() -> None:
    """Six equal texts, five times the noise at the higher level: the s.d. of single draws takes it for growth."""
    rng = np.random.default_rng(1)
    certain, naive = 0, 0
    for _ in range(1000):
        x, y = 0.2 * rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
        found = spread_change(x, y)
        plain = mean_interval(y.std(axis=0, ddof=1) - x.std(axis=0, ddof=1))
        assert found.low is not None and plain.low is not None
        certain += found.low > 0
        naive += plain.low > 0
    assert certain / 1000 < 0.06  # 0.025 is nominal; measured 0.035
    assert naive / 1000 > 0.5


@pytest.mark.parametrize(("lower", "higher"), [(np.ones((2, 3)), np.ones((3, 3))), (np.ones((2, 2)), np.ones((2, 2)))])
def test_change_needs_three_draws_of_the_same_texts(lower: Any, higher: Any) -> None:
    with pytest.raises(InputError, match="at least 3 seeds"):
        spread_change(lower, higher)


def test_growth_by_hand() -> None:
    table = growth_table(runs(), "wanda")
    steps = table[["chain", "lower", "higher", "whole"]].to_numpy().tolist()
    assert steps == [
        ["sparsity", "50 %", "70 %", True],
        ["structure at 50 %", "50 %", "4:8", False],
        ["structure at 50 %", "4:8", "2:4", False],
        ["structure at 50 %", "50 %", "2:4", True],
    ]
    # the spread is the level's damage times this one
    spread = np.sqrt(np.var(list(TEXTS.values()), ddof=1) - 1e-4 / 3)
    assert_allclose(table["mean"], spread * np.array([2, 0.5, 0.5, 1]))
    assert_allclose(table["share"], 0, atol=1e-12)
    assert table["verdict"].tolist() == ["supported", "", "", "supported"]
    assert (table["low90"] > table["low"]).all() and (table["high90"] < table["high"]).all()


def test_growth_is_of_one_method_at_its_levels() -> None:
    assert growth_table(runs(), "dsnot")["chain"].tolist() == ["sparsity"]


def sure(low: float | None, high: float | None) -> Interval:
    return Interval(0.0, low, high, 3)


@pytest.mark.parametrize(
    ("wide", "narrow", "steps", "verdict"),
    [
        ((0.001, 0.1), (0.01, 0.09), [], "supported"),
        ((0.001, 0.1), (0.01, 0.09), [(-0.1, 0.2), (0.1, 0.2)], "supported"),  # a step may be open
        ((0.001, 0.1), (0.01, 0.09), [(-0.2, -0.1), (0.1, 0.4)], "not supported"),  # but must not go down
        ((-0.3, -0.1), (-0.2, -0.1), [], "not supported"),
        ((-0.011, 0.009), (-0.009, 0.007), [], "not supported"),  # no growth that matters: the 90 % interval decides
        ((-0.02, 0.03), (-0.01, 0.02), [], "inconclusive"),
        ((0.0, 0.1), (0.01, 0.09), [], "inconclusive"),  # at zero is not above
        ((None, None), (None, None), [], "inconclusive"),
    ],
)
def test_the_rule_at_its_edges(wide: Any, narrow: Any, steps: Any, verdict: str) -> None:
    assert grows(sure(*wide), sure(*narrow), [sure(*step) for step in steps]) == verdict
