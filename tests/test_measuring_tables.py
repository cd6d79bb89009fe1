"""Tables of the chapter on measuring, from a made-up grid, and every branch of its rules."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from tiny_scores import LAYOUT, TASKS, grid, measured, records, settings

from calib_study.crossed import crossed_components
from calib_study.errors import InputError
from calib_study.measures import Answers
from calib_study.measuring_tables import (
    agreement_table,
    home_table,
    item_noise,
    keep_table,
    keeps_while,
    noise_table,
    opposite,
    reveal_table,
    steadier,
)
from calib_study.statistics import Interval


def test_measures_that_are_shares_of_one_another_agree() -> None:
    table, _ = measured()
    found = agreement_table(table, LAYOUT, ["damage", "jensen_shannon"])
    assert_allclose(found["mean"], 1)
    assert len(found) == 4


def test_every_text_is_best_at_home_in_the_made_up_grid() -> None:
    """On code, seed 0: c4 1.5, code 1.2, math 1.7. Means over both: c4 1.3, code 1.4, math 1.7. Correlation 0.5."""
    table, _ = measured()
    home = home_table(table, LAYOUT, ["answer_loss"]).set_index("text")
    assert home["best"].to_dict() == {"c4": "c4", "code": "code"} and home["at_home"].all()
    assert home.loc["c4", "mean"] == pytest.approx(1) and home.loc["code", "mean"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.9, -0.1, "supported"), (0.1, 0.9, "not supported"), (-0.1, 0.1, "inconclusive"), (None, None, "inconclusive")],
)
def test_the_other_way_round(low: float | None, high: float | None, verdict: str) -> None:
    assert opposite(Interval(0.0, low, high, 3)) == verdict


def test_what_a_measure_tells_beyond_damage() -> None:
    """Divergence is given an order of its own that the outcome follows; damage tells the rest."""
    table, _ = measured()
    rng = np.random.default_rng(0)
    own = rng.normal(size=len(table))
    told = table.assign(jensen_shannon=own, accuracy_loss=own + 0.3 * table["damage"])
    found = reveal_table(told, LAYOUT, ["damage", "jensen_shannon"], "accuracy_loss").set_index("measure")
    assert found.loc["jensen_shannon", "beyond"] > 0.8 and found.loc["jensen_shannon", "verdict"] == "supported"
    assert found.loc["damage", "verdict"] == "" and np.isnan(found.loc["damage", "beyond"])
    assert (found["n"] == 18).all()
    turned = reveal_table(told.assign(jensen_shannon=-own), LAYOUT, ["jensen_shannon"], "accuracy_loss")
    assert turned.loc[0, "verdict"] == "not supported" and turned.loc[0, "beyond_high"] < 0


def test_perplexity_and_accuracy_by_sparsity() -> None:
    """Magnitude loses 3 nats at 50 %, 1.8 at 30 %: perplexity e^3 - 1 and e^1.8 - 1 above the dense model's."""
    runs = [*grid(), settings("magnitude", None, 0, 0.3)]
    table, answered = measured(runs)
    chosen = table["method"].isin(["dense", "magnitude"]) | ((table["method"] == "wanda") & (table["source"] == "c4"))
    keep = keep_table(table[chosen], answered, seed=0)
    assert keep[["method", "sparsity", "n_seeds"]].values.tolist() == [
        ["magnitude", 0.3, 1],
        ["magnitude", 0.5, 1],
        ["wanda", 0.5, 3],
    ]
    assert_allclose(keep.loc[:1, "rise"], np.expm1([1.8, 3.0]))
    assert_allclose(keep.loc[0, ["rise_low", "rise_high"]].astype(float), np.expm1(1.8))
    assert keep.loc[2, "rise_low"] < keep.loc[2, "rise"] < keep.loc[2, "rise_high"]
    assert keep.loc[1, "loss"] == pytest.approx(table.set_index("run_id").loc["magnitude-None-0-0.5", "accuracy_loss"])
    assert keep["verdict"].tolist() == ["not supported"] * 3


@pytest.mark.parametrize(
    ("rise", "loss", "verdict"),
    [
        ((0.05, 0.01, 0.09), (0.02, 0.10), "supported"),
        ((0.50, 0.40, 0.60), (0.02, 0.10), "not supported"),  # perplexity is not kept
        ((0.05, 0.01, 0.09), (-0.01, 0.005), "not supported"),  # tasks do not degrade
        ((0.05, 0.01, 0.20), (0.02, 0.10), "inconclusive"),
        ((0.05, 0.01, 0.09), (-0.02, 0.10), "inconclusive"),
        ((0.05, 0.01, 0.09), (None, None), "inconclusive"),
    ],
)
def test_keeps_while(rise: tuple[float, ...], loss: tuple[float | None, float | None], verdict: str) -> None:
    assert keeps_while(rise, Interval(0.0, *loss, 3)) == verdict


def test_noise_is_split_into_text_draw_and_evaluation() -> None:
    table, answered = measured()
    parts = crossed_components(table, LAYOUT, records(grid()), answered)
    noise = noise_table(table, LAYOUT, parts, ["damage", "accuracy_loss"]).set_index("measure")
    found = parts["damage"].clipped
    assert noise.loc["damage", "draw"] == pytest.approx((found["seed"].mean + found["seed x method"].mean) ** 0.5)
    assert noise.loc["damage", "text"] == pytest.approx(found["source"].mean ** 0.5)
    assert noise.loc["damage", "signal"] > 1
    assert noise.loc["damage", "loss"] == pytest.approx(table.loc[table["method"].isin(LAYOUT[1]), "damage"].mean())


def noise(one: tuple[float, float], other: tuple[float, float]) -> pd.DataFrame:
    rows = [("damage", 2.0, *one), ("accuracy_loss", 0.1, *other)]
    return pd.DataFrame(rows, columns=["measure", "loss", "draw_low", "draw_high"])


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ((0.01, 0.02), "supported"),  # 10 to 20 % against 1 to 5 %
        ((0.0001, 0.0005), "not supported"),  # 0.1 to 0.5 %
        ((0.001, 0.02), "inconclusive"),
        ((float("nan"), 0.02), "inconclusive"),
    ],
)
def test_steadier(other: tuple[float, float], verdict: str) -> None:
    assert steadier(noise((0.02, 0.10), other)) == verdict


def test_item_noise_by_hand() -> None:
    """One task of 4 items, two runs: 1 1 0 0 and 1 0 1 0. s.d. 0.5774, s.e. 0.2887 of each; the difference 0 1 -1 0.

    Its s.d. is 0.8165, its s.e. 0.4082; needed: 4 (2.8016 * 0.4082 / 0.01)^2.
    """
    right = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    answered = Answers(("a", "b"), np.array(["t"] * 4), right, right)
    found = item_noise(answered, ["a", "b"])
    assert_allclose([found["one"], found["difference"]], [0.28868, 0.40825], rtol=1e-4)
    assert found["unpaired"] == pytest.approx(0.28868 * 2**0.5, rel=1e-4) and found["n_items"] == 4
    assert found["needed"] == pytest.approx(4 * (2.80159 * 0.408248 / 0.01) ** 2, rel=1e-3)
    with pytest.raises(InputError, match="at least 2 are needed"):
        item_noise(answered, ["a"])
    assert len(TASKS) == 12
