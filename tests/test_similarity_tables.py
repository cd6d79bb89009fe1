"""Contrasts over models of known training text: worked by hand, and recovered from simulated damage."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_study.errors import InputError
from calib_study.similarity_tables import (
    advantage,
    cell_table,
    contrast_table,
    contrasts,
    judge_likeness,
    text_effects,
    trained_on,
)
from calib_study.specs import RunSpec
from calib_study.statistics import Interval
from calib_study.verdicts import shifted

CORPORA = ["chat", "math", "french"]
MODELS: dict[str, tuple[str, ...]] = {
    "box-math": ("math",),
    "box-chat": ("chat",),
    "box-french": ("french",),
    "box-all": ("chat", "math", "french"),
}


class Cfg:
    """What the tables need of checked parameters."""

    def crossed(self) -> dict[str, list[RunSpec]]:
        """No runs: cells are made up here."""
        return {}

    def __init__(self) -> None:
        self.glass_methods, self.corpora, self.glass_sparsities = ["wanda"], CORPORA, [0.5]


def cells(
    *, own: float = 0.0, match: float = 0.0, texts: tuple[float, ...] = (0, 0, 0), seen: float = 0.0, noise: float = 0.0
) -> pd.DataFrame:
    """Return cells of all models whose log damage is made of these effects, model by model at another level."""
    rng = np.random.default_rng(0)
    rows = []
    for model, calibrated, evaluated, view, seed in product(MODELS, CORPORA, CORPORA, ("unseen", "seen"), range(4)):
        known = MODELS[model]
        log = -1.0 + len(known) + texts[CORPORA.index(calibrated)] + noise * rng.normal()
        log -= own * (known == (calibrated,)) + match * (calibrated == evaluated) + seen * (view == "seen")
        rows.append((model, calibrated, view, evaluated, "wanda", 0.5, seed, np.exp(log), log))
    names = ["model", "calibrated", "view", "evaluated", "method", "sparsity", "seed", "damage", "log_damage"]
    return pd.DataFrame(rows, columns=names)


def test_the_advantage_by_hand() -> None:
    # row 0: others (2 + 6)/2 = 4, less 1: 3; row 1: (3 + 3)/2 - 2 = 1; row 2: (4 + 2)/2 - 5 = -2; mean 2/3
    table = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 3.0], [4.0, 2.0, 5.0]])[:, :, None]
    assert advantage(table) == pytest.approx([2 / 3])
    # column means 8/3, 2, 14/3; their mean 28/9
    assert text_effects(table)[:, 0] == pytest.approx([8 / 3 - 28 / 9, 2 - 28 / 9, 14 / 3 - 28 / 9])


def test_text_effects_are_those_of_the_least_squares_fit() -> None:
    table = np.random.default_rng(1).normal(size=(5, 5, 3))
    rows, columns = np.indices((5, 5)).reshape(2, -1)
    design = np.column_stack(
        [
            *(rows == i for i in range(5)),
            *(columns == i for i in range(4)),
            rows == columns,
        ]  # the last text is the base
    ).astype(float)
    fitted = np.linalg.lstsq(design, table.reshape(25, 3), rcond=None)[0]
    expected = np.vstack([fitted[5:9], np.zeros((1, 3))])
    np.testing.assert_allclose(text_effects(table), expected - expected.mean(axis=0), atol=1e-12)
    # the effect of the diagonal is `advantage`, less damage counted as positive, times (k - 1) / k over the fit's base
    np.testing.assert_allclose(advantage(table), -fitted[9], atol=1e-12)


def test_effects_are_told_apart() -> None:
    found = contrasts(cells(own=0.3, match=0.1, texts=(0.0, 0.2, 0.5), seen=0.04), MODELS, CORPORA)
    assert found.own.mean == pytest.approx(0.4)  # own text is likeness to training and to what is evaluated
    assert found.matching is not None and found.matching.mean == pytest.approx(0.1)
    assert found.beyond is not None and found.beyond.mean == pytest.approx(0.3)
    assert [found.texts[name].mean for name in CORPORA] == pytest.approx([-7 / 30, -1 / 30, 8 / 30])
    assert found.spread.mean == pytest.approx(0.5)
    assert found.decides.mean == pytest.approx(-0.1)
    assert found.seen is not None and found.seen.mean == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({"own": 0.3}, "supported"),
        ({"own": 0.3, "texts": (0.0, 0.2, 0.8)}, "not supported"),  # text that is better for all decides more
        ({"match": 0.3}, "inconclusive"),  # no more than likeness to what is evaluated
        ({"own": -0.1}, "not supported"),
        ({"own": 0.01}, "not supported"),  # too small to matter
    ],
)
def test_the_verdict(effects: dict[str, Any], verdict: str) -> None:
    judged = judge_likeness(cells(**effects, noise=0.01), Cfg(), MODELS)
    assert (judged.claim, judged.verdict, judged.figure) == ("J7", verdict, "fig-crossed")
    assert "own text does" in judged.statistic and "0.5" not in judged.verdict


def test_without_a_model_of_all_corpora_likeness_to_training_cannot_be_shown() -> None:
    table = cells(own=0.3, noise=0.01)
    models = {name: texts for name, texts in MODELS.items() if name != "box-all"}
    assert contrasts(table, models, CORPORA).beyond is None
    assert judge_likeness(table, Cfg(), models).verdict == "inconclusive"
    shown = contrast_table(table, Cfg(), models)
    assert list(shown["contrast"]) == ["own text", "best text", "own beyond best", "seen text"]


def test_what_is_missing_is_named() -> None:
    table = cells()
    with pytest.raises(InputError, match="one model for each of chat, math, french is needed"):
        trained_on({"box-math": ("math",)}, CORPORA)
    lost = table[~((table["model"] == "box-chat") & (table["calibrated"] == "math"))]
    with pytest.raises(InputError, match="box-chat calibrated with math needs one run a seed"):
        contrasts(lost, MODELS, CORPORA)
    twice = pd.concat([table, table])
    with pytest.raises(InputError, match="got 8 runs, 0 of them without damage"):
        contrasts(twice, MODELS, CORPORA)
    used = (table["model"] == "box-math") & (table["evaluated"] == "math") & (table["view"] == "unseen")
    table.loc[table.index[used][0], "log_damage"] = np.nan
    with pytest.raises(InputError, match="1 of them without damage"):
        contrasts(table, MODELS, CORPORA)
    assert contrasts(cells().query("view == 'unseen'"), MODELS, CORPORA).seen is None


def test_shifting_an_interval() -> None:
    assert shifted(Interval(1.0, 0.5, None, 3), -0.5) == Interval(0.5, 0.0, None, 3)


def run(run_id: str, source: str | None, dataset: str, value: float, method: str = "wanda") -> dict[str, Any]:
    text = {"source": source, "policy": "packed", "n_samples": 4, "seq_len": 16, "min_tokens": None, "seed": 0}
    fixed = {"model": "box", "dtype": "float32", "sparsity": 0.5, "pattern": "unstructured", "schedule": "dense"}
    how = {"method": method, "allocation": "uniform", "options": "", "metric": "perplexity"}
    return {"run_id": run_id, "dataset": dataset, "value": value, **text, **fixed, **how}


def test_cells_by_hand() -> None:
    frame = pd.DataFrame(
        [
            run("dense", None, "chat", 10.0, "dense"),
            run("dense", None, "math", 20.0, "dense"),
            run("a", "chat@unseen", "chat", 10.0 * np.e, "wanda"),
            run("a", "chat@unseen", "math", 20.0 * np.exp(0.5), "wanda"),
        ]
    )
    table = cell_table(frame, ["chat", "math"])
    assert table[["calibrated", "view", "evaluated"]].to_numpy().tolist() == [
        ["chat", "unseen", "chat"],
        ["chat", "unseen", "math"],
    ]
    assert table["damage"].to_list() == pytest.approx([1.0, 0.5])
    assert table["log_damage"].to_list() == pytest.approx([0.0, np.log(0.5)])
    frame.loc[frame["run_id"] == "a", "value"] = 5.0
    assert cell_table(frame, ["chat", "math"])["log_damage"].isna().all()
    frame.loc[frame["run_id"] == "a", "source"] = "chat"
    with pytest.raises(InputError, match="runs calibrated with chat, not with the part of a corpus"):
        cell_table(frame, ["chat", "math"])
