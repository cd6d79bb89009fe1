"""Likeness and damage, and what a score of familiarity is worth: by hand, and on made-up scores."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from calib_study.errors import InputError
from calib_study.likeness_tables import (
    MEASURES,
    correlation_table,
    grouped,
    judge_familiar,
    likeness_table,
    membership_scores_table,
    membership_table,
)


def scores(mean: float, n: int = 40, seed: int = 0) -> dict[str, Any]:
    """Return scores of windows around a mean."""
    values = mean + 0.1 * np.random.default_rng(seed).normal(size=n)
    return {"nll": -values, "min_k": values - 1, "min_k_plus_plus": values}


def texts(damages: list[float]) -> pd.DataFrame:
    names = [f"text{i}" for i in range(len(damages))]
    damage = pd.DataFrame({"source": names * 2, "damage": [d - 0.01 for d in damages] + [d + 0.01 for d in damages]})
    found = {name: scores(-float(i), seed=i) for i, name in enumerate(names)}
    apart = {
        name: {"unigram_divergence": 0.1 * i, "norm_distance": 0.2 * (i % 2) + 0.01 * i} for i, name in enumerate(names)
    }
    return likeness_table(damage, found, apart)


def test_a_row_for_each_text() -> None:
    table = texts([0.5, 0.6, 0.9])
    assert list(table.columns) == ["source", "damage", *MEASURES]
    assert table["damage"].to_list() == pytest.approx([0.5, 0.6, 0.9])
    assert table["unigram_divergence"].to_list() == pytest.approx([0.0, 0.1, 0.2])
    assert table["log_perplexity"].to_list() == pytest.approx([0.0, 1.0, 2.0], abs=0.05)
    with pytest.raises(InputError, match="no scores of c4"):
        likeness_table(pd.DataFrame({"source": ["c4"], "damage": [1.0]}), {}, {})


def test_rank_correlations() -> None:
    found = correlation_table(texts([0.1, 0.2, 0.3, 0.5, 0.4, 0.6, 0.7])).set_index("measure")
    # ranks 1 2 3 5 4 6 7 against 1 to 7: 1 - 6 * 2 / (7 * 48)
    assert found.loc["unigram_divergence", "mean"] == pytest.approx(1 - 12 / 336)
    assert found.loc["min_k_plus_plus", "mean"] == pytest.approx(-(1 - 12 / 336))  # lower where damage is higher
    assert (
        found.loc["log_perplexity", "low"] < found.loc["log_perplexity", "mean"] < found.loc["log_perplexity", "high"]
    )
    assert (found["n"] == 7).all()
    with pytest.raises(InputError, match="3 texts; at least 4"):
        correlation_table(texts([0.1, 0.2, 0.3]))


def test_groups_join_the_texts_of_a_view() -> None:
    by_source = {
        "chat@seen": scores(1.0, 3),
        "math@seen": scores(2.0, 4),
        "chat@unseen": scores(0.0, 5),
        "own": scores(3),
    }
    found = grouped(by_source)
    assert {group: len(arrays["nll"]) for group, arrays in found.items()} == {"seen": 7, "unseen": 5, "own text": 40}
    np.testing.assert_array_equal(found["seen"]["min_k"][:3], by_source["chat@seen"]["min_k"])


def test_membership() -> None:
    groups = {"box": {"seen": scores(0.05, 200), "unseen": scores(0.0, 200, 1), "own text": scores(1.0, 50, 2)}}
    table = membership_table(groups).set_index("compared")
    assert table.loc["own over seen", "mean"] == 1.0
    assert 0.5 < table.loc["seen over unseen", "low"] < table.loc["seen over unseen", "mean"] < 0.8
    rows = membership_scores_table(groups)
    assert rows["group"].value_counts().to_dict() == {"seen": 200, "unseen": 200, "own text": 50}
    assert list(rows.columns) == ["model", "group", "score"]


@pytest.mark.parametrize(("own", "verdict"), [(0.5, "supported"), (-0.5, "not supported"), (0.01, "inconclusive")])
def test_own_text_against_the_most_familiar_real_text(own: float, verdict: str) -> None:
    found = {"c4": scores(-1.0), "math": scores(0.0, seed=1), "mine": scores(own, seed=2)}
    judged = judge_familiar(found, ["mine"])
    assert (judged.claim, judged.verdict, judged.figure) == ("J11", verdict, "fig-membership")
    assert "one of math, the highest real text" in judged.statistic and "known training text" not in judged.statistic
    groups = {"box": {"seen": scores(0.05, 200), "unseen": scores(0.0, 200, 1), "own text": scores(1.0, 50, 2)}}
    said = judge_familiar(found, ["mine"], membership_table(groups)).statistic
    assert "own text scores higher than the training text itself with chance 1.00" in said


def test_both_kinds_are_needed() -> None:
    for own in ([], ["mine"]):
        with pytest.raises(InputError, match="one kind is missing"):
            judge_familiar({"mine": scores(0.0)}, own)
