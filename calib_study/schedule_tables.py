"""What a schedule of pruning changes, damage and the order of calibration texts, and what it costs.

Tables of runs come from `frames.damage_table`, of texts only (no floor of random tokens). The schedule `block` is
the reference. "Runs" are of one model, sparsity, pattern and size.
"""

from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calib_study.benchmark_files import benchmark_table
from calib_study.errors import InputError
from calib_study.frames import SETTING_COLUMNS
from calib_study.paths import root
from calib_study.statistics import Interval, same_source_null
from calib_study.verdicts import SMALLEST_EFFECT, Verdict, sources_differ

REFERENCE = "block"
CELL = ["method", "source", "seed"]
COST_FILE = Path("benchmarks", "results", "prune_cost.json")
COST_COLUMNS = ("work", "dtype", "cpu_s", "forwards", "baseline_ratio", "target", "met", "masks_differ")


# --- damage -----------------------------------------------------------------------------------------------


def schedule_differences(damage: pd.DataFrame) -> pd.DataFrame:
    """Return, for each run under another schedule, its damage minus that of the same run under `block`.

    The two runs of a pair share method, text and windows. Columns: method, schedule, source, seed, difference.
    Raises InputError if a run has no partner, or runs differ in more than these four columns.
    """
    _check_runs(damage, "schedule_differences")
    first = damage["schedule"] == REFERENCE
    pairs = damage[~first].merge(damage.loc[first, [*CELL, "damage"]], on=CELL, how="left", suffixes=("", "_first"))
    if pairs.empty or pairs["damage_first"].isna().any():
        raise InputError(
            f"schedule_differences needs, for each run, the same run under {REFERENCE!r}; "
            f"{int(pairs['damage_first'].isna().sum())} of {len(pairs)} have none."
        )
    pairs["difference"] = pairs["damage"] - pairs["damage_first"]
    return pairs[["method", "schedule", "source", "seed", "difference"]]


def change_table(differences: pd.DataFrame, by: str = "schedule") -> pd.DataFrame:
    """Return, for each method and schedule, the mean change of damage with its limits and the verdict on it.

    Columns: method, schedule, mean, low, high (95 %), low90, high90, n_sources, n_seeds, verdict. The limits are
    `stratified_interval`'s: for these texts, over draws.

    Args:
        differences: from `schedule_differences`. by: the column that stands for the schedule in other tables of
            differences, of other things that can be changed.
    """
    rows = []
    for key, _, values in _layouts(differences, "difference", "change_table", by):
        wide, narrow = stratified_interval(values), stratified_interval(values, level=0.90)
        limits = (wide.mean, wide.low, wide.high, narrow.low, narrow.high)
        rows.append((*key, *limits, *values.shape, changes(wide, narrow)))
    columns = ["method", by, "mean", "low", "high", "low90", "high90", "n_sources", "n_seeds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def stratified_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean over strata of equal weight, with Student's interval from the spread within strata.

    mean -/+ t(level, k (n - 1)) * s / sqrt(k n), s^2 the mean of the variances within the k strata. The strata are
    fixed: how they differ from each other does not widen the interval. Assumes one spread for all strata.
    Source: Cochran (1977), Sampling Techniques, section 5.4, with equal strata and a pooled variance.

    Args:
        values: (n_strata, n_draws), here (texts, seeds), at least two draws of each.
    Raises InputError for another shape or a value that is not finite.

    >>> stratified_interval([[1.0, 1.0], [3.0, 3.0]])
    Interval(mean=2.0, low=2.0, high=2.0, n=4)
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or len(x) < 1 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise InputError(f"stratified_interval takes finite values (n_strata, n_draws >= 2), got shape {x.shape}.")
    k, n = x.shape
    spread = float(np.sqrt(x.var(axis=1, ddof=1).mean()))
    half = float(stats.t.ppf((1 + level) / 2, k * (n - 1)) * spread / np.sqrt(k * n))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, k * n)


def changes(wide: Interval, narrow: Interval) -> Verdict:
    """Return whether a schedule changes the damage, from the 95 % and the 90 % interval of the mean difference.

    "supported" if the wide one lies wholly beyond `SMALLEST_EFFECT` on either side, "not supported" if the narrow
    one lies wholly within it on both sides (two one-sided tests at 5 %: the damages are equivalent), else
    "inconclusive". Source: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15.
    """
    if wide.low is None or wide.high is None or narrow.low is None or narrow.high is None:
        return "inconclusive"
    if narrow.low > -SMALLEST_EFFECT and narrow.high < SMALLEST_EFFECT:
        return "not supported"
    return "supported" if wide.low > SMALLEST_EFFECT or wide.high < -SMALLEST_EFFECT else "inconclusive"


# --- the order of the texts -------------------------------------------------------------------------------


def order_table(damage: pd.DataFrame, by: str = "schedule", reference: str = REFERENCE) -> pd.DataFrame:
    """Return, for each method and schedule, how the texts differ, and whether the conclusions are those of `block`.

    Columns: method, schedule; best, worst, range of the texts' mean damage; null_q95 and p_value of
    `same_source_null`; differ, the verdict of `sources_differ`; tau, Kendall's correlation of the texts' means
    with those under `block`; told_apart, pairs of texts that `apart` separates under `block`; kept, how many of these
    have the same order of means here; reversed, how many are separated here the other way round; verdict on
    "the schedule changes what is concluded" (empty for `block` itself).
    Raises InputError as `schedule_differences`, or if the texts of a method are not the same for all schedules.

    Args:
        by, reference: the column that stands for the schedule, and its value that stands for `block`, where the order
            of the texts under other settings is compared.
    """
    _check_runs(damage, "order_table", by)
    layouts = {key: (texts, values) for key, texts, values in _layouts(damage, "damage", "order_table", by)}
    nulls = {key: same_source_null(values, seed=0) for key, (_, values) in layouts.items()}
    signs = {key: apart(values) for key, (_, values) in layouts.items()}
    rows = []
    for (method, setting), (texts, values) in layouts.items():
        key, first = (method, setting), (method, reference)
        if first not in layouts or layouts[first][0] != texts:
            raise InputError(f"order_table: {method} has other texts under {setting!r} than under {reference!r}.")
        null, means, usual = nulls[key], values.mean(axis=1), layouts[first][1].mean(axis=1)
        kept = int((signs[first] * np.sign(_pairs(means)) > 0).sum())
        turned, total = int((signs[first] * signs[key] < 0).sum()), int((signs[first] != 0).sum())
        differ, before = sources_differ(null), sources_differ(nulls[first])
        rows.append(
            {
                "method": method,
                by: setting,
                "best": texts[int(means.argmin())],
                "worst": texts[int(means.argmax())],
                "range": null.observed,
                "null_q95": null.null_q95,
                "p_value": null.p_value,
                "differ": differ,
                "tau": float(stats.kendalltau(usual, means).statistic),
                "told_apart": total,
                "kept": kept,
                "reversed": turned,
                "verdict": "" if key == first else concluded_otherwise(before, differ, total, kept, turned),
            }
        )
    return pd.DataFrame(rows)


def apart(values: ArrayLike, level: float = 0.95) -> NDArray[np.float64]:
    """Return for each pair of groups (i < j, in order) the sign of mean i - mean j if they are told apart, else 0.

    A pair is told apart if its means differ by more than q(level; k, k (n - 1)) * s / sqrt(n), with q of the
    studentised range and s the pooled spread within groups: all pairs at once hold with that confidence.
    Source: Tukey (1953), The Problem of Multiple Comparisons ("honestly significant difference").

    Args:
        values: (n_groups, n_draws), at least 2 x 2.

    >>> apart([[0.0, 1.0], [10.0, 11.0]]).tolist()
    [-1.0]
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise InputError(f"apart takes finite values (n_groups, n_draws), at least 2 x 2, got shape {x.shape}.")
    k, n = x.shape
    spread = float(np.sqrt(x.var(axis=1, ddof=1).mean()))
    least = _studentised_range(level, k, k * (n - 1)) * spread / np.sqrt(n)
    gaps = _pairs(x.mean(axis=1))
    return np.where(np.abs(gaps) > least, np.sign(gaps), 0.0)


@lru_cache
def _studentised_range(level: float, n_groups: int, df: int) -> float:
    """Return the quantile of the studentised range; it takes a third of a second."""
    return float(stats.studentized_range.ppf(level, n_groups, df))


def concluded_otherwise(before: Verdict, here: Verdict, told_apart: int, kept: int, turned: int) -> Verdict:
    """Return whether another schedule changes what is concluded about the texts.

    "supported" if a pair of texts told apart under both schedules has the opposite order (`turned`), or the texts
    differ (`before`, `here`: the verdicts of `sources_differ`) under one schedule and are alike under the other.
    "not supported" if all pairs told apart under `block`, at least one, keep their order (`kept`) and that verdict
    is the same. Else "inconclusive".
    """
    if turned or {before, here} == {"supported", "not supported"}:
        return "supported"
    return "not supported" if before == here and kept == told_apart > 0 else "inconclusive"


def _pairs(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means[i] - means[j] for all i < j."""
    i, j = np.triu_indices(len(means), 1)
    return np.asarray(means[i] - means[j], dtype=np.float64)


# --- cost -------------------------------------------------------------------------------------------------


def cost_table(file: Path | None = None) -> pd.DataFrame:
    """Return what pruning costs as `benchmarks/prune_cost.py --json` measured it, one row for each kind of work.

    Columns: work ("wanda, block"), dtype, cpu_s, forwards (cpu_s over that of a dense forward of the calibration
    windows in that dtype), baseline_ratio (cpu_s of the textbook program in float32 over this one's), target, met,
    masks_differ. `attrs` are the settings of the measurement. Without rows if the file is not there.
    Raises InputError if the file is something else.
    """
    return benchmark_table(file or root() / COST_FILE, COST_COLUMNS, "prune_cost.py")


# --- layouts ----------------------------------------------------------------------------------------------


def _check_runs(damage: pd.DataFrame, caller: str, by: str = "schedule") -> None:
    """Raise InputError if runs differ in more than method, schedule (or what stands for it), text and seed."""
    mixed = [c for c in SETTING_COLUMNS if c in damage.columns and c not in (by, "options")]
    mixed = [c for c in mixed if damage[c].nunique(dropna=False) > 1]
    repeated = int(damage.duplicated([*CELL, by]).sum())
    if mixed or repeated:
        several = f"several of {', '.join(mixed)}" if mixed else f"{repeated} runs twice"
        raise InputError(f"{caller} compares {by}s at one setting, but the table has {several}.")


def _layouts(
    table: pd.DataFrame, value: str, caller: str, by: str = "schedule"
) -> list[tuple[tuple[str, str], list[str], NDArray[np.float64]]]:
    """Return for each (method, schedule): the key, the texts, and the values as an array (n_sources, n_seeds)."""
    found = []
    for (method, setting), rows in table.groupby(["method", by], sort=False):
        wide = rows.pivot(index="source", columns="seed", values=value)
        wide = wide.loc[list(dict.fromkeys(rows["source"]))]
        if wide.isna().to_numpy().any():
            raise InputError(f"{caller}: {method}, {setting} lacks some seeds of some texts.")
        found.append(((str(method), cast(str, setting)), [str(name) for name in wide.index], wide.to_numpy(np.float64)))
    return found
