"""From the tidy frame of records to the tables that statistics and figures take.

The tidy frame has one row per run and metric: run_id, model, method, sparsity, pattern, schedule, allocation,
options, source, policy, n_samples, seq_len, min_tokens, seed, dtype, dataset, metric, value, unit, stderr, n. Methods
that read no text have no source (None); the dense model is a run with method "dense".
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calib_study.errors import InputError
from calib_study.methods import METHODS
from calib_study.statistics import mean_interval

SETTING_COLUMNS = (
    *("model", "dtype", "sparsity", "pattern", "schedule", "options"),
    *("policy", "n_samples", "seq_len", "min_tokens"),
)
RUN_COLUMNS = ("run_id", "method", "allocation", "source", "seed", *SETTING_COLUMNS)
FLOOR_SOURCE = "random"  # tokens drawn at random: a floor, never called the best or the worst text


def damage_table(frame: pd.DataFrame, datasets: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per pruned run with its damage: the mean over held-out sets of ln(perplexity / dense).

    In nats per token: the mean extra loss of the pruned model; each held-out set counts the same. A run is
    compared with the dense run of the same model and dtype. Dense runs are left out of the result.

    Args:
        frame: tidy frame; only its rows of metric "perplexity" are used.
        datasets: which held-out sets, each of which every run must have; None for all that occur.
    Returns: the columns of a run, `damage`, and `n_datasets`.
    Raises InputError for a run without one of the sets or without a dense partner, or for dense values that
    disagree (for example two evaluation lengths in one frame).
    """
    _need(frame, (*RUN_COLUMNS, "dataset", "metric", "value"), "damage_table")
    rows = frame[frame["metric"] == "perplexity"]
    chosen = list(dict.fromkeys(datasets if datasets is not None else sorted(rows["dataset"].unique())))
    rows = rows[rows["dataset"].isin(chosen)].copy()
    rows["log"] = _log(rows["value"], "damage_table")
    key = ["model", "dtype", "dataset"]
    dense = rows.loc[rows["method"] == "dense", [*key, "log"]].drop_duplicates()
    if dense.duplicated(key).any():
        where = dense[dense.duplicated(key)].iloc[0]
        raise InputError(
            f"damage_table: the dense model {where['model']} has two perplexities on {where['dataset']!r}; "
            "keep one evaluation (length, number of windows) in the frame."
        )
    pruned = rows[rows["method"] != "dense"].merge(dense, on=key, how="left", suffixes=("", "_dense"))
    if pruned.empty:
        raise InputError("damage_table: the frame has no pruned run with a perplexity on the chosen sets.")
    if pruned["log_dense"].isna().any():
        lost = pruned.loc[pruned["log_dense"].isna(), key].drop_duplicates().astype(str).agg("/".join, axis=1)
        raise InputError(f"damage_table: no dense run to compare with for {', '.join(lost)}.")
    pruned["damage"] = pruned["log"] - pruned["log_dense"]
    runs = pruned.groupby("run_id", sort=False)
    table = pruned.drop_duplicates("run_id")[list(RUN_COLUMNS)].reset_index(drop=True)
    table["damage"] = table["run_id"].map(runs["damage"].mean())
    table["n_datasets"] = table["run_id"].map(runs["dataset"].nunique())
    short = table.loc[table["n_datasets"] != len(chosen), "run_id"]
    if len(short):
        raise InputError(
            f"damage_table: {len(short)} runs lack one of the held-out sets {', '.join(chosen)}; "
            f"the first is {short.iloc[0]}."
        )
    return table


def scored_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `damage_table` without the runs that random tokens calibrated, with `jensen_shannon` added.

    That is the divergence from the dense model, the mean over held-out texts (missing if it was not measured).
    """
    runs = damage_table(frame)
    divergence = frame[frame["metric"] == "jensen_shannon"].groupby("run_id")["value"].mean()
    runs["jensen_shannon"] = runs["run_id"].map(divergence)
    return runs[runs["source"] != FLOOR_SOURCE].reset_index(drop=True)


def text_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `scored_runs` that text calibrated."""
    runs = scored_runs(frame)
    runs = runs[runs["source"].notna()].reset_index(drop=True)
    return runs.astype({"n_samples": int, "seq_len": int, "seed": int})  # not whole beside a run without text


def interval_table(
    frame: pd.DataFrame, by: Sequence[str], value: str = "value", *, log: bool = False, level: float = 0.95
) -> pd.DataFrame:
    """Return one row per group: mean, low, high and n of `value` over its rows (Student's interval).

    log=True takes the interval of the mean logarithm and returns its exponential: the geometric mean, right
    for perplexities, whose logarithm is the loss. Groups of one row have low = high = NaN. `by` may hold
    missing values (a method without a source), which form groups of their own.

    >>> t = pd.DataFrame({"source": ["c4", "c4"], "value": [1.0, 4.0]})
    >>> float(interval_table(t, ["source"], log=True)["mean"].round(6).iloc[0])
    2.0
    """
    _need(frame, (*by, value), "interval_table")
    records = []
    for group, rows in frame.groupby(list(by), sort=False, dropna=False):
        x = _log(rows[value], "interval_table") if log else rows[value].to_numpy(dtype=np.float64)
        found = mean_interval(x, level)
        limits = [found.mean, *(np.nan if v is None else v for v in (found.low, found.high))]
        records.append([*group, *(np.exp(limits) if log else limits), found.n])
    return pd.DataFrame(records, columns=[*by, "mean", "low", "high", "n"])


def cells(
    frame: pd.DataFrame, sources: Sequence[str], methods: Sequence[str], seeds: Sequence[int], value: str
) -> NDArray[np.float64]:
    """Return `value` as a balanced array (n_sources, n_methods, n_seeds), in the given orders.

    A run without a source (method "random", "magnitude") stands for every source, and one of a method without
    randomness ("magnitude") also for every seed. So a data-free method has no source effect in the array.

    Args:
        frame: one row per run, for example from `damage_table`.
        value: the column to take, for example "damage".
    Raises InputError naming the cells that are missing, or one that has more than one run.
    """
    _need(frame, ("source", "method", "seed", value), "cells")
    found: dict[tuple[str | None, str, int | None], list[float]] = {}
    for source, method, seed, number in frame[["source", "method", "seed", value]].itertuples(index=False):
        key = (None if pd.isna(source) else str(source), method, int(seed) if _seeded(method) else None)
        found.setdefault(key, []).append(float(number))
    array = np.empty((len(sources), len(methods), len(seeds)))
    missing = []
    for index in np.ndindex(array.shape):
        source, method, seed = sources[index[0]], methods[index[1]], seeds[index[2]]
        drawn = seed if _seeded(method) else None
        runs = found.get((source, method, drawn)) or found.get((None, method, drawn)) or []
        if len(runs) > 1:
            raise InputError(
                f"cells: {len(runs)} runs for {method}/{source}/seed {seed}; select one model, sparsity, "
                "pattern, schedule, policy and size first."
            )
        if runs:
            array[index] = runs[0]
        else:
            missing.append(f"{method}/{source}/seed {seed}")
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise InputError(f"cells: no run for {', '.join(missing[:8])}{more}. Run them, or ask for less.")
    return array


def advantage_table(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return, for each source (row) and held-out set (column), ln(perplexity / best source on that set).

    Perplexities are geometric means over seeds; the best is taken among real sources, so that the floor of
    random tokens may come out below zero. In nats per token; 0 is the best text for that set.
    Raises InputError if the method has no run with a source, its runs differ in more than source and seed, or a
    source lacks one of the sets.
    """
    _need(frame, ("method", "metric", "source", "dataset", "value"), "advantage_table")
    rows = frame[(frame["metric"] == "perplexity") & (frame["method"] == method) & frame["source"].notna()]
    if rows.empty:
        raise InputError(f"advantage_table: no perplexity of method {method!r} with a calibration source.")
    if mixed := mixed_settings(rows):
        raise InputError(f"advantage_table compares sources at one setting, but {', '.join(mixed)} vary.")
    means = interval_table(rows, ["source", "dataset"], log=True)
    means["log"] = np.log(means["mean"])
    logs = means.pivot(index="source", columns="dataset", values="log")
    if logs.isna().to_numpy().any():
        raise InputError("advantage_table: every source needs every held-out set; some are missing.")
    real = logs.drop(index=FLOOR_SOURCE, errors="ignore")
    return logs - (real if len(real) else logs).min()


def mixed_settings(rows: pd.DataFrame) -> list[str]:
    """Return the columns of a setting, of those that the rows have, in which not all rows are alike."""
    return [c for c in SETTING_COLUMNS if c in rows.columns and rows[c].nunique(dropna=False) > 1]


def _seeded(method: str) -> bool:
    """Return whether the method's result depends on the seed; of a method not in the list, assume it does."""
    return method not in METHODS or METHODS[method].needs_seed


def _log(values: "pd.Series[float]", caller: str) -> NDArray[np.float64]:
    numbers = values.to_numpy(dtype=np.float64)
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        raise InputError(f"{caller}: perplexities must be finite and above zero to take their logarithm.")
    return np.log(numbers)


def _need(frame: pd.DataFrame, columns: Sequence[str], caller: str) -> None:
    """Raise InputError unless the frame has rows and all of the columns."""
    absent = [c for c in columns if c not in frame.columns]
    if absent or frame.empty:
        raise InputError(f"{caller}: the frame has {len(frame)} rows and lacks the columns {absent or 'none'}.")
