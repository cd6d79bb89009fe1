"""What holds at every level of pruning: texts against magnitude, methods against each other, the best text; verdicts.

Tables of runs come from `frames.scored_runs`. A *cell* is a method that reads text at a level.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_study.frames import scored_runs
from calib_study.inference import kendalls_w
from calib_study.records import Record, to_frame
from calib_study.scaling_levels import (
    CELL,
    Layout,
    compared,
    gap_table,
    growth_table,
    layouts,
    level_label,
)
from calib_study.schedule_tables import apart
from calib_study.statistics import Floats, Interval, finite_array
from calib_study.verdicts import SIGNIFICANCE, SMALLEST_EFFECT, Judgement, Verdict, for_all, text_of


class Asked(Protocol):
    """What `judge` needs of the chapter's parameters."""

    @property
    def first_reader(self) -> str:
        """The method whose runs are at all levels."""


# --- rule 3: magnitude ------------------------------------------------------------------------------------


def magnitude_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return, for each method that reads text and each of its levels, how the worst text compares with magnitude.

    Limits are those of `worst_difference` for all texts, methods and levels at once; magnitude reads no text and has no
    draws. Columns: method, sparsity,
    pattern, worst; mean (its damage), magnitude, difference (mean minus magnitude), low, high; verdict on "a text does
    more damage than magnitude" ("supported" if so for the worst, "not supported" if all are below); random (mean
    damage of the random mask), from_random (the largest mean difference of a text from it, paired by seed: negative if
    all texts are better). Without rows if magnitude was not run; NaN without the random mask.
    """
    plain = _by_level(runs[runs["method"] == "magnitude"])
    floor = _by_level(runs[runs["method"] == "random"])
    here = [layout for layout in layouts(runs) if layout.key[1:] in plain]
    n_compared = sum(len(layout.texts) for layout in here)
    rows = []
    for layout in here:
        means, damage = layout.values.mean(axis=1), float(plain[layout.key[1:]][0])
        worst = worst_difference(layout.values, damage, n_compared)
        assert worst.low is not None and worst.high is not None
        n_seeds = layout.values.shape[1]
        masks = floor.get(layout.key[1:], np.full(n_seeds, np.nan))
        paired = (layout.values - masks).mean(axis=1).max() if len(masks) == n_seeds else np.nan
        verdict = "supported" if worst.low > 0 else "not supported" if worst.high < 0 else "inconclusive"
        limits = (worst.mean, worst.low, worst.high, verdict)
        found = (layout.texts[int(means.argmax())], float(means.max()), damage, *limits)
        rows.append((*layout.key, *found, float(np.mean(masks)), float(paired)))
    columns = [*CELL, "worst", "mean", "magnitude", "difference", "low", "high", "verdict", "random", "from_random"]
    return pd.DataFrame(rows, columns=columns)


def worst_difference(values: ArrayLike, reference: float, n_compared: int) -> Interval:
    """Return the largest mean of a text minus a constant, with limits that hold for all of `n_compared` texts at once.

    mean -/+ t(1 - 0.05 / n_compared, k (n - 1)) * s / sqrt(n), s^2 the mean of the variances within the k texts. On
    each side, all of these limits hold together with 95 % confidence (Bonferroni), so that the worst text may be named
    after seeing the values.

    Args:
        values: (n_sources, n_seeds), at least 2 seeds.
    """
    x = finite_array(values, 2, "worst_difference", "(n_sources, n_seeds)")
    k, n = x.shape
    spread = float(np.sqrt(x.var(axis=1, ddof=1).mean()))
    half = float(stats.t.ppf(1 - SIGNIFICANCE / n_compared, k * (n - 1)) * spread / np.sqrt(n))
    mean = float(x.mean(axis=1).max()) - reference
    return Interval(mean, mean - half, mean + half, n)


def _by_level(runs: pd.DataFrame) -> dict[tuple[float, str], Floats]:
    """Return the damage of runs without text by level, in the order of seeds."""
    groups = runs.sort_values("seed").groupby(["sparsity", "pattern"])["damage"]
    return {(float(str(s)), str(p)): values.to_numpy(np.float64) for (s, p), values in groups}


# --- rules 4 and 5: methods, and the best text ------------------------------------------------------------


def place_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return where each text stands with each method at each level.

    Columns: method, sparsity, pattern, source, mean (damage), place (mean minus that of all texts, in standard
    deviations between them), perhaps_best (see `candidates`). The sets of texts that may be the best hold for all
    methods and levels at once with 95 % confidence (Bonferroni).
    """
    found = layouts(runs)
    rows = []
    for layout in found:
        means = layout.values.mean(axis=1)
        places = (means - means.mean()) / means.std(ddof=1)
        best = candidates(layout.values, 1 - SIGNIFICANCE / len(found))
        rows += [(*layout.key, *cell) for cell in zip(layout.texts, means.tolist(), places.tolist(), best, strict=True)]
    return pd.DataFrame(rows, columns=[*CELL, "source", "mean", "place", "perhaps_best"])


def candidates(values: ArrayLike, level: float = 0.95) -> list[bool]:
    """Return for each text whether it may be the best one: no other is told apart as better, by 0.01 or more.

    Texts are told apart as `schedule_tables.apart` does, all pairs at once; 0.01 nats per token is `SMALLEST_EFFECT`.

    Args:
        values: (n_sources, n_seeds), damage, lower is better. level: confidence.

    >>> candidates([[0.50, 0.51], [0.50, 0.52], [0.90, 0.91]])
    [True, True, False]
    """
    x = finite_array(values, 2, "candidates", "(n_sources, n_seeds)")
    means, signs = x.mean(axis=1), np.zeros((len(x), len(x)))
    upper = np.triu_indices(len(x), 1)
    signs[upper] = apart(x, level)
    worse = (signs - signs.T > 0) & (means[:, None] - means[None, :] >= SMALLEST_EFFECT)
    return [not row.any() for row in worse]


def best_everywhere(places: pd.DataFrame) -> tuple[list[str], Verdict]:
    """Return the texts that may be the best in every cell of `place_table`, and whether no text is best everywhere.

    "supported" if there is none, "not supported" if one is the only one that may be the best in every cell, else
    "inconclusive".
    """
    sets = [set(rows.loc[rows["perhaps_best"], "source"]) for _, rows in places.groupby(CELL, sort=False)]
    common = set.intersection(*sets)
    names = [str(name) for name in dict.fromkeys(places["source"]) if name in common]
    if not names:
        return names, "supported"
    return names, "not supported" if all(len(found) == 1 for found in sets) else "inconclusive"


def agreement_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how far the order of the texts agrees between the methods at a level, and the levels of a method.

    Columns: over ("methods" or "levels"), at (the level, or the method, that is the same), n (how many), w, p_value (of
    `kendalls_w` on the means of the texts); between, the mean rank correlation of two of them on different draws;
    within, that of one of them on different draws, which `between` reaches if they agree as far as draws let them.
    """
    found = layouts(runs)
    groups: dict[tuple[str, str], list[Layout]] = {}
    for layout in found:
        groups.setdefault(("methods", level_label(*layout.key[1:])), []).append(layout)
    for layout in found:
        groups.setdefault(("levels", layout.method), []).append(layout)
    rows = []
    for (over, at), members in groups.items():
        if len(members) > 1:
            values = np.stack([layout.values for layout in members])
            w = kendalls_w(values.mean(axis=2), seed=0)
            rows.append((over, at, len(members), w.w.mean, w.p_value, *_rank_correlations(values)))
    return pd.DataFrame(rows, columns=["over", "at", "n", "w", "p_value", "between", "within"])


def _rank_correlations(values: Floats) -> tuple[float, float]:
    """Return Spearman's correlation over texts, of two raters and of one, on different draws, on average over pairs.

    values: (n_raters, n_sources, n_seeds).
    """
    n_raters, _, n_seeds = values.shape
    ranks = stats.rankdata(values, axis=1).transpose(0, 2, 1).reshape(n_raters * n_seeds, -1)
    table = np.corrcoef(ranks)
    rater, seed = np.divmod(np.arange(n_raters * n_seeds), n_seeds)
    other_draw = seed[:, None] != seed[None, :]
    same = rater[:, None] == rater[None, :]
    return float(table[other_draw & ~same].mean()), float(table[other_draw & same].mean())


# --- verdicts ---------------------------------------------------------------------------------------------


def judge(cfg: Asked, records: Sequence[Record]) -> list[Judgement]:
    """Return what the records of the chapter say of claims J1, J2, J4, J12 (its first half) and W2."""
    runs = scored_runs(to_frame(records))
    gaps, growth = gap_table(runs), growth_table(runs, cfg.first_reader)
    first = gaps[gaps["method"] == cfg.first_reader]
    trends = [
        Judgement("J1", *_of_trend(growth[growth["chain"] == "sparsity"], first), "fig-spread-growth"),
        Judgement("J2", *_of_trend(growth[growth["chain"] != "sparsity"], first), "fig-spread-growth"),
    ]
    return [
        *trends,
        Judgement("J4", *_of_magnitude(magnitude_table(runs)), "fig-against-magnitude"),
        Judgement("J12", *_of_methods(compared(gaps), agreement_table(runs)), "fig-gap-by-method"),
        Judgement("W2", *_of_the_best(place_table(runs)), "fig-text-places"),
    ]


def _of_trend(growth: pd.DataFrame, gaps: pd.DataFrame) -> tuple[str, Verdict]:
    """Return the statistic and the verdict of rule 1 or 2, from the chains of `growth_table` that it is about."""
    said = []
    by_label = {level_label(row["sparsity"], row["pattern"]): row for row in _rows(gaps)}
    whole = growth[growth["whole"]]
    for row in _rows(whole):
        ends = [
            f"{level}: {by_label[level]['gap']:.3f}, {100 * by_label[level]['share']:.1f} % of the mean damage"
            for level in (row["lower"], row["higher"])
        ]
        share = Interval(100 * row["share"], 100 * row["share_low"], 100 * row["share_high"], 0)
        said.append(
            f"s.d. between texts, draws taken out, {row['higher']} minus {row['lower']}: {text_of(_interval(row))} "
            f"nats per token, over the mean damage {text_of(share, 1)} points; worst minus best text at "
            + "; at ".join(ends)
        )
    verdicts = [cast(Verdict, word) for word in whole["verdict"]]
    return "; ".join(said) or "no two levels that differ in this alone", for_all(verdicts)


def _of_magnitude(table: pd.DataFrame) -> tuple[str, Verdict]:
    """Return the statistic and the verdict of rule 3."""
    if table.empty:
        return "magnitude was not run", "inconclusive"
    row = max(_rows(table), key=lambda row: row["high"])
    certain = int((table["verdict"] == "supported").sum())
    said = (
        f"worst text minus magnitude, where the upper limit is highest ({row['worst']}, {row['method']} at "
        f"{level_label(row['sparsity'], row['pattern'])}): {text_of(_interval(row, 'difference'))} nats per token, "
        f"limits for all at once; above zero in {certain} of {len(table)} cells of method and level"
    )
    if certain:
        return said, "supported"
    return said, "not supported" if (table["verdict"] == "not supported").all() else "inconclusive"


def _of_methods(gaps: pd.DataFrame, agreement: pd.DataFrame) -> tuple[str, Verdict]:
    """Return the statistic and the verdict of rule 4, from the rows of `gap_table` at compared levels."""
    if gaps.empty:
        return "no level with two methods that read text", "inconclusive"
    ratios = gaps["gap"] / gaps["null_q95"]
    orders = _rows(agreement[agreement["over"] == "methods"])
    said = (
        f"gap over the 95 % quantile if all texts were one: {ratios.min():.2f} to {ratios.max():.2f} over {len(gaps)} "
        f"cells of method and level, largest p = {gaps['p_value'].max():.2g}; agreement of the methods on the order: "
        + ", ".join(f"W = {row['w']:.2f} at {row['at']}" for row in orders)
    )
    return said, for_all([cast(Verdict, word) for word in gaps["differ"]])


def _of_the_best(places: pd.DataFrame) -> tuple[str, Verdict]:
    """Return the statistic and the verdict of rule 5."""
    names, verdict = best_everywhere(places)
    cases = [_rows(rows) for _, rows in places.groupby(CELL, sort=False)]
    lowest = [str(min(case, key=lambda row: row["mean"])["source"]) for case in cases]
    counts = ", ".join(f"{name} in {lowest.count(name)}" for name in dict.fromkeys(lowest))
    said = f"texts that may be the best in all {len(lowest)} cells of method and level: {', '.join(names) or 'none'}"
    return f"{said}; lowest mean: {counts}", verdict


def _interval(row: dict[str, Any], estimate: str = "mean") -> Interval:
    return Interval(row[estimate], row["low"], row["high"], 0)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
