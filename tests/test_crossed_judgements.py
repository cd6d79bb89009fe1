"""What chapters 1 and 11 say of claims, from a made-up grid of which every number is known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_scores import LAYOUT, METHODS, SEEDS, TEXTS, grid, measured, records, settings

from calib_study import crossed_judgements, measures
from calib_study.crossed_judgements import judge_measuring, judge_sources
from calib_study.frames import damage_table
from calib_study.statistics import same_source_null

ASKED = {"n_seeds": 3, "sparsity": 0.5, "eval_sources": ["c4", "code"]}


def specs(runs: list[dict[str, Any]]) -> list[Any]:
    return [SimpleNamespace(run_id=run["run_id"]) for run in runs]


def perplexities(gap: float, noise: float, magnitude: float) -> pd.DataFrame:
    """Return a tidy frame: ln(perplexity / dense) is 1 + gap * place of the text + noise * seed, or `magnitude`."""
    runs = [(settings("dense", None, 0, 0.0), 0.0), (settings("magnitude", None, 0, 0.5), magnitude)]
    runs += [
        (settings("wanda", text, seed, 0.5), 1 + gap * place + noise * seed * (1 + 0.1 * place))
        for place, text in enumerate(TEXTS)
        for seed in SEEDS
    ]
    rows = [{**run, "metric": "perplexity", "dataset": "c4", "value": 20 * np.exp(loss)} for run, loss in runs]
    return pd.DataFrame(rows)


# --- chapter 1 ----------------------------------------------------------------------------------------------


def of_sources(monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame) -> list[Any]:
    monkeypatch.setattr(crossed_judgements, "to_frame", lambda _: frame)
    cfg: Any = SimpleNamespace(sources=[*TEXTS, "random"], methods=["magnitude", "wanda"], n_seeds=3)
    return crossed_judgements._of_sources(cfg, [])


def test_texts_that_differ_less_than_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts 0.3 apart from place to place: best minus worst 0.6. Magnitude 3, Wanda 1.3: 1.7. Draws hardly differ."""
    first, second = of_sources(monkeypatch, perplexities(0.3, 0.001, 3.0))
    assert [one.claim for one in (first, second)] == ["J3", "J3"]
    assert (first.verdict, second.verdict) == ("supported", "not supported")
    assert first.statistic.startswith("best minus worst of 3 texts 0.600 nats per token; if they were one")
    assert "less magnitude minus wanda: -1.099 [" in second.statistic  # 0.6 - (3 - 1.301), up to the draws
    assert (first.figure, second.figure) == ("fig-same-source-null", "fig-variance-shares")


def test_texts_that_differ_more_than_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    _, second = of_sources(monkeypatch, perplexities(0.3, 0.001, 1.4))
    assert second.verdict == "supported" and "magnitude minus wanda: 0.50" in second.statistic  # 0.6 - (1.4 - 1.3)


def test_the_numbers_are_those_of_the_chapters_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = perplexities(0.02, 0.05, 3.0)
    first, _ = of_sources(monkeypatch, frame)
    damage = damage_table(frame)
    wide = damage[damage["method"] == "wanda"].pivot(index="source", columns="seed", values="damage").loc[list(TEXTS)]
    null = same_source_null(wide.to_numpy(), seed=0)
    assert f"{null.observed:.3f} nats" in first.statistic and f"below {null.null_q95:.3f} in 95" in first.statistic
    assert first.verdict == "inconclusive" and null.p_value > 0.05


def crossing(**change: Any) -> Any:
    asked = {"sources": [*TEXTS, "random"], "methods": ["magnitude", *METHODS], "specs": lambda: specs(grid())}
    return SimpleNamespace(**ASKED | asked | change)


def of_crossing(monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame, cfg: Any) -> list[Any]:
    monkeypatch.setattr(crossed_judgements, "to_frame", lambda _: None)
    monkeypatch.setattr(measures, "results_by_run", lambda _: None)
    monkeypatch.setattr(measures, "answers_of", lambda _: None)
    monkeypatch.setattr(measures, "measure_table", lambda *_: table)
    return crossed_judgements._of_crossing(cfg, [])


def test_texts_and_methods_that_read_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wanda is 0.5 worse than SparseGPT: s.d. of the methods 0.354; without Wikipedia nothing is said of W6."""
    table, _ = measured()
    (found,) = of_crossing(monkeypatch, table, crossing())
    assert (found.claim, found.verdict, found.figure) == ("J3", "not supported", "fig-losses-by-text")
    assert found.statistic.startswith("among wanda, sparsegpt: s.d. of texts ")
    assert "less that of methods 0.354: -0." in found.statistic


@pytest.mark.parametrize(
    ("shift", "verdict", "estimate"),
    [(0.2, "supported", "0.2"), (0.0, "not supported", "0.0"), (-0.2, "not supported", "-0.2")],
)
def test_web_text_against_an_encyclopaedia(
    shift: float, verdict: str, estimate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code becomes Wikipedia, and on held-out code, the only text that is neither, `shift` worse than C4."""
    table, _ = measured()
    table = table.assign(source=table["source"].replace("code", "wikipedia"))
    web = table["source"] == "c4"
    own = table["source"] == "wikipedia"
    elsewhere = "damage on code"
    table.loc[own, elsewhere] = table.loc[web, elsewhere].to_numpy() + shift
    table.loc[own, "damage on c4"] = 100.0  # at home of web text: does not count
    cfg = crossing(sources=["c4", "wikipedia", "math"])
    _, found = of_crossing(monkeypatch, table, cfg)
    assert (found.claim, found.verdict) == ("W6", verdict)
    assert found.statistic.startswith(f"damage by SparseGPT on held-out code: with wikipedia minus with c4 {estimate}")


def test_without_sparsegpt_nothing_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = measured()
    table = table.assign(
        source=table["source"].replace("code", "wikipedia"), method=table["method"].replace("sparsegpt", "dsnot")
    )
    found = of_crossing(monkeypatch, table, crossing(sources=["c4", "wikipedia", "math"], methods=["wanda", "dsnot"]))
    assert [one.claim for one in found] == ["J3"]


def test_each_grid_gets_its_own_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of both grids come together and in any order; the dense model is in each, scored otherwise."""
    seen: dict[str, list[str]] = {}
    monkeypatch.setattr(
        crossed_judgements, "_of_sources", lambda _, own: seen.update(plain=[r.run_id for r in own]) or []
    )
    monkeypatch.setattr(
        crossed_judgements, "_of_crossing", lambda _, own: seen.update(crossed=[r.run_id for r in own]) or []
    )
    names = {"plain": ["a", "b"], "crossed": ["c", "d"]}
    other = SimpleNamespace(specs=lambda: [SimpleNamespace(run_id=name) for name in names["crossed"]])
    cfg: Any = SimpleNamespace(
        specs=lambda: [SimpleNamespace(run_id=name) for name in names["plain"]], crossed=lambda: other
    )
    given: Any = [SimpleNamespace(run_id=name) for name in "dbca"]
    assert judge_sources(cfg, given) == [] and seen == names


# --- chapter 11 ---------------------------------------------------------------------------------------------


def of_measuring(monkeypatch: pytest.MonkeyPatch, change: Any = lambda table: table) -> dict[str, Any]:
    table, answers = measured()
    table["jensen_shannon"] = np.random.default_rng(0).normal(size=len(table))  # or it would be a tenth of damage
    monkeypatch.setattr(crossed_judgements, "to_frame", lambda _: None)
    monkeypatch.setattr(measures, "results_by_run", lambda _: None)
    monkeypatch.setattr(measures, "answers_of", lambda _: answers)
    monkeypatch.setattr(measures, "measure_table", lambda *_: change(table))
    cfg: Any = SimpleNamespace(**ASKED, sources=[*TEXTS, "random"], methods=["magnitude", *METHODS])
    return {one.claim: one for one in judge_measuring(cfg, records(grid()))}


def test_each_claim_has_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_measuring(monkeypatch)
    assert {claim: one.figure for claim, one in found.items()} == {
        "J13": "fig-home", "K2": "fig-reveal", "K1": "fig-keeps", "W5": "fig-noise",
    }  # fmt: skip


def test_order_at_home_against_accuracy() -> None:
    """Accuracy lost is made the reverse of damage on the first held-out text, then the same."""
    table, _ = measured()
    at_home = crossed_judgements._at_home
    found = at_home(table.assign(accuracy_loss=-table["damage on c4"]), LAYOUT, ["c4", "code"])
    assert (found.claim, found.verdict) == ("J13", "supported")
    assert found.statistic == "rank correlation over texts of damage on c4 with accuracy lost -1.00 [-1.00, -1.00]"
    found = at_home(table.assign(accuracy_loss=table["damage on c4"]), LAYOUT, ["c4", "code"])
    assert found.verdict == "not supported"


def test_order_is_that_on_wikipedia_if_it_is_held_out() -> None:
    table, _ = measured()
    table = table.rename(columns={"damage on code": "damage on wikipedia"})
    table = table.assign(accuracy_loss=-table["damage on wikipedia"])
    found = crossed_judgements._at_home(table, LAYOUT, ["c4", "wikipedia"])
    assert "damage on wikipedia with accuracy lost -1.00" in found.statistic


def test_kept_perplexity_is_of_the_second_method_and_the_first_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wanda with C4 has damage 1.3, 1.31, 1.32 on average of both texts: e to the 1.31 is 3.71, a rise of 271 %."""
    found = of_measuring(monkeypatch)["K1"]
    assert found.statistic.startswith("wanda with c4 at 50 %: perplexity +271 % [")
    assert found.verdict == "not supported"


def test_divergence_beyond_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divergence has an order of its own, which accuracy follows; damage tells the rest."""

    def followed(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(accuracy_loss=table["jensen_shannon"] + 0.3 * table["damage"])

    found = of_measuring(monkeypatch, followed)["K2"]
    assert found.verdict == "supported" and "given damage +0." in found.statistic


def test_steadiness_is_said_of_damage_and_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_measuring(monkeypatch)["W5"]
    assert "damage, all texts" in found.statistic and "accuracy lost" in found.statistic
