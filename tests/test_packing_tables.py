"""What a cut changes: spreads, effects and shares by hand and by simulation, the verdict at its edges."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from test_amount_tables import tidy

from calib_study import packing_tables
from calib_study.errors import InputError
from calib_study.packing_tables import (
    CUTS,
    PAPERS,
    cut_differences,
    cut_order_table,
    cut_runs,
    cut_shares,
    documents_table,
    in_rows,
    judge,
    packed_text,
    packing_difference,
    spread_table,
    text_means,
    values_of,
)
from calib_study.statistics import variance_shares
from calib_study.verdicts import at_least

TEXTS = ("c4", "wikipedia", "math")
LEVEL = {"c4": 0.5, "wikipedia": 0.7, "math": 0.9}


def runs(
    extra: dict[tuple[str, str], float] | None = None, draw: float = 0.01, methods: Any = ("wanda",)
) -> pd.DataFrame:
    """Return a row for each run, without `selection` and `cut`; extra: damage by (text, cut) on top."""
    rows = [
        (method, text, seed, policy, least, LEVEL[text] + draw * seed + (extra or {}).get((text, cut), 0.0))
        for method in methods
        for seed in range(3)
        for (policy, least), cut in zip(
            product(("document", "packed"), (None, 384)), (*CUTS[2:], *CUTS[:2]), strict=True
        )
        for text in TEXTS
    ]
    return pd.DataFrame(rows, columns=["method", "source", "seed", "policy", "min_tokens", "damage"])


def values(*shape: int) -> np.ndarray:
    """Return made-up damages (n_texts, n_policies, n_selections, n_seeds)."""
    return np.random.default_rng(5).normal(size=shape)


# --- runs ---------------------------------------------------------------------------------------------------


def test_cuts_are_named_and_ordered() -> None:
    assert CUTS == ("packed, all", "packed, long", "document, all", "document, long")
    table = cut_runs(runs().sample(frac=1, random_state=0))
    assert list(dict.fromkeys(table["cut"])) == list(CUTS)
    assert (table["selection"] == "long").equals(table["min_tokens"].notna())


@pytest.mark.parametrize(
    ("texts", "packed"),
    [(["c4", "wikipedia"], "wikipedia"), (["c4", "hub:wikipedia"], "hub:wikipedia"), (["math", "c4"], "math")],
)
def test_wikipedia_or_else_the_first_text_is_packed(texts: list[str], packed: str) -> None:
    assert packed_text(texts) == packed


def test_values_have_their_axes_in_order() -> None:
    texts, found = values_of(cut_runs(runs({("math", "document, all"): 0.2})), "wanda")
    assert (texts, found.shape) == (list(TEXTS), (3, 2, 2, 3))
    assert_allclose(found[2], [[[0.9, 0.91, 0.92]] * 2, [[1.1, 1.11, 1.12], [0.9, 0.91, 0.92]]])


# --- rule 1 -------------------------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    x = values(3, 2, 2, 5)
    rows = in_rows(x, 1)
    assert rows.shape == (5, 3, 5)
    for row, (policy, selection) in zip(rows, product(range(2), range(2)), strict=False):
        assert_allclose(row, x[:, policy, selection])
    assert_allclose(rows[-1], [x[0, 1, 1], x[1, 0, 0], x[2, 1, 1]])


def test_packing_difference_by_hand() -> None:
    # two texts, s.d. = |difference| / sqrt 2. Cut alike they differ by 1, 2, 3, 4: mean 2.5. The second packed from
    # all documents is 3 and the first in single windows from long ones is 0 (seed 0): 3 - 2.5 = 0.5; seed 1: 1.5
    x = np.zeros((2, 2, 2, 2))
    x[0, :, :, 0] = [[2, 1], [0, 0]]
    x[1, :, :, 0] = [[3, 3], [3, 4]]
    x[..., 1] = x[..., 0]
    x[0, 0, 0, 1], x[1, 0, 0, 1] = 3.0, 4.0
    found = packing_difference(x, 1)
    assert found.mean == pytest.approx(1.0 / np.sqrt(2))
    assert found.high is not None
    # 0.5 and 1.5 over sqrt 2: s = 0.5, half = t(0.975, 1) * 0.5 / sqrt 2
    assert found.high - found.mean == pytest.approx(12.7062 * 0.5 / np.sqrt(2), rel=1e-5)


def test_a_cut_that_moves_all_texts_alike_makes_no_difference() -> None:
    x = values(5, 2, 2, 3)
    shifted = x[:, :1, :1] + np.array([[0.0, 0.3], [0.1, 0.7]])[None, :, :, None]
    spreads = in_rows(shifted, 2).std(axis=1, ddof=1)
    assert_allclose(spreads[:-1], spreads[:1].repeat(4, axis=0))  # equal cuts are alike, the mixed one need not be


def test_without_an_effect_of_the_cut_the_claim_is_seldom_decided() -> None:
    """Six texts, 1,500 simulated experiments in which every cut is the same but for draws: about 5 % are decided."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(6, 1, 1, 1))
    found = [at_least(packing_difference(level + 0.1 * rng.normal(size=(6, 2, 2, 3)), 1)) for _ in range(1500)]
    assert 0.03 < np.mean([verdict != "inconclusive" for verdict in found]) < 0.07


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 2, 2, 3)])
def test_packing_difference_needs_texts(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"in_rows takes|at least 2 are needed, got 1"):
        packing_difference(values(*shape), 0)


def test_spreads_and_deficits_by_hand() -> None:
    # s.d. of 0.5, 0.7, 0.9 is 0.2; with wikipedia 0.3 worse when packed from all, 0.5, 1.0, 0.9: s.d. sqrt(0.07)
    table = spread_table(cut_runs(runs({("wikipedia", "packed, all"): 0.3})))
    assert table["cut"].tolist() == [*CUTS, PAPERS]
    assert set(table["packed"]) == {"wikipedia"}
    assert_allclose(table["sd"], [np.sqrt(0.07), 0.2, 0.2, 0.2, np.sqrt(0.07)])
    assert_allclose(table["deficit"], [0.3, 0, 0, 0, 0.3], atol=1e-12)
    assert_allclose(table["high"] - table["low"], 0, atol=1e-9)  # draws move all texts alike


def test_text_means_by_hand() -> None:
    table = text_means(cut_runs(runs({("c4", "document, long"): 0.1})))
    wide = table.pivot(index="cut", columns="source", values="mean")
    assert_allclose(wide.loc[PAPERS, list(TEXTS)], [0.61, 0.71, 0.91])
    assert_allclose(wide.loc["document, all", list(TEXTS)], [0.51, 0.71, 0.91])


# --- effects ------------------------------------------------------------------------------------------------


def test_effects_by_hand() -> None:
    # single windows 0.04 better for math, whatever the selection; long documents 0.02 worse for c4 when packed
    extra = {("math", "document, all"): -0.04, ("math", "document, long"): -0.04, ("c4", "packed, long"): 0.02}
    table = cut_differences(cut_runs(runs(extra)))
    assert len(table) == 2 * 3 * 3
    means = table.groupby(["change", "source"])["difference"].mean()
    policy = {"c4": -0.01, "wikipedia": 0.0, "math": -0.04}  # c4: half of 0.02 less
    selection = {"c4": 0.01, "wikipedia": 0.0, "math": 0.0}
    assert means["document − packed"].to_dict() == pytest.approx(policy, abs=1e-12)
    assert means["long − all"].to_dict() == pytest.approx(selection, abs=1e-12)


def test_effects_are_of_each_method() -> None:
    both = pd.concat([runs(), runs({("c4", "packed, all"): -0.08}, methods=("dsnot",))])
    table = cut_differences(cut_runs(both))
    means = table.groupby(["method", "change"])["difference"].mean()
    assert means["wanda"].abs().max() < 1e-12
    assert_allclose(means["dsnot"], 0.08 / 2 / 3)


def test_order_by_hand() -> None:
    order = cut_order_table(cut_runs(runs({("c4", "document, long"): 0.3}))).set_index("cut")
    assert order["tau"].to_dict() == pytest.approx({**dict.fromkeys(CUTS[:3], 1.0), CUTS[3]: 1 / 3})
    assert order["verdict"].tolist() == ["", "not supported", "not supported", "supported"]
    assert (order.loc["document, long", "reversed"], order.loc["document, long", "best"]) == (1, "wikipedia")


def test_shares_name_what_explains_the_damage() -> None:
    base = np.zeros((3, 2, 2, 3)) + 1e-9 * values(3, 2, 2, 3)
    text, policy, selection = (np.array(v, dtype=float) for v in ([-1, 0, 1], [-1, 1], [-1, 1]))
    effects = {
        "text": text[:, None, None],
        "policy": policy[None, :, None],
        "selection": selection[None, None],
        "text x policy": text[:, None, None] * policy[None, :, None],
        "text x selection": text[:, None, None] * selection,
        "policy x selection": policy[None, :, None] * selection,
        "text x policy x selection": text[:, None, None] * policy[None, :, None] * selection,
    }
    for name, effect in effects.items():
        shares = cut_shares(base + effect[..., None])
        assert list(shares) == [*effects, "draw"]
        assert shares[name].mean == pytest.approx(1)
    draws = cut_shares(base + np.array([-1.0, 0.0, 1.0]))
    assert draws["draw"].mean == pytest.approx(1)


def test_shares_sum_to_one_and_are_those_of_two_factors() -> None:
    x = values(5, 2, 2, 3)
    shares = cut_shares(x)
    assert sum(share.mean for share in shares.values()) == pytest.approx(1)
    # uncorrected, with the selection left out: the layout of chapter 1
    sums = packing_tables._sums_of_squares(x)
    one = variance_shares(np.concatenate([x[:, :, 0], x[:, :, 1]], axis=-1))
    total = sums.sum()
    assert total == pytest.approx(((x - x.mean()) ** 2).sum())
    assert sums[0] / total == pytest.approx(one["source"])
    assert sums[1] / total == pytest.approx(one["method"])
    assert sums[3] / total == pytest.approx(one["source x method"])


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 2, 2, 2)])
def test_shares_need_three_seeds(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cut_shares"):
        cut_shares(values(*shape))


# --- records ------------------------------------------------------------------------------------------------


def record(source: str | None, policy: str, least: int | None, n: int) -> SimpleNamespace:
    text = SimpleNamespace(source=source, policy=policy, min_tokens=least) if source else None
    facts = SimpleNamespace(n_documents=n) if source else None
    return SimpleNamespace(spec=SimpleNamespace(calibration=text), calibration=facts)


def test_documents_are_counted_by_text_and_cut() -> None:
    records: Any = [
        record(None, "", None, 0),
        record("random", "packed", None, 0),
        *(record("c4", "packed", None, n) for n in (5, 7)),
        record("c4", "document", 384, 8),
        record("code", "packed", None, 3),
    ]
    table = documents_table(records)
    assert table.loc["c4", ["packed, all", "document, long"]].tolist() == [6, 8]
    assert list(table.index) == ["c4", "code"]


@pytest.mark.parametrize(
    ("extra", "verdict"),
    [
        ({("wikipedia", "packed, all"): 0.6}, "supported"),
        ({("wikipedia", "packed, long"): 0.6}, "not supported"),  # in a cut that the papers do not use
    ],
)
def test_judge_by_hand(monkeypatch: pytest.MonkeyPatch, extra: dict[tuple[str, str], float], verdict: str) -> None:
    # another method, whose texts are cut as they like, does not decide
    both = pd.concat([runs(extra), runs({("math", cut): 0.5 * k for k, cut in enumerate(CUTS)}, methods=("dsnot",))])
    monkeypatch.setattr(packing_tables, "to_frame", tidy)
    (found,) = judge(SimpleNamespace(methods=["wanda", "dsnot"]), both.assign(n_samples=8, seq_len=64))  # type: ignore[arg-type]
    assert (found.claim, found.verdict, found.figure) == ("J14", verdict, "fig-texts-by-cut")
    # s.d. of 0.5, 1.3, 0.9 is 0.4, of 0.5, 0.7, 0.9 it is 0.2: cut alike (0.4 + 3 * 0.2) / 4 = 0.25 in both cases
    papers, difference = ("0.400", "+0.150") if verdict == "supported" else ("0.200", "-0.050")
    assert found.statistic == (
        f"wanda: s.d. between texts {papers} with wikipedia cut ‘packed, all’ and the others ‘document, long’, 0.250 "
        f"when cut alike; difference {difference} [{difference}, {difference}] nats per token"
    )
