"""What more calibration text changes: damage, the gap between texts, the spread over draws.

Tables of runs come from `frames.text_runs`. A *size* is a number of windows of one length (`n_samples`), or a length of
windows at one number of tokens (`seq_len`). Draws of one seed are nested, so sizes are compared run by run.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from calib_study.errors import InputError
from calib_study.frames import cells, text_runs
from calib_study.inference import Equivalence, equivalence_test, sd_exponent
from calib_study.records import Record, to_frame
from calib_study.resampling import pooled_variance
from calib_study.schedule_tables import change_table, stratified_interval
from calib_study.statistics import Floats, Interval, finite_array
from calib_study.verdicts import SMALLEST_EFFECT, Judgement, Verdict, at_least, text_of

CELL = ["method", "source", "seed"]
AMOUNT, LENGTH = "n_samples", "seq_len"
SIZES = {AMOUNT: "windows", LENGTH: "tokens in a window"}  # what a size counts
GAINING, STEADY = "sparsegpt", "wanda"  # the methods that claim W4 compares


class Sizes(Protocol):
    """What is needed of the chapter's parameters."""

    @property
    def methods(self) -> list[str]:
        """Methods that read text; the first decides most rules, and is the one that is run with `lengths`."""

    @property
    def amounts(self) -> list[int]:
        """Numbers of windows of `seq_len` tokens."""

    @property
    def seq_len(self) -> int:
        """Tokens in each of them."""

    @property
    def lengths(self) -> list[int]:
        """Lengths of the windows that make up `n_tokens` tokens."""

    @property
    def n_tokens(self) -> int:
        """Tokens in each of those sets."""


# --- runs ---------------------------------------------------------------------------------------------------


def amount_runs(cfg: Sizes, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that differ in the number of windows."""
    return runs.loc[(runs["seq_len"] == cfg.seq_len) & runs["n_samples"].isin(cfg.amounts)]


def length_runs(cfg: Sizes, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that differ in the length of windows, at one number of tokens, with the first method."""
    alike = (runs["method"] == cfg.methods[0]) & (runs["n_samples"] * runs["seq_len"] == cfg.n_tokens)
    return runs.loc[alike & runs["seq_len"].isin(cfg.lengths)]


def values_of(damage: pd.DataFrame, method: str) -> tuple[list[int], list[str], Floats]:
    """Return the amounts in rising order, the texts, and a method's damage as (n_amounts, n_texts, n_seeds)."""
    amounts = sorted(int(n) for n in damage[AMOUNT].unique())
    texts, seeds = list(dict.fromkeys(damage["source"])), sorted(damage["seed"].unique())
    by_amount = [damage[damage[AMOUNT] == n] for n in amounts]
    return amounts, texts, np.stack([cells(rows, texts, [method], seeds, "damage")[:, 0] for rows in by_amount])


# --- damage -------------------------------------------------------------------------------------------------


def size_differences(damage: pd.DataFrame, size: str = AMOUNT) -> pd.DataFrame:
    """Return, for each run of a smaller size, its damage minus that of the same run at the largest size.

    The two runs of a pair share method, text and seed. Columns: method, the size, source, seed, difference; falling
    sizes. Raises InputError if there are no two sizes, or a run has no partner.
    """
    largest = damage[size] == damage[size].max()
    pairs = damage[~largest].merge(damage.loc[largest, [*CELL, "damage"]], on=CELL, how="left", suffixes=("", "_most"))
    if pairs.empty or pairs["damage_most"].isna().any() or damage.duplicated([*CELL, size]).any():
        raise InputError(
            f"size_differences needs one run for each method, text, seed and {size}, and two of these at least; "
            f"got {damage[size].nunique()} and {int(pairs['damage_most'].isna().sum())} runs without the largest."
        )
    pairs["difference"] = pairs["damage"] - pairs["damage_most"]
    order: pd.DataFrame = pairs.sort_values(size, ascending=False, kind="stable").reset_index(drop=True)
    return order[["method", size, "source", "seed", "difference"]]


def size_changes(differences: pd.DataFrame, size: str = AMOUNT) -> pd.DataFrame:
    """Return, for each method and smaller size, the mean difference from the largest size and whether it is alike.

    Columns: those of `schedule_tables.change_table`, whose verdict is on "the size changes the damage"; and alike,
    True if this size and all between it and the largest are equivalent to the largest. So no test is made that an
    earlier one has not opened, and all of them together err in 5 %.
    Source: fixed sequences of tests, Maurer, Hothorn & Lehmacher (1995), Biometrie in der chem.-pharm. Industrie 6.

    Args:
        differences: from `size_differences`.
    """
    changes = change_table(differences, size).sort_values(size, ascending=False, kind="stable")
    changes["alike"] = (changes["verdict"] == "not supported").groupby(changes["method"]).cummin()
    methods = list(dict.fromkeys(differences["method"]))
    return changes.sort_values("method", key=lambda names: names.map(methods.index), kind="stable").reset_index(
        drop=True
    )


def enough(changes: pd.DataFrame, method: str, size: str = AMOUNT) -> int | None:
    """Return the smallest size that is alike to the largest, for a method; None if not even the next smaller one is."""
    alike = changes.loc[(changes["method"] == method) & changes["alike"], size]
    return int(alike.min()) if len(alike) else None


def size_is_of_no_matter(changes: pd.DataFrame) -> Verdict:
    """Return whether no size, of one method, changes the damage: "supported" if all are equivalent to the largest.

    "not supported" if one surely is not, by `SMALLEST_EFFECT`; else "inconclusive".

    Args:
        changes: from `size_changes`, at least one row.
    """
    found = set(changes["verdict"])
    if "supported" in found:
        return "not supported"
    return "supported" if found == {"not supported"} else "inconclusive"


# --- the gap between texts ----------------------------------------------------------------------------------


def gap_table(damage: pd.DataFrame) -> pd.DataFrame:
    """Return how far the worst and the best text lie apart at each amount, and how that changes up to the largest.

    The two texts are those with the highest and the lowest mean damage over all amounts, which favours none of them.
    Columns: method, n_samples, worst, best; gap, low, high (95 %); change: the gap at the largest amount minus this
    one, with change_low, change_high (95 %) and change_low90; all missing at the largest. Limits are Welch's: draws
    from two texts are independent.
    """
    rows = []
    for method in dict.fromkeys(damage["method"]):
        amounts, texts, values = values_of(damage[damage["method"] == method], method)
        means = values.mean(axis=(0, 2))
        worst, best = int(means.argmax()), int(means.argmin())
        for n, here in zip(amounts, values, strict=True):
            gap = _welch(here[worst], here[best]).difference
            row = {"method": method, AMOUNT: n, "worst": texts[worst], "best": texts[best]}
            row |= {"gap": gap.mean, "low": gap.low, "high": gap.high}
            if n < amounts[-1]:
                later = values[-1] - here
                wide, narrow = _welch(later[worst], later[best]), _welch(later[worst], later[best], alpha=0.05)
                row |= {"change": wide.difference.mean, "change_low": wide.difference.low}
                row |= {"change_high": wide.difference.high, "change_low90": narrow.difference.low}
            rows.append(row)
    return pd.DataFrame(rows)


def _welch(a: ArrayLike, b: ArrayLike, alpha: float = 0.025) -> Equivalence:
    """Return the difference of two independent means with its interval of level 1 - 2 alpha."""
    return equivalence_test(a, b, SMALLEST_EFFECT, paired=False, alpha=alpha)


def amount_is_enough(changed: Verdict, change_low90: float, change_high: float) -> Verdict:
    """Return whether more text neither lowers the damage nor closes the gap between texts, from the next smaller size.

    changed: whether the next smaller amount changes the damage. change_low90, change_high: lower 90 % and upper 95 %
    limit of the change of the gap. "supported" if the damage is equivalent and the gap surely does not shrink by
    `SMALLEST_EFFECT`; "not supported" if the damage is changed or the gap surely shrinks by more; else "inconclusive".
    """
    if changed == "supported" or change_high < -SMALLEST_EFFECT:
        return "not supported"
    return "supported" if changed == "not supported" and change_low90 > -SMALLEST_EFFECT else "inconclusive"


# --- spread over draws --------------------------------------------------------------------------------------


def spread_table(damage: pd.DataFrame) -> pd.DataFrame:
    """Return how much draws of one text differ at each amount: method, n_samples, sd, range, rms, low, high, verdict.

    sd: pooled over texts. range: of the draws of a text, the widest. rms: root mean square difference of two draws of
    one text, with limits, in nats per token; verdict on "it matters" by `beyond`.
    """
    rows = []
    for method in dict.fromkeys(damage["method"]):
        amounts, _, values = values_of(damage[damage["method"] == method], method)
        for n, here in zip(amounts, values, strict=True):
            found = draw_difference(here)
            sd, widest = found.mean / np.sqrt(2), float(np.ptp(here, axis=1).max())
            rows.append((method, n, sd, widest, found.mean, found.low, found.high, beyond(found)))
    return pd.DataFrame(rows, columns=["method", AMOUNT, "sd", "range", "rms", "low", "high", "verdict"])


def draw_difference(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the root mean square difference of two draws from one text: sqrt(2) times the s.d. pooled over texts.

    Limits by chi-square, with Satterthwaite's degrees of freedom, since texts need not be equally steady. Measured
    coverage of normal values with three draws of three texts: 0.97 if these are equally steady, 0.95 if their s.d. are
    as 1 to 2 to 4; of exponential ones 0.92 and 0.87.
    Source: Satterthwaite (1946), Biometrics Bulletin 2.

    Args:
        values: (n_texts, n_draws), at least two draws.

    >>> round(draw_difference([[0.0, 1.0], [5.0, 6.0]]).mean, 6)
    1.0
    """
    x = finite_array(values, 2, "draw_difference", "(n_texts, n_draws)")
    if x.shape[1] < 2:
        raise InputError(f"draw_difference needs two draws of each text, got shape {x.shape}.")
    variance, df = pooled_variance([(v / len(x), x.shape[1] - 1) for v in x.var(axis=1, ddof=1)])
    low, high = 2 * float(variance) * df / stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], df)
    return Interval(float(np.sqrt(2 * variance)), float(np.sqrt(low)), float(np.sqrt(high)), x.size)


def beyond(found: Interval) -> Verdict:
    """Return whether something is larger than `SMALLEST_EFFECT`: "supported" if its whole interval is, and so on."""
    if found.low is None or found.high is None:
        return "inconclusive"
    return at_least(Interval(found.mean, found.low - SMALLEST_EFFECT, found.high - SMALLEST_EFFECT, found.n))


def exponent_table(damage: pd.DataFrame) -> pd.DataFrame:
    """Return beta of each method, where the s.d. over draws falls as n^-beta: method, beta, low, high, verdict.

    The s.d. is pooled over texts. beta is 1/2 if windows were independent; verdict on "it falls" by `at_least`.
    """
    rows = []
    for method in dict.fromkeys(damage["method"]):
        amounts, _, values = values_of(damage[damage["method"] == method], method)
        slope = sd_exponent(amounts, values)
        assert slope.low is not None and slope.high is not None
        beta = Interval(-slope.mean, -slope.high, -slope.low, slope.n)
        rows.append((method, beta.mean, beta.low, beta.high, at_least(beta)))
    return pd.DataFrame(rows, columns=["method", "beta", "low", "high", "verdict"])


# --- gains by method ----------------------------------------------------------------------------------------


def gain_difference(damage: pd.DataFrame, methods: Sequence[str]) -> Interval:
    """Return by how much more the first of two methods gains from the smallest to the largest amount than the second.

    A gain is a fall of damage. Runs with the same windows are paired, and texts are strata of equal weight.
    """
    gains = [values[0] - values[-1] for _, _, values in (values_of(damage, method) for method in methods)]
    return stratified_interval(gains[0] - gains[1])


def compared_methods(methods: Sequence[str]) -> tuple[str, str] | None:
    """Return which methods claim W4 is tried on: SparseGPT and Wanda, or else the first other one; None if it cannot.

    >>> compared_methods(["dsnot", "sparsegpt"])
    ('sparsegpt', 'dsnot')
    """
    others = [name for name in methods if name != GAINING]
    if GAINING not in methods or not others:
        return None
    return GAINING, STEADY if STEADY in others else others[0]


# --- verdicts -----------------------------------------------------------------------------------------------


def judge(cfg: Sizes, records: Sequence[Record]) -> list[Judgement]:
    """Return what the records say of claims J5, J6, W1, and W4 if SparseGPT and another method were run.

    Args:
        cfg: parameters of 03_amount. records: its runs.
    """
    damage = amount_runs(cfg, text_runs(to_frame(records)))
    first = str(cfg.methods[0])
    found = [_judge_amount(damage, first), _judge_exponent(damage, first), _judge_draws(damage, first)]
    pair = compared_methods(cfg.methods)
    return [*found, _judge_gain(damage, pair)] if pair else found


def _judge_amount(damage: pd.DataFrame, method: str) -> Judgement:
    changes, gaps = size_changes(size_differences(damage)), gap_table(damage)
    change = changes[changes["method"] == method].iloc[0]  # of the next smaller amount
    here = gaps[gaps["method"] == method].iloc[-2]
    verdict = amount_is_enough(change["verdict"], here["change_low90"], here["change_high"])
    said = (
        f"{method}, {change[AMOUNT]} against {damage[AMOUNT].max()} windows: damage {change['mean']:+.3f} "
        f"[{change['low90']:+.3f}, {change['high90']:+.3f}] (90 %), gap between {here['worst']} and {here['best']} "
        f"grows by {here['change']:+.3f} [{here['change_low']:+.3f}, {here['change_high']:+.3f}] nats per token"
    )
    return Judgement("J5", said, verdict, "fig-amount-changes")


def _judge_exponent(damage: pd.DataFrame, method: str) -> Judgement:
    row = exponent_table(damage[damage["method"] == method]).iloc[0]
    beta = Interval(row["beta"], row["low"], row["high"], 0)
    said = f"{method}: the s.d. over draws falls as n^−β with β = {text_of(beta, 2)}; 0.5 if windows were independent"
    return Judgement("J6", said, row["verdict"], "fig-amount-spread")


def _judge_draws(damage: pd.DataFrame, method: str) -> Judgement:
    row = spread_table(damage[damage["method"] == method]).iloc[-1]
    said = (
        f"{method}, {row[AMOUNT]} windows: two draws of one text differ by {row['rms']:.3f} "
        f"[{row['low']:.3f}, {row['high']:.3f}] nats per token (root mean square), over all draws of a text by up to "
        f"{row['range']:.3f}"
    )
    return Judgement("W1", said, row["verdict"], "fig-amount-spread")


def _judge_gain(damage: pd.DataFrame, pair: tuple[str, str]) -> Judgement:
    changes, difference = size_changes(size_differences(damage)), gain_difference(damage, pair)
    smallest, largest = damage[AMOUNT].min(), damage[AMOUNT].max()
    gains = changes[changes[AMOUNT] == smallest].set_index("method")["mean"]
    parts = [f"{name} gains {gains[name]:.3f}, {_alike_from(enough(changes, name), largest)}" for name in pair]
    said = (
        f"from {smallest} to {largest} windows {'; '.join(parts)}; difference of gains {text_of(difference)} "
        "nats per token"
    )
    return Judgement("W4", said, beyond(difference), "fig-amount-changes")


def _alike_from(amount: int | None, largest: int) -> str:
    """Return in words from which amount on a method has what the largest amount gives."""
    return f"no amount below {largest} is surely enough" if amount is None else f"enough from {amount} on"
