"""What holds at every level: magnitude, the best text and agreement by hand, and the verdicts of the chapter."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from test_scaling_levels import LEVELS, TEXTS, runs, tidy

from calib_study import scaling_tables
from calib_study.scaling_tables import (
    agreement_table,
    best_everywhere,
    candidates,
    judge,
    magnitude_table,
    place_table,
    worst_difference,
)
from calib_study.verdicts import Judgement


def of_level(table: pd.DataFrame, sparsity: float, pattern: str = "unstructured") -> "pd.Series[bool]":
    return (table["sparsity"] == sparsity) & (table["pattern"] == pattern)


# --- magnitude ----------------------------------------------------------------------------------------------


def test_magnitude_by_hand() -> None:
    table = magnitude_table(runs())
    row = table[(table["method"] == "wanda") & of_level(table, 0.7)].iloc[0]
    # math does 4.2, magnitude 12; s = 0.03 over 3 draws, 18 comparisons: 6 cells of 3 texts
    assert row[["worst", "verdict"]].tolist() == ["math", "not supported"]
    assert row[["mean", "magnitude", "difference"]].tolist() == pytest.approx([4.2, 12, -7.8])
    half = stats.t.ppf(1 - 0.05 / 18, 6) * 0.03 / np.sqrt(3)
    assert_allclose([row["high"] - row["difference"], row["difference"] - row["low"]], half)
    # masks 12, 13, 14, paired by seed with 4.17, 4.2, 4.23
    assert (row["random"], row["from_random"]) == pytest.approx((13, 4.2 - 13))


def test_a_text_may_be_worse_at_one_level_and_open_at_another() -> None:
    table = runs()
    plain = table["method"] == "magnitude"
    table.loc[plain & of_level(table, 0.5), "damage"] = 1.2  # code 1.1, math 1.4
    table.loc[plain & of_level(table, 0.7), "damage"] = 4.2  # as much as math
    found = magnitude_table(table)
    found = found[found["method"] == "wanda"].set_index(["sparsity", "pattern"])["verdict"].to_dict()
    assert found == {
        (0.5, "unstructured"): "supported",
        (0.7, "unstructured"): "inconclusive",
        (0.5, "4:8"): "not supported",
        (0.5, "2:4"): "not supported",
    }


def test_limits_hold_for_all_texts_and_levels_at_once() -> None:
    """Six cells of three texts as bad as magnitude: one is called worse in 5 % of 1,000 experiments at most."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        lows = [worst_difference(1 + rng.normal(size=(3, 3)), 1.0, n_compared=18).low for _ in range(6)]
        wrong += max(low for low in lows if low is not None) > 0
    assert wrong / 1000 < 0.07  # Bonferroni's 0.05, and the standard error is 0.007


def test_magnitude_and_the_random_mask_may_be_left_out() -> None:
    table = runs()
    assert len(magnitude_table(table[table["method"] != "magnitude"])) == 0
    assert magnitude_table(table[table["method"] != "random"])[["random", "from_random"]].isna().all(axis=None)


# --- the best text ------------------------------------------------------------------------------------------


def test_candidates_by_hand() -> None:
    # s = 1, n = 3, k = 3: told apart if 4.339195 / sqrt 3 = 2.505236 apart
    draws = np.array([-1.0, 0.0, 1.0])
    assert candidates([draws, draws + 2.5052, draws + 9]) == [True, True, False]
    assert candidates([draws + 2.5053, draws, draws + 9]) == [False, True, False]
    # told apart, but by less than 0.01 nats per token
    tiny = draws / 1000
    assert candidates([tiny, tiny + 0.0099, tiny + 0.0101]) == [True, True, False]


def test_the_best_text_is_seldom_lost() -> None:
    """Of six texts, the truly best is among the candidates in 95 % of 400 simulated experiments at least."""
    rng = np.random.default_rng(1)
    means = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])[:, None]
    kept = np.mean([candidates(means + rng.normal(size=(6, 3)))[0] for _ in range(400)])
    assert kept > 0.94


def test_places_by_hand() -> None:
    table = place_table(runs())
    here = table[(table["method"] == "dsnot") & of_level(table, 0.7)]
    assert here["source"].tolist() == ["c4", "code", "math"]
    assert_allclose(here["mean"], [3, 3.3, 4.2])
    # 0, 0.1, 0.4 have mean 1/6 and s.d. sqrt(0.13 / 3)
    assert_allclose(here["place"], (np.array(list(TEXTS.values())) - 1 / 6) / np.sqrt(0.13 / 3))
    assert here["perhaps_best"].tolist() == [True, False, False]  # s 0.03, code 0.3 worse


@pytest.mark.parametrize(
    ("sets", "names", "verdict"),
    [
        (["a", "a"], ["a"], "not supported"),
        (["ab", "a"], ["a"], "inconclusive"),
        (["ab", "ab"], ["a", "b"], "inconclusive"),
        (["a", "b"], [], "supported"),
        (["ab", "bc", "ac"], [], "supported"),
    ],
)
def test_rule_5_at_its_edges(sets: list[str], names: list[str], verdict: str) -> None:
    rows = [("wanda", 0.1 * i, "unstructured", s, s in found) for i, found in enumerate(sets) for s in "abc"]
    table = pd.DataFrame(rows, columns=["method", "sparsity", "pattern", "source", "perhaps_best"])
    assert best_everywhere(table) == (names, verdict)


# --- agreement ----------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    table = runs({"wanda": list(LEVELS), "dsnot": list(LEVELS)[:2]})
    # dsnot ranks the texts the other way round at 70 %: code stays, c4 and math change places
    turned = (table["method"] == "dsnot") & of_level(table, 0.7)
    table.loc[turned, "source"] = table.loc[turned, "source"].map({"c4": "math", "code": "code", "math": "c4"})
    found = agreement_table(table).set_index(["over", "at"])
    assert found["n"].to_dict() == {
        ("methods", "50 %"): 2,
        ("methods", "70 %"): 2,
        ("levels", "wanda"): 4,
        ("levels", "dsnot"): 2,
    }
    assert_allclose(found["w"], [1, 0, 1, 0])
    assert_allclose(found["between"], [1, -1, 1, -1])
    assert_allclose(found["within"], 1)


def test_agreement_is_of_different_draws() -> None:
    """Equal texts whose draws are shared by two methods: the orders agree on the same draw, but not on another."""
    rng = np.random.default_rng(2)
    table = runs({"wanda": [(0.5, "unstructured")], "dsnot": [(0.5, "unstructured")]})
    between, within, same = [], [], []
    for _ in range(80):
        draws = rng.normal(size=9)
        for method in ("wanda", "dsnot"):
            table.loc[table["method"] == method, "damage"] = 1 + 0.1 * draws
        row = agreement_table(table).iloc[0]
        between.append(row["between"])
        within.append(row["within"])
        same.append(row["w"])
    assert_allclose(same, 1)  # shared draws
    assert abs(np.mean(between)) < 0.15 and abs(np.mean(within)) < 0.15


# --- verdicts -----------------------------------------------------------------------------------------------


def judged(table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, first: str = "wanda") -> dict[str, Judgement]:
    """Return by claim what is judged of records whose damages are those of the table."""
    monkeypatch.setattr(scaling_tables, "to_frame", lambda records: tidy(table))
    return {found.claim: found for found in judge(SimpleNamespace(first_reader=first), [])}


def test_all_claims_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(runs(), monkeypatch)
    assert {claim: j.verdict for claim, j in found.items()} == {
        "J1": "supported",
        "J2": "supported",
        "J4": "not supported",
        "J12": "supported",
        "W2": "not supported",
    }
    # the spread is the level's damage times 0.2081; the gap 0.4 of 1 + 1/6
    assert found["J1"].statistic.startswith(
        "s.d. between texts, draws taken out, 70 % minus 50 %: 0.416 [0.415, 0.417] nats per token, over the mean "
    )
    assert "worst minus best text at 50 %: 0.400, 34.3 % of the mean damage; at 70 %: 1.200, 34.3 %" in (
        found["J1"].statistic
    )
    assert "2:4 minus 50 %: 0.208 [0.2" in found["J2"].statistic
    assert "(math, wanda at 50 %)" in found["J4"].statistic and "above zero in 0 of 6 cells" in found["J4"].statistic
    assert "over 4 cells of method and level" in found["J12"].statistic
    assert "agreement of the methods on the order: W = 1.00 at 50 %, W = 1.00 at 70 %" in found["J12"].statistic
    assert found["W2"].statistic == (
        "texts that may be the best in all 6 cells of method and level: c4; lowest mean: c4 in 6"
    )


def test_what_was_not_run_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    table = runs({"wanda": list(LEVELS)[:2]})
    table = table[(table["method"] != "magnitude") & (table["pattern"] == "unstructured")]
    found = judged(table, monkeypatch)
    assert found["J1"].verdict == "supported"
    for claim, said in {
        "J2": "no two levels that differ in this alone",
        "J4": "magnitude was not run",
        "J12": "no level with two methods that read text",
    }.items():
        assert (found[claim].statistic, found[claim].verdict) == (said, "inconclusive")


def test_a_text_that_is_worse_anywhere_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    table = runs()
    table.loc[(table["method"] == "magnitude") & of_level(table, 0.5, "4:8"), "damage"] = 1.8  # math: 2.1
    found = judged(table, monkeypatch)["J4"]
    assert found.verdict == "supported"
    assert "(math, wanda at 4:8): 0.300" in found.statistic and "above zero in 1 of 6" in found.statistic


def test_figures_are_those_of_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    from calib_study.paths import root

    text = (root() / "notebooks" / "02_sparsity_scaling.py").read_text(encoding="utf-8")
    for found in judged(runs(), monkeypatch).values():
        assert f'"name": "{found.figure}"' in text
