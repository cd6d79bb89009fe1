"""What more text changes: differences, gaps and spreads by hand, coverage by simulation, rules at their edges."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from calib_study import amount_tables
from calib_study.amount_tables import (
    amount_is_enough,
    amount_runs,
    beyond,
    compared_methods,
    draw_difference,
    enough,
    exponent_table,
    gain_difference,
    gap_table,
    judge,
    length_runs,
    size_changes,
    size_differences,
    size_is_of_no_matter,
    spread_table,
    values_of,
)
from calib_study.errors import InputError
from calib_study.statistics import Interval

TEXTS = ("c4", "code")
DRAWS = (-0.01, 0.0, 0.01)
# Damage of both texts by number of windows; code is 0.2 worse throughout.
LEVELS = {"wanda": {2: 0.32, 10: 0.31, 50: 0.30}, "sparsegpt": {2: 0.90, 10: 0.40, 50: 0.25}}


def runs(levels: dict[str, dict[int, float]] | None = None, draws: tuple[float, ...] = DRAWS) -> pd.DataFrame:
    """Return a row for each run with windows of 64 tokens."""
    rows = [
        (method, text, seed, n, 64, level + 0.2 * place + draw)
        for method, by_amount in (levels or LEVELS).items()
        for place, text in enumerate(TEXTS)
        for seed, draw in enumerate(draws)
        for n, level in by_amount.items()
    ]
    return pd.DataFrame(rows, columns=["method", "source", "seed", "n_samples", "seq_len", "damage"])


def tidy(damage: pd.DataFrame) -> pd.DataFrame:
    """Return the tidy frame whose runs have this damage on one held-out text, and a dense run of perplexity 20."""
    frame = damage.assign(dataset="c4", metric="perplexity", value=20 * np.exp(damage["damage"]))
    dense = {"method": "dense", "source": None, "seed": 0, "dataset": "c4", "metric": "perplexity", "value": 20.0}
    frame = pd.concat([pd.DataFrame([dense]), frame.drop(columns="damage")], ignore_index=True)
    setting = {"model": "m", "dtype": "float32", "sparsity": 0.5, "pattern": "2:4", "policy": "packed"}
    setting |= {"schedule": "dense", "allocation": "uniform", "options": "", "min_tokens": None}
    names = [f"run {i}" for i in range(len(frame))]
    return frame.assign(**{name: value for name, value in setting.items() if name not in frame}, run_id=names)


# --- sizes --------------------------------------------------------------------------------------------------


def test_differences_by_hand() -> None:
    table = size_differences(runs().sample(frac=1, random_state=0))
    assert list(table.columns) == ["method", "n_samples", "source", "seed", "difference"]
    assert len(table) == 2 * 2 * 3 * 2
    means = table.groupby(["method", "n_samples"])["difference"].agg(["mean", "std"])
    assert means["mean"].to_dict() == pytest.approx(
        {("wanda", 2): 0.02, ("wanda", 10): 0.01, ("sparsegpt", 2): 0.65, ("sparsegpt", 10): 0.15}
    )
    assert_allclose(means["std"], 0, atol=1e-12)  # draws are nested: what they share is in no difference
    assert table["n_samples"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[t["n_samples"] == 50], "got 1 and 0 runs without"),
        (lambda t: t[(t["n_samples"] < 50) | (t["seed"] > 0)], "got 3 and 8 runs without"),
        (lambda t: pd.concat([t, t[:1]]), "one run for each method, text, seed and n_samples"),
    ],
)
def test_differences_need_partners(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        size_differences(change(runs()))


def test_lengths_are_compared_with_the_longest() -> None:
    lengths = runs({"wanda": {8: 0.30, 2: 0.33}}).assign(seq_len=lambda t: 512 // t["n_samples"])
    table = size_differences(lengths, "seq_len")
    assert table["seq_len"].unique().tolist() == [64]
    assert_allclose(table["difference"], -0.03)


def test_changes_by_hand() -> None:
    # at 10 windows the differences of c4 are 0, 0.001, 0.002 and those of code 0.002, 0.003, 0.004: mean 0.002,
    # variance within 1e-6, half = t(df 4) * 0.001 / sqrt(6)
    table = runs({"wanda": {10: 0.30, 50: 0.30}})
    small = table["n_samples"] == 10
    table.loc[small, "damage"] += [0.000, 0.001, 0.002, 0.002, 0.003, 0.004]
    (row,) = size_changes(size_differences(table)).to_dict("records")
    assert row["mean"] == pytest.approx(0.002)
    assert row["high"] - row["mean"] == pytest.approx(2.776445 * 0.001 / np.sqrt(6), rel=1e-6)
    assert row["mean"] - row["low90"] == pytest.approx(2.131847 * 0.001 / np.sqrt(6), rel=1e-6)
    assert (row["verdict"], row["alike"]) == ("not supported", True)


def test_an_amount_is_enough_only_if_all_larger_ones_are() -> None:
    levels = {"wanda": {2: 0.3, 10: 0.35, 50: 0.3, 70: 0.3}, "dsnot": {2: 0.3, 10: 0.3, 50: 0.3, 70: 0.3}}
    changes = size_changes(size_differences(runs(levels)))
    assert changes["method"].tolist() == ["wanda"] * 3 + ["dsnot"] * 3
    assert changes["n_samples"].tolist() == [50, 10, 2] * 2
    assert changes["verdict"].tolist() == ["not supported", "supported", "not supported"] + ["not supported"] * 3
    assert changes["alike"].tolist() == [True, False, False, True, True, True]
    assert (enough(changes, "wanda"), enough(changes, "dsnot")) == (50, 2)
    assert enough(changes.assign(alike=False), "wanda") is None


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (["not supported", "not supported"], "supported"),
        (["not supported", "inconclusive"], "inconclusive"),
        (["inconclusive", "supported"], "not supported"),
    ],
)
def test_lengths_are_of_no_matter_if_all_are_alike(verdicts: list[str], verdict: str) -> None:
    assert size_is_of_no_matter(pd.DataFrame({"verdict": verdicts})) == verdict


def test_the_two_grids_are_told_apart() -> None:
    cfg = SimpleNamespace(methods=["wanda", "sparsegpt"], amounts=[2, 8], seq_len=64, lengths=[64, 256], n_tokens=512)
    sizes = [(2, 64), (8, 64), (2, 256), (9, 64), (8, 128)]
    table = pd.DataFrame([(m, n, length) for m in cfg.methods for n, length in sizes],
                         columns=["method", "n_samples", "seq_len"])  # fmt: skip
    assert amount_runs(cfg, table).to_numpy().tolist() == [
        [method, n, 64] for method in ("wanda", "sparsegpt") for n in (2, 8)
    ]
    assert length_runs(cfg, table).to_numpy().tolist() == [["wanda", 8, 64], ["wanda", 2, 256]]


def test_values_are_ordered_whatever_the_rows_are() -> None:
    amounts, texts, values = values_of(runs().iloc[::-1], "sparsegpt")
    assert (amounts, texts, values.shape) == ([2, 10, 50], ["code", "c4"], (3, 2, 3))
    assert_allclose(values[:, 1], [[0.89, 0.90, 0.91], [0.39, 0.40, 0.41], [0.24, 0.25, 0.26]])


# --- gaps ---------------------------------------------------------------------------------------------------


def test_gap_by_hand() -> None:
    # wanda: at 10 windows code is lowered by 0.03 in all draws, so its gap to c4 is 0.17 there, and grows by 0.03
    table = runs()
    table.loc[(table["source"] == "code") & (table["n_samples"] == 10), "damage"] -= 0.03
    gaps = gap_table(table)
    assert gaps[["method", "n_samples"]].to_numpy().tolist() == [[m, n] for m in LEVELS for n in (2, 10, 50)]
    row = gaps.iloc[1]
    assert (row["worst"], row["best"]) == ("code", "c4")
    assert (row["gap"], row["change"]) == (pytest.approx(0.17), pytest.approx(0.03))
    # draws -0.01, 0, 0.01 of both texts: half = t(0.975, df 4) * sqrt(2 * 1e-4 / 3)
    half = 2.776445 * np.sqrt(2e-4 / 3)
    assert_allclose(gaps["high"] - gaps["gap"], half, rtol=1e-6)
    assert row["change_low90"] == pytest.approx(row["change_high"])  # nested draws cancel
    assert gaps.loc[gaps["n_samples"] == 50, ["change", "change_low90"]].isna().all(axis=None)


def test_the_two_texts_of_a_gap_stay_the_same() -> None:
    table = runs({"wanda": {2: 0.3, 10: 0.3, 50: 0.3}})
    table.loc[(table["source"] == "code") & (table["n_samples"] == 50), "damage"] -= 0.25
    gaps = gap_table(table)
    assert set(gaps["worst"]) == {"code"}
    assert_allclose(gaps["gap"], [0.2, 0.2, -0.05])


def test_limits_of_a_changing_gap_are_those_of_independent_texts() -> None:
    # c4 keeps its damage; code's later fall is 0.01, 0.02, 0.03: change -0.02, se = 0.01 / sqrt 3, df 2
    table = runs({"wanda": {2: 0.3, 10: 0.3}})
    table.loc[(table["source"] == "code") & (table["n_samples"] == 10), "damage"] -= [0.01, 0.02, 0.03]
    row = gap_table(table).iloc[0]
    assert row["change"] == pytest.approx(-0.02)
    assert row["change_high"] + 0.02 == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-6)
    assert row["change_low90"] + 0.02 == pytest.approx(-2.919986 * 0.01 / np.sqrt(3), rel=1e-6)


@pytest.mark.parametrize(
    ("changed", "low90", "high", "verdict"),
    [
        ("not supported", -0.009, 0.02, "supported"),
        ("not supported", 0.05, 0.2, "supported"),  # a growing gap is not closed
        ("not supported", -0.01, 0.02, "inconclusive"),
        ("not supported", -0.05, -0.011, "not supported"),  # closing
        ("inconclusive", -0.001, 0.001, "inconclusive"),
        ("supported", -0.001, 0.001, "not supported"),  # more text still changes the damage
    ],
)
def test_rule_1_at_its_edges(changed: Any, low90: float, high: float, verdict: str) -> None:
    assert amount_is_enough(changed, low90, high) == verdict


# --- draws --------------------------------------------------------------------------------------------------


def test_draw_difference_by_hand() -> None:
    # variances 1 and 1: Satterthwaite's df 4; chi-square(4) has its quantiles at 11.143287 and 0.484419
    found = draw_difference([[0.0, 1.0, 2.0], [7.0, 6.0, 5.0]])
    assert_allclose(
        [found.mean, found.low, found.high],
        [np.sqrt(2), np.sqrt(2 * 4 / 11.143287), np.sqrt(2 * 4 / 0.484419)],
        rtol=1e-6,
    )
    # variances 1 and 0: df 2, quantiles 7.377759 and 0.050636
    found = draw_difference([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
    assert_allclose([found.mean, found.low, found.high], [1, np.sqrt(2 / 7.377759), np.sqrt(2 / 0.050636)], rtol=1e-4)


@pytest.mark.parametrize(("scales", "least", "most"), [((1, 1, 1), 0.96, 0.99), ((1, 2, 4), 0.93, 0.97)])
def test_draw_difference_covers_what_it_promises(scales: tuple[int, ...], least: float, most: float) -> None:
    """2,000 simulated experiments; measured with 4,000: 0.975 and 0.954."""
    rng = np.random.default_rng(3)
    truth = np.sqrt(2 * np.mean(np.square(scales)))
    covered = 0
    for _ in range(2000):
        found = draw_difference(np.array(scales)[:, None] * rng.normal(size=(3, 3)))
        assert found.low is not None and found.high is not None
        covered += found.low < truth < found.high
    assert least < covered / 2000 < most


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0], [2.0]]])
def test_draw_difference_needs_two_draws(values: Any) -> None:
    with pytest.raises(InputError, match="draw_difference"):
        draw_difference(values)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.011, 0.05, "supported"),
        (0.009, 0.05, "inconclusive"),
        (0.001, 0.0099, "not supported"),
        (None, None, "inconclusive"),
    ],
)
def test_beyond_at_its_edges(low: float | None, high: float | None, verdict: str) -> None:
    assert beyond(Interval(0.02, low, high, 3)) == verdict


def test_spread_and_exponent_by_hand() -> None:
    # draws of 0.08, 0.02, 0.02 times (-1, 0, 1) at 2, 8, 32 windows: b = 1/2 (see test_inference), whatever the text
    table = runs({"wanda": {2: 0.3, 8: 0.3, 32: 0.3}})
    scale = table["n_samples"].map({2: 8.0, 8: 2.0, 32: 2.0})
    table["damage"] += (table["seed"] - 1) * 0.01 * (scale - 1)
    spreads = spread_table(table)
    assert_allclose(spreads["sd"], [0.08, 0.02, 0.02])
    assert_allclose(spreads["range"], [0.16, 0.04, 0.04])
    assert_allclose(spreads["rms"], np.sqrt(2) * spreads["sd"])
    assert spreads["verdict"].tolist() == ["supported", "supported", "supported"]
    (row,) = exponent_table(table).to_dict("records")
    assert_allclose([row["beta"], row["low"], row["high"]], 0.5)
    assert row["verdict"] == "supported"


# --- methods ------------------------------------------------------------------------------------------------


def test_gains_by_hand() -> None:
    # sparsegpt gains 0.65, wanda 0.02, in every pair of runs
    found = gain_difference(runs(), ["sparsegpt", "wanda"])
    assert_allclose([found.mean, found.low, found.high], 0.63)
    assert found.n == 6


@pytest.mark.parametrize(
    ("methods", "pair"),
    [
        (["wanda", "sparsegpt"], ("sparsegpt", "wanda")),
        (["dsnot", "wanda", "sparsegpt"], ("sparsegpt", "wanda")),
        (["sparsegpt", "dsnot"], ("sparsegpt", "dsnot")),
        (["sparsegpt"], None),
        (["wanda", "wanda_variant"], None),
    ],
)
def test_w4_needs_both_methods(methods: list[str], pair: tuple[str, str] | None) -> None:
    assert compared_methods(methods) == pair


# --- verdicts -----------------------------------------------------------------------------------------------


def config(methods: list[str]) -> SimpleNamespace:
    return SimpleNamespace(methods=methods, amounts=[2, 10, 50], seq_len=64, lengths=[64], n_tokens=640)


def test_judge_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    table = runs()
    table.loc[table["n_samples"] == 2, "damage"] += (table["seed"] - 1) * 0.01  # twice the spread
    floor = table.iloc[:3].assign(source="random", damage=3.0)
    monkeypatch.setattr(amount_tables, "to_frame", tidy)
    found = judge(config(list(LEVELS)), pd.concat([table, floor]))  # type: ignore[arg-type]
    assert [(j.claim, j.verdict, j.figure) for j in found] == [
        ("J5", "inconclusive", "fig-amount-changes"),  # 0.01 is not within 0.01, nor beyond it
        ("J6", "supported", "fig-amount-spread"),
        ("W1", "inconclusive", "fig-amount-spread"),  # 0.014, low limit 0.0085
        ("W4", "supported", "fig-amount-changes"),
    ]
    assert found[0].statistic.startswith(
        "wanda, 10 against 50 windows: damage +0.010 [+0.010, +0.010] (90 %), gap between code and c4 grows by "
    )
    # s.d. 0.02, 0.01, 0.01 at 2, 10, 50: in units of log 5 the slope is -log 2 / 2, so b = 0.347 / 1.609
    assert "β = 0.22 [0.22, 0.22]" in found[1].statistic
    assert "two draws of one text differ by 0.014 [0.008, 0.041]" in found[2].statistic
    assert "sparsegpt gains 0.650, no amount below 50 is surely enough" in found[3].statistic
    assert "difference of gains 0.630 [0.630, 0.630] nats per token" in found[3].statistic


def test_judge_decides_by_the_first_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amount_tables, "to_frame", tidy)
    steady = runs({"dsnot": {2: 0.3, 10: 0.3, 50: 0.3}, "wanda": LEVELS["sparsegpt"]})
    first, second = (judge(config(order), steady) for order in (["dsnot", "wanda"], ["wanda", "dsnot"]))  # type: ignore[arg-type]
    assert [j.claim for j in first] == ["J5", "J6", "W1"]  # without SparseGPT no W4
    assert (first[0].verdict, second[0].verdict) == ("supported", "not supported")
