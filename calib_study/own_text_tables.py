"""Text of the model's own as calibration text: beside real text, by length of prefix, and added to real text.

Tables of runs come from `frames.damage_table` or `measures.measure_table`, of a chapter whose parameters are
`Parameters`. "Own" is text that the model wrote after the first tokens of a real text, its prefix source.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_study.errors import InputError
from calib_study.frames import FLOOR_SOURCE, cells, damage_table
from calib_study.own_text_facts import overlap_factor
from calib_study.records import Record, to_frame
from calib_study.schedule_tables import changes, stratified_interval
from calib_study.statistics import Floats, Interval, SameSourceNull, check_level, finite_array, same_source_null
from calib_study.verdicts import SMALLEST_EFFECT, Judgement, Verdict, for_all, sources_differ, text_of

AGAINST = ("mean of real texts", "best real text", "its prefix source")
LIMITS = ["mean", "low", "high", "low90", "high90"]


class Parameters(Protocol):
    """What the tables need of the parameters of 05_self_generation."""

    sources: list[str]
    methods: list[str]
    n_samples: int
    seq_len: int
    n_seeds: int
    prefix_len: int

    def own(self) -> dict[str, str]: ...
    def by_length(self) -> dict[int, str]: ...
    def mixed(self) -> dict[str, str]: ...


# --- rules ------------------------------------------------------------------------------------------------


def contrast_interval(
    values: ArrayLike, weights: ArrayLike, level: float = 0.95, inflation: ArrayLike = 1.0
) -> Interval:
    """Return the weighted sum of group means with Student's interval from the spread within all groups.

    sum(w_i m_i) -/+ t(level, k (n - 1)) * s * sqrt(sum(w_i^2 c_i) / n), s^2 the mean of the variances within the k
    groups. Assumes one spread for all groups, and groups that are independent of each other.
    Source: Cochran (1977), Sampling Techniques, chapter 5, with a pooled variance.

    Args:
        values: (k, n), (groups, draws), at least two draws. weights: (k,), for example 1 and -1 for a difference.
        inflation: c_i, one or (k,), by how much the variance of a group's mean exceeds s^2 / n; see `overlap_factor`.
    Raises InputError for other shapes or values that are not finite.

    >>> contrast_interval([[1.0, 1.0], [3.0, 3.0]], [-1, 1])
    Interval(mean=2.0, low=2.0, high=2.0, n=4)
    """
    x = finite_array(values, 2, "contrast_interval", "(n_groups, n_draws)")
    w = finite_array(weights, 1, "contrast_interval", "(n_groups,)")
    k, n = x.shape
    if len(w) != k or n < 2:
        raise InputError(f"contrast_interval: {len(w)} weights for values of shape {x.shape}, at least 2 draws.")
    check_level(level)
    spread = float(np.sqrt(x.var(axis=1, ddof=1).mean()))
    size = float(np.sqrt(np.sum(w**2 * np.asarray(inflation, dtype=np.float64)) / n))
    half = float(stats.t.ppf((1 + level) / 2, k * (n - 1))) * spread * size
    mean = float(w @ x.mean(axis=1))
    return Interval(mean, mean - half, mean + half, k * n)


def no_worse(difference: Interval) -> Verdict:
    """Return whether one text is at least as good as another, by its damage minus the other's.

    "supported" if the interval lies wholly below `SMALLEST_EFFECT`, "not supported" if wholly above it, else
    "inconclusive": a test of non-inferiority with that margin.
    """
    if difference.low is None or difference.high is None:
        return "inconclusive"
    if difference.high < SMALLEST_EFFECT:
        return "supported"
    return "not supported" if difference.low > SMALLEST_EFFECT else "inconclusive"


def gains(wide: Interval, narrow: Interval) -> Verdict:
    """Return whether something lowers the damage by an amount that matters, from the change of damage.

    "supported" if the 95 % interval lies wholly below -`SMALLEST_EFFECT`, "not supported" if the 90 % interval lies
    wholly above it (a one-sided test at 5 %: no gain of that size), else "inconclusive".
    """
    if wide.high is None or narrow.low is None:
        return "inconclusive"
    if wide.high < -SMALLEST_EFFECT:
        return "supported"
    return "not supported" if narrow.low > -SMALLEST_EFFECT else "inconclusive"


# --- names ------------------------------------------------------------------------------------------------


def real_texts(cfg: Parameters) -> list[str]:
    """Return the real texts that are compared; random tokens are none."""
    return [name for name in cfg.sources if name != FLOOR_SOURCE]


def own_texts(cfg: Parameters) -> list[str]:
    """Return the names of the own texts, each once (without a prefix they are all the same)."""
    return list(dict.fromkeys(cfg.own().values()))


def labels(cfg: Parameters) -> dict[str, str]:
    """Return what each own text and mixture is called: "own after c4", "own after c4 (16 tokens)", "c4 + own"."""
    first = next(iter(cfg.own()))
    found = {name: f"own after {first} ({length} tokens)" for length, name in cfg.by_length().items()}
    for length, name in cfg.by_length().items():
        if not length:
            found[name] = "own after nothing"
    if cfg.prefix_len:
        found |= {name: f"own after {source}" for source, name in cfg.own().items()}
    return found | {name: f"{source} + own" for source, name in cfg.mixed().items()}


def at_size(table: pd.DataFrame, n_samples: int) -> pd.DataFrame:
    """Return the runs that were calibrated with so many windows."""
    return table[table["n_samples"] == n_samples]


# --- own beside real text ---------------------------------------------------------------------------------


def comparison_table(
    table: pd.DataFrame, cfg: Parameters, measures: Sequence[str] = ("damage",), overlap: float = 0.0
) -> pd.DataFrame:
    """Return, for each measure and method, the mean of the own texts minus real text, with limits.

    Columns: measure, method, against (`AGAINST`), mean, low, high (95 %), low90, high90. The best real text is chosen
    after seeing the means, which favours it. Positive: own text loses more.

    Args:
        table: a row for each run, with the measures as columns.
        overlap: share of the pool of own text that a draw takes; see `overlap_factor`. 0 = not taken into account.
    """
    real, own, prefixes = real_texts(cfg), own_texts(cfg), list(cfg.own())
    names = [*real, *own]
    inflation = [overlap_factor(overlap, cfg.n_seeds) if name in own else 1.0 for name in names]
    rows = []
    for measure in measures:
        x = cells(at_size(table, cfg.n_samples), names, cfg.methods, range(cfg.n_seeds), measure)
        for m, method in enumerate(cfg.methods):
            best = real[int(x[: len(real), m].mean(axis=1).argmin())]
            for against, others in zip(AGAINST, (real, [best], prefixes), strict=True):
                weights = [(name in own) / len(own) - (name in others) / len(others) for name in names]
                wide, narrow = (contrast_interval(x[:, m], weights, level, inflation) for level in (0.95, 0.90))
                rows.append((measure, method, against, wide.mean, wide.low, wide.high, narrow.low, narrow.high))
    return pd.DataFrame(rows, columns=["measure", "method", "against", *LIMITS])


def gap_table(table: pd.DataFrame, cfg: Parameters) -> pd.DataFrame:
    """Return, for each method and text, its mean damage minus the mean of the real texts, and its rank.

    Columns: method, source, label, own, mean, low, high (95 %, of the text's mean alone), rank (1 = least damage).
    """
    real, own, called = real_texts(cfg), own_texts(cfg), labels(cfg)
    names = [*real, *own]
    x = cells(at_size(table, cfg.n_samples), names, cfg.methods, range(cfg.n_seeds), "damage")
    rows = []
    for m, method in enumerate(cfg.methods):
        centred = x[:, m] - x[: len(real), m].mean()
        ranks = stats.rankdata(centred.mean(axis=1), method="min")
        for place, name in enumerate(names):
            found = contrast_interval(centred, np.eye(len(names))[place])
            limits = (found.mean, found.low, found.high, int(ranks[place]))
            rows.append((method, name, called.get(name, name), name in own, *limits))
    return pd.DataFrame(rows, columns=["method", "source", "label", "own", "mean", "low", "high", "rank"])


def run_gaps(table: pd.DataFrame, cfg: Parameters) -> pd.DataFrame:
    """Return the single runs behind `gap_table`: method, source, seed, and gap, the damage minus the same mean."""
    runs = at_size(table, cfg.n_samples)
    runs = runs[runs["source"].isin([*real_texts(cfg), *own_texts(cfg)]) & runs["method"].isin(cfg.methods)]
    centre = runs[runs["source"].isin(real_texts(cfg))].groupby("method")["damage"].mean()
    return runs[["method", "source", "seed"]].assign(gap=runs["damage"] - runs["method"].map(centre))


def prefix_source_table(table: pd.DataFrame, cfg: Parameters) -> pd.DataFrame:
    """Return how far the prefix sources lie apart as calibration texts, and how far the own texts after them do.

    With the first method. Columns: kind ("real", "own"), prefix, mean, then for all rows of a kind: range, null_q95,
    p_value of `same_source_null`, and the verdict of `sources_differ`. Without rows for fewer than two own texts.
    """
    columns = ["kind", "prefix", "mean", "range", "null_q95", "p_value", "verdict"]
    if len(own_texts(cfg)) < 2:
        return pd.DataFrame(columns=columns)
    rows, size = [], at_size(table, cfg.n_samples)
    for kind, names in (("real", list(cfg.own())), ("own", list(cfg.own().values()))):
        x: Floats = cells(size, names, cfg.methods[:1], range(cfg.n_seeds), "damage")[:, 0]
        null: SameSourceNull = same_source_null(x, seed=0)
        facts = (null.observed, null.null_q95, null.p_value, sources_differ(null))
        rows += [(kind, prefix, mean, *facts) for prefix, mean in zip(cfg.own(), x.mean(axis=1), strict=True)]
    return pd.DataFrame(rows, columns=columns)


# --- length of the prefix, and own text added to real text -------------------------------------------------


def length_table(table: pd.DataFrame, cfg: Parameters) -> pd.DataFrame:
    """Return the damage of own text for each length of prefix, and its difference from the chosen length.

    With the first method. Columns: length, level, level_low, level_high (the damage, 95 %), then `LIMITS` of the
    difference; alike: "equivalent" if its 90 % interval lies within `SMALLEST_EFFECT`, "different" if its 95 % one lies
    beyond, else "inconclusive"; better: whether it has less damage by that much (`gains`). Empty for the chosen length.
    """
    lengths = cfg.by_length()
    x = cells(at_size(table, cfg.n_samples), list(lengths.values()), cfg.methods[:1], range(cfg.n_seeds), "damage")[
        :, 0
    ]
    chosen = list(lengths).index(cfg.prefix_len)
    words = {"supported": "different", "not supported": "equivalent", "inconclusive": "inconclusive"}
    rows = []
    for place, length in enumerate(lengths):
        one = np.eye(len(lengths))
        level = contrast_interval(x, one[place])
        wide, narrow = (contrast_interval(x, one[place] - one[chosen], confidence) for confidence in (0.95, 0.90))
        said = ("", "") if place == chosen else (words[changes(wide, narrow)], gains(wide, narrow))
        limits = (wide.mean, wide.low, wide.high, narrow.low, narrow.high)
        rows.append((length, level.mean, level.low, level.high, *limits, *said))
    return pd.DataFrame(rows, columns=["length", "level", "level_low", "level_high", *LIMITS, "alike", "better"])


def added_runs(table: pd.DataFrame, cfg: Parameters) -> pd.DataFrame:
    """Return the runs with own text added to real text, and with real text alone: prefix, set, seed, damage.

    With the first method. set: "real", as many windows as elsewhere; "real, twice", twice as many; "real + own", the
    windows of "real" and as many of own text. All three share the windows of "real" at each seed.
    """
    rows, seeds = [], range(cfg.n_seeds)
    for source, mixture in cfg.mixed().items():
        kinds = {"real": (1, source), "real, twice": (2, source), "real + own": (2, mixture)}
        for kind, (times, name) in kinds.items():
            x = cells(at_size(table, times * cfg.n_samples), [name], cfg.methods[:1], seeds, "damage")[0, 0]
            rows += [(source, kind, seed, value) for seed, value in zip(seeds, x, strict=True)]
    return pd.DataFrame(rows, columns=["prefix", "set", "seed", "damage"])


def added_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what adding own text to real text changes: against ("real", "real, twice"), `LIMITS`, verdict.

    The verdict against "real" is whether it lowers the damage (`gains`), against "real, twice" whether it does as well
    as as much real text (`no_worse`). Pairs share seed and real windows. Without rows if nothing was added.

    Args:
        runs: from `added_runs`.
    """
    rows = []
    for against in ("real", "real, twice") if len(runs) else ():
        wide_table = runs.pivot(index=["prefix", "seed"], columns="set", values="damage")
        x = (wide_table["real + own"] - wide_table[against]).unstack("seed").to_numpy(np.float64)
        wide, narrow = stratified_interval(x), stratified_interval(x, level=0.90)
        said = gains(wide, narrow) if against == "real" else no_worse(wide)
        rows.append((against, wide.mean, wide.low, wide.high, narrow.low, narrow.high, said))
    return pd.DataFrame(rows, columns=["against", *LIMITS, "verdict"])


# --- verdicts ---------------------------------------------------------------------------------------------


def judge(cfg: Parameters, records: Sequence[Record]) -> list[Judgement]:
    """Return the verdicts of the chapter on J8, J12, J10 and S5, from its checked parameters and its records."""
    return judgements(cfg, damage_table(to_frame(records)))


def judgements(cfg: Parameters, damage: pd.DataFrame) -> list[Judgement]:
    """Return the same from the runs' damage."""
    against = comparison_table(damage, cfg)
    means = {row["method"]: interval_of(row) for _, row in against[against["against"] == AGAINST[0]].iterrows()}
    first, unit = cfg.methods[0], "nats per token"
    by_method = {method: no_worse(found) for method, found in means.items()}
    each = "; ".join(f"{name} {text_of(found)} ({by_method[name]})" for name, found in means.items())
    j8 = f"own text minus the mean of {len(real_texts(cfg))} real texts, damage with {first}: "
    j12 = for_all(list(by_method.values())) if len(means) > 1 else "inconclusive"
    one = "" if len(means) > 1 else "; one method cannot tell"
    lengths = length_table(damage, cfg)
    longer = lengths[lengths["length"] > cfg.prefix_len]
    opposite: dict[str, Verdict] = {"supported": "not supported", "not supported": "supported"}
    j10 = for_all([opposite.get(verdict, "inconclusive") for verdict in longer["better"]])
    told = "; ".join(f"{row['length']}: {text_of(interval_of(row, 90))}" for _, row in longer.iterrows()) or "none"
    found = [
        Judgement("J8", f"{j8}{text_of(means[first])} {unit}", by_method[first], "fig-own-gaps"),
        Judgement("J12", f"the same for each method: {each}, {unit}{one}", j12, "fig-own-gaps"),
        Judgement(
            "J10", f"damage after a longer prefix minus after {cfg.prefix_len} tokens, 90 % intervals: {told} ({unit})",
            j10, "fig-prefix-length",
        ),
    ]  # fmt: skip
    if len(added := added_table(added_runs(damage, cfg))):
        by_set = {row["against"]: row for _, row in added.iterrows()}
        parts = [
            f"damage of real + own minus real {text_of(interval_of(by_set['real']))}",
            f"minus as much real text {text_of(interval_of(by_set['real, twice']))} {unit}",
        ]
        found.append(Judgement("S5", ", ".join(parts), by_set["real"]["verdict"], "fig-own-added"))
    return found


def interval_of(row: "pd.Series[float]", level: int = 95) -> Interval:
    """Return the interval in a row of one of the tables; level: 95 or 90."""
    low, high = ("low", "high") if level == 95 else ("low90", "high90")
    return Interval(float(row["mean"]), float(row[low]), float(row[high]), 0)
