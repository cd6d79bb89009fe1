"""How far calibration texts lie apart at each level of pruning, and how that grows from level to level.

A *level* is a sparsity and a pattern. Tables of runs come from `frames.scored_runs`; a method that reads text has a
source in them, magnitude and the random mask have none. Trends are those of `text_spread`, in which draws do not count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_study.errors import InputError
from calib_study.frames import cells
from calib_study.methods import Pattern
from calib_study.resampling import jackknife_variance
from calib_study.statistics import Floats, Interval, finite_array, same_source_null
from calib_study.verdicts import SMALLEST_EFFECT, Verdict, sources_differ

CELL = ["method", "sparsity", "pattern"]
UNSTRUCTURED = "unstructured"
Level = tuple[float, str]  # sparsity, pattern


@dataclass(frozen=True, eq=False)
class Layout:
    """The damage of one method at one level: values are (n_sources, n_seeds), in the order of `texts`."""

    method: str
    sparsity: float
    pattern: str
    texts: list[str]
    values: Floats

    @property
    def key(self) -> tuple[str, float, str]:
        """The cell, as in the columns `CELL`."""
        return self.method, self.sparsity, self.pattern


# --- runs and levels --------------------------------------------------------------------------------------


def level_label(sparsity: float, pattern: str) -> str:
    """Return a level as shown.

    >>> level_label(0.5, "unstructured"), level_label(0.5, "2:4")
    ('50 %', '2:4')
    """
    return f"{100 * sparsity:g} %" if pattern == UNSTRUCTURED else pattern


def with_level(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a column `level`, the label of each row's level."""
    pairs = zip(table["sparsity"].tolist(), table["pattern"].tolist(), strict=True)
    return table.assign(level=[level_label(*pair) for pair in pairs])


def layouts(runs: pd.DataFrame, value: str = "damage") -> list[Layout]:
    """Return the values of each method that reads text at each of its levels: unstructured ones first, then patterns.

    Raises InputError if a text lacks a draw, or a cell has runs of several settings.
    """
    reading = runs[runs["source"].notna()]
    texts = [str(name) for name in dict.fromkeys(reading["source"])]
    if len(texts) < 2:
        raise InputError(f"levels are compared by how far texts lie apart; the table has {len(texts)} text.")
    found = []
    for method in dict.fromkeys(reading["method"]):
        rows = reading[reading["method"] == method]
        for sparsity, pattern in levels_of(rows):
            here = rows[(rows["sparsity"] == sparsity) & (rows["pattern"] == pattern)]
            values = cells(here, texts, [str(method)], sorted(set(here["seed"])), value)[:, 0]
            found.append(Layout(str(method), sparsity, pattern, texts, values))
    return found


def compared(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at levels where several methods read text."""
    return gaps[gaps.groupby(["sparsity", "pattern"])["method"].transform("nunique") > 1]


def levels_of(table: pd.DataFrame) -> list[Level]:
    """Return the levels in a table, each once: unstructured ones by sparsity, then patterns, the freest first."""
    found = zip(table["sparsity"].tolist(), table["pattern"].tolist(), strict=True)
    return sorted({(float(sparsity), str(pattern)) for sparsity, pattern in found}, key=_place)


def _place(level: Level) -> tuple[bool, float, int]:
    """Return what levels are sorted by: unstructured first, then sparsity, then the freer pattern (4:8 before 2:4)."""
    sparsity, pattern = level
    return pattern != UNSTRUCTURED, sparsity, -Pattern.parse(pattern).group


# --- the gap at each level --------------------------------------------------------------------------------


def gap_table(runs: pd.DataFrame, value: str = "damage") -> pd.DataFrame:
    """Return, for each method that reads text and each of its levels, how far the texts lie apart.

    Columns: method, sparsity, pattern, n_sources, n_seeds; best, worst, gap (worst minus best mean); null_q95, p_value,
    within_sd, relative (gap over within_sd) of `same_source_null`; differ, the verdict of `sources_differ`; spread, of
    `text_spread`; damage, the mean of the texts; share, gap over damage; without_worst, the gap of the other texts
    (NaN if that is one).
    """
    rows = []
    for layout in layouts(runs, value):
        null, means = same_source_null(layout.values, seed=0), layout.values.mean(axis=1)
        rows.append(
            dict(zip(CELL, layout.key, strict=True))
            | {
                "n_sources": null.n_sources,
                "n_seeds": null.n_seeds,
                "best": layout.texts[int(means.argmin())],
                "worst": layout.texts[int(means.argmax())],
                "gap": null.observed,
                "null_q95": null.null_q95,
                "p_value": null.p_value,
                "within_sd": null.within_sd,
                "relative": null.relative,
                "differ": sources_differ(null),
                "spread": text_spread(layout.values),
                "damage": float(means.mean()),
                "share": null.observed / float(means.mean()),
                "without_worst": float(np.sort(means)[-2] - means.min()) if len(means) > 2 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def text_spread(values: ArrayLike) -> float:
    """Return the standard deviation between texts, less what draws add to it; below zero if draws explain more.

    sqrt(variance of the text means - mean variance within a text / n_seeds), with the sign kept where that is
    negative. Unlike best minus worst it names no text after seeing the values, and on average does not grow when only
    the noise of draws does. Source: Henderson (1953), Biometrics 9, balanced one-way layout.

    Args:
        values: (n_sources, n_seeds), at least 2 x 2.

    >>> text_spread([[0.0, 2.0], [4.0, 6.0]])  # variance of means 1 and 5 is 8, within 2: sqrt(8 - 2 / 2)
    2.6457513110645907
    """
    x = finite_array(values, 2, "text_spread", "(n_sources, n_seeds)")
    if min(x.shape) < 2:
        raise InputError(f"text_spread needs at least 2 texts and 2 seeds, got shape {x.shape}.")
    variance = float(x.mean(axis=1).var(ddof=1) - x.var(axis=1, ddof=1).mean() / x.shape[1])
    return float(np.sign(variance) * np.sqrt(abs(variance)))


def spread_change(lower: ArrayLike, higher: ArrayLike, *, relative: bool = False, level: float = 0.95) -> Interval:
    """Return by how much the spread of the texts is larger at a higher level, with a jackknife-t interval over seeds.

    One seed is left out of both levels at once, since they share the draws. Measured coverage with three and five
    seeds: 0.92 to 0.97, and 0.04 at most call a growth certain where only the noise of draws grows. With the standard
    deviation between texts of each seed, and Student's interval over seeds, the latter is 0.67 to 1.
    Source: Tukey (1958), Ann. Math. Stat. 29, p. 614.

    Args:
        lower, higher: (n_sources, n_seeds), at least 3 seeds. relative: of the spread over the mean of all values.
    Raises InputError for shapes that differ, or too few seeds.
    """
    x = finite_array(lower, 2, "spread_change", "(n_sources, n_seeds)")
    y = finite_array(higher, 2, "spread_change", "(n_sources, n_seeds)")
    if x.shape != y.shape or x.shape[1] < 3:
        raise InputError(f"spread_change needs two alike shapes with at least 3 seeds, got {x.shape} and {y.shape}.")

    def change(a: Floats, b: Floats) -> float:
        return text_spread(b) / (b.mean() if relative else 1) - text_spread(a) / (a.mean() if relative else 1)

    n = x.shape[1]
    left_out = np.array([change(np.delete(x, i, axis=1), np.delete(y, i, axis=1)) for i in range(n)])
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.sqrt(jackknife_variance(left_out)))
    full = float(change(x, y))
    return Interval(full, full - half, full + half, n)


# --- rules 1 and 2: trends --------------------------------------------------------------------------------


def growth_table(runs: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return how the spread of the texts changes from level to level, and over each chain of levels as a whole.

    Columns: chain (see `chains`), lower, higher (labels of levels), whole (from the first level of the chain to the
    last); mean, low, high (95 %), low90, high90 of `spread_change`; share, share_low, share_high, the same of the
    spread over the mean damage; verdict of `grows`, for the whole only.
    """
    by_level = {layout.key[1:]: layout for layout in layouts(runs) if layout.method == method}
    rows = []
    for chain, levels in chains(by_level):
        steps = list(pairwise(levels)) if len(levels) > 2 else []
        moves = [(*step, False) for step in steps] + [(levels[0], levels[-1], True)]
        wides: list[Interval] = []
        for lower, higher, whole in moves:
            pair = by_level[lower].values, by_level[higher].values
            wide, narrow = spread_change(*pair), spread_change(*pair, level=0.90)
            share = spread_change(*pair, relative=True)
            verdict = grows(wide, narrow, wides) if whole else ""
            wides.append(wide)
            limits = (wide.mean, wide.low, wide.high, narrow.low, narrow.high, share.mean, share.low, share.high)
            rows.append((chain, level_label(*lower), level_label(*higher), whole, *limits, verdict))
    columns = ["chain", "lower", "higher", "whole", "mean", "low", "high", "low90", "high90"]
    return pd.DataFrame(rows, columns=[*columns, "share", "share_low", "share_high", "verdict"])


def grows(wide: Interval, narrow: Interval, steps: Sequence[Interval] = ()) -> Verdict:
    """Return whether the spread of the texts grows, from its change over a chain of levels and over each step of it.

    "supported" if the 95 % interval of the whole change (`wide`) lies above zero and that of no step below; "not
    supported" if one of them lies below zero, or the 90 % interval of the whole change (`narrow`) within
    `SMALLEST_EFFECT` of it on both sides (equivalent, by two one-sided tests); else "inconclusive".
    """
    if any(change.high is not None and change.high < 0 for change in (wide, *steps)):
        return "not supported"
    if wide.low is not None and wide.low > 0:
        return "supported"
    if narrow.low is None or narrow.high is None:
        return "inconclusive"
    equivalent = narrow.low > -SMALLEST_EFFECT and narrow.high < SMALLEST_EFFECT
    return "not supported" if equivalent else "inconclusive"


def chains(levels: Iterable[Level]) -> list[tuple[str, list[Level]]]:
    """Return what trends are seen over, with its name: unstructured levels by sparsity, and patterns of one sparsity.

    The patterns begin with the freest. A chain has two levels at least, and no level is named twice.

    >>> chains([(0.5, "2:4"), (0.7, "unstructured"), (0.5, "unstructured")])[1]
    ('structure at 50 %', [(0.5, 'unstructured'), (0.5, '2:4')])
    """
    levels = sorted(set(levels), key=_place)
    found = [("sparsity", [level for level in levels if level[1] == UNSTRUCTURED])]
    for sparsity in sorted({sparsity for sparsity, _ in levels}):
        alike = [level for level in levels if level[0] == sparsity]
        found.append((f"structure at {level_label(sparsity, UNSTRUCTURED)}", alike))
    return [(name, chain) for name, chain in found if len(chain) > 1]
