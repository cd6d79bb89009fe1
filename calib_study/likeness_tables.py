"""Does likeness, measured, tell which text damages less? And what a score of familiarity is worth.

Scores are arrays of measurements of kind `text_scores`: one value for each window, under the dense model.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calib_study.association import rank_correlation
from calib_study.errors import InputError
from calib_study.sources import SEEN, UNSEEN, parse_view
from calib_study.statistics import Interval
from calib_study.text_likeness import auc
from calib_study.verdicts import Judgement, Verdict, text_of

MEASURES = ("log_perplexity", "min_k_plus_plus", "unigram_divergence", "norm_distance")
SCORES = ("nll", "min_k", "min_k_plus_plus")
OWN = "own text"
Floats = NDArray[np.float64]
Scores = Mapping[str, Floats]  # "nll", "min_k", "min_k_plus_plus": by window


def likeness_table(
    damage: pd.DataFrame, scores: Mapping[str, Scores], distances: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Return one row for each text: source, damage (its mean over runs), and every measure in `MEASURES`.

    Args:
        damage: one row for each run, of one method: source, damage. scores, distances: by source; of distances
            "unigram_divergence" and "norm_distance", both from a reference.
    Raises InputError for a text without runs, scores or distances.
    """
    means = damage.groupby("source", sort=False)["damage"].mean()
    rows = []
    for source, mean in means.items():
        name = str(source)
        if name not in scores or name not in distances:
            raise InputError(f"likeness_table: no scores of {name}.")
        found = scores[name]
        row = {"source": name, "damage": mean, "log_perplexity": found["nll"].mean()}
        rows.append({**row, "min_k_plus_plus": found["min_k_plus_plus"].mean(), **distances[name]})
    return pd.DataFrame(rows, columns=["source", "damage", *MEASURES])


def correlation_table(texts: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Return the rank correlation of each measure with damage over texts: measure, mean, low, high, n.

    The limits are for other texts of the kind. The reference itself, whose distances
    are those of another draw of it, counts like any text.
    Raises InputError for fewer than four texts.
    """
    if len(texts) < 4:
        raise InputError(f"correlation_table: {len(texts)} texts; at least 4 are needed for a rank correlation.")
    rows = []
    for name in MEASURES:
        found = rank_correlation(texts[name], texts["damage"], level)
        rows.append((name, found.mean, found.low, found.high, found.n))
    return pd.DataFrame(rows, columns=["measure", "mean", "low", "high", "n"])


def grouped(scores: Mapping[str, Scores]) -> dict[str, dict[str, Floats]]:
    """Return a model's scores by group, those of several texts joined: what it saw, what it did not, what it wrote.

    Args:
        scores: by source; "TEXT@seen", "TEXT@unseen", and any other name is text that the model wrote.
    """
    found: dict[str, dict[str, list[Floats]]] = {}
    for source, arrays in scores.items():
        view = parse_view(source)
        group = OWN if view is None else view[1]
        for name in SCORES:
            found.setdefault(group, {}).setdefault(name, []).append(arrays[name])
    return {group: {name: np.concatenate(parts) for name, parts in by_name.items()} for group, by_name in found.items()}


def membership_table(scores: Mapping[str, Mapping[str, Scores]], score: str = "min_k_plus_plus") -> pd.DataFrame:
    """Return what a score tells of membership: one row for each model and comparison.

    Columns: model, compared, mean, low, high. "seen over unseen" is the chance that a window the model was trained on
    scores higher than one it was not: 0.5 is no information. "own over seen" is the chance that a window of text that
    the model wrote scores higher than one that it was trained on.

    Args:
        scores: by model, then by group: `SEEN`, `UNSEEN`, `OWN`.
    """
    rows = []
    for model, groups in scores.items():
        for what, (first, second) in {"seen over unseen": (SEEN, UNSEEN), "own over seen": (OWN, SEEN)}.items():
            found = auc(groups[first][score], groups[second][score])
            rows.append((model, what, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=["model", "compared", "mean", "low", "high"])


def membership_scores_table(scores: Mapping[str, Mapping[str, Scores]], score: str = "min_k_plus_plus") -> pd.DataFrame:
    """Return every window's score: model, group, score."""
    rows = [
        (model, group, value)
        for model, groups in scores.items()
        for group, arrays in groups.items()
        for value in arrays[score]
    ]
    return pd.DataFrame(rows, columns=["model", "group", "score"])


def judge_familiar(
    scores: Mapping[str, Scores], own: Sequence[str], membership: pd.DataFrame | None = None
) -> Judgement:
    """Return the verdict on J11: does a model's own text score higher than every real text?

    Supported if windows of the own texts score higher than those of the real text with the highest mean, by the
    interval of that chance; the verdict is on the score, and `membership` says what the score is worth.

    Args:
        scores: by source. own: which of them the model wrote. membership: from `membership_table`.
    Raises InputError if there is no own or no real text.
    """
    real = {name: arrays["min_k_plus_plus"] for name, arrays in scores.items() if name not in own}
    if not real or not own:
        raise InputError("judge_familiar: texts that the model wrote and real ones are compared; one kind is missing.")
    best = max(real, key=lambda name: float(real[name].mean()))
    written = np.concatenate([scores[name]["min_k_plus_plus"] for name in own])
    found = auc(written, real[best])
    said = f"chance that a window of own text has a higher Min-50 %++ than one of {best}, the highest real text: "
    said += text_of(found, 2)
    if membership is not None and len(membership):
        means = membership.groupby("compared")["mean"].mean()
        said += (
            f"; of models of known training text, own text scores higher than the training text itself with chance "
            f"{means['own over seen']:.2f}, and training text higher than unseen text with chance "
            f"{means['seen over unseen']:.2f}"
        )
    return Judgement("J11", said, _above_half(found), "fig-membership")


def _above_half(chance: Interval) -> Verdict:
    if chance.low is not None and chance.low > 0.5:
        return "supported"
    return "not supported" if chance.high is not None and chance.high < 0.5 else "inconclusive"
