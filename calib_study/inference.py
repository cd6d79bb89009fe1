"""Whether rankings agree, whether two things are the same, how fast noise falls with amount.

Kendall's W, equivalence tests, and the exponent of a standard deviation against an amount. Few seeds decide the
methods, as in `statistics`: where a bootstrap was measured to cover too little, the jackknife takes its place.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from calib_study.errors import InputError
from calib_study.resampling import jackknife_variance, pooled_variance
from calib_study.statistics import Floats, Interval, check_level, finite_array


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far raters agree on a ranking.

    w: Kendall's W, 0 to 1 (all rankings equal), with limits for other raters of the same kind; `n` is their
    number. p_value: chance of a W at least this large if every rater ranked at random. mean_correlation:
    (m W - 1) / (m - 1), without ties the mean Spearman correlation of two raters; unlike W it is 0 on average
    for random rankings, whatever the number of raters m.
    """

    w: Interval
    p_value: float
    mean_correlation: float
    n_objects: int


def kendalls_w(ratings: ArrayLike, *, seed: int, n_permutations: int = 10_000, level: float = 0.95) -> Agreement:
    """Return Kendall's coefficient of concordance, corrected for ties, with a permutation p value and an interval.

    W is the variance of the objects' rank sums over what it would be if all raters agreed; tied objects share
    their mean rank. The p value shuffles each rater's ranks. The interval is a jackknife-t over raters of
    artanh((m W - 1) / (m - 1)), carried back to W. Why not a bootstrap: a resample repeats raters, who
    agree with themselves; its 95 % interval covers about 0.5 with three raters and 0.7 with five; this one 0.95
    and more with three to twenty, 0.91 where W is above 0.96. If all agree, or there are two, it has no limits.
    Source: Kendall & Babington Smith (1939), Ann. Math. Stat. 10; ties: Kendall (1948), Rank Correlation
    Methods, chapter 6; W = Friedman's chi-square / (m (n - 1)).

    Args:
        ratings: (n_raters, n_objects), at least 2 x 2; only their order within a row counts. Raters are what the
            ranking should be stable over: methods, models, seeds. seed: of the shuffling.
    Raises InputError for another shape, or a rater who gives all objects the same value.

    >>> kendalls_w([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], seed=0, n_permutations=99).w
    Interval(mean=1.0, low=None, high=None, n=2)
    """
    x = finite_array(ratings, 2, "kendalls_w", "(n_raters, n_objects)")
    m, n = x.shape
    if m < 2 or n < 2 or n_permutations < 1:
        raise InputError(f"kendalls_w needs 2 raters, 2 objects and a permutation, got {x.shape}, {n_permutations}.")
    check_level(level)
    flat = np.flatnonzero(np.ptp(x, axis=1) == 0)
    if len(flat):
        raise InputError(f"kendalls_w: rater {flat[0]} gives all {n} objects the same value; leave it out.")
    ranks = stats.rankdata(x, axis=1) - (n + 1) / 2
    w = float(_concordance(ranks))
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.broadcast_to(ranks, (n_permutations, m, n)), axis=2)
    reached = int((_concordance(shuffled) >= w - 1e-12).sum())
    low, high = _concordance_limits(ranks, w, level)
    correlation = (m * w - 1) / (m - 1)
    return Agreement(Interval(w, low, high, m), (1 + reached) / (1 + n_permutations), correlation, n)


def _concordance(ranks: Floats) -> Floats:
    """Return W of centred ranks (..., m, n): squared rank sums over m times all squared ranks."""
    m = ranks.shape[-2]
    return np.asarray(np.sum(ranks.sum(axis=-2) ** 2, axis=-1) / (m * np.sum(ranks**2, axis=(-2, -1))))


def _concordance_limits(ranks: Floats, w: float, level: float) -> tuple[float | None, float | None]:
    m, n = ranks.shape
    if m < 3 or w > 1 - 1e-12:
        return None, None
    edge = 1 - 1 / (2 * m * n)  # a correlation of 1 has no artanh

    def transformed(value: Floats | float, raters: int) -> Floats:
        return np.arctanh(np.clip((raters * np.asarray(value) - 1) / (raters - 1), -edge, edge))

    left = np.array([float(_concordance(np.delete(ranks, i, axis=0))) for i in range(m)])
    variance = float(jackknife_variance(transformed(left, m - 1)))
    half = float(stats.t.ppf((1 + level) / 2, m - 1)) * np.sqrt(variance)
    centre = float(transformed(w, m))
    low, high = (max(0.0, (1 + (m - 1) * float(np.tanh(z))) / m) for z in (centre - half, centre + half))
    return low, high


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether a difference lies within a margin, by two one-sided tests.

    difference: mean with the interval of level 1 - 2 alpha. p_lower, p_upper: one-sided p values against a
    difference of -margin or less, and of +margin or more. margin: in the unit of the values.
    """

    difference: Interval
    p_lower: float
    p_upper: float
    margin: float
    alpha: float

    @property
    def p_value(self) -> float:
        """Return the p value of "not equivalent": the larger of the two."""
        return max(self.p_lower, self.p_upper)

    @property
    def verdict(self) -> Literal["equivalent", "different", "inconclusive"]:
        """Return "equivalent" if the interval lies within the margin, "different" if outside of it."""
        low, high = self.difference.low, self.difference.high
        if self.p_value < self.alpha:
            return "equivalent"
        outside = low is not None and high is not None and (low > self.margin or high < -self.margin)
        return "different" if outside else "inconclusive"


def equivalence_test(a: ArrayLike, b: ArrayLike, margin: float, *, paired: bool, alpha: float = 0.05) -> Equivalence:
    """Return whether the means of a and b differ by less than a margin: two one-sided t tests (TOST).

    Not finding a difference is no evidence of none; this is the test whose rejection is. Both tests at
    level alpha, which is the same as the 1 - 2 alpha interval lying within the margin. Its size is at most
    alpha, and its power near zero if the noise is large for the margin: see the interval.
    Source: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15; Welch (1947), Biometrika 34, for unequal variances.

    Args:
        a, b: (n,), at least two values each. margin: above 0, chosen before the data are seen.
        paired: a[i] and b[i] share seed or item i; if False, Welch's test of two independent groups.
    Raises InputError for shapes that do not pair, too few values, a margin that is not above 0.

    >>> equivalence_test([1.0, 2.0, 3.0], [1.1, 2.0, 2.9], 1.0, paired=True).verdict
    'equivalent'
    """
    x = finite_array(a, 1, "equivalence_test", "(n,)")
    y = finite_array(b, 1, "equivalence_test", "(n,)")
    if (paired and x.shape != y.shape) or min(len(x), len(y)) < 2:
        rule = "as many values in both" if paired else "two groups"
        raise InputError(f"equivalence_test needs {rule}, at least 2 of each, got {len(x)} and {len(y)}.")
    if not (np.isfinite(margin) and margin > 0 and 0 < alpha < 0.5):
        raise InputError(f"equivalence_test needs a margin above 0 and alpha in (0, 0.5), got {margin} and {alpha}.")
    groups = [x - y] if paired else [x, y]
    parts = [(np.asarray(g.var(ddof=1) / len(g)), len(g) - 1) for g in groups]
    variance, df = pooled_variance(parts)
    mean, se = float(x.mean() - y.mean()), max(float(np.sqrt(variance)), float(np.finfo(float).tiny))
    half = float(stats.t.ppf(1 - alpha, df)) * se
    return Equivalence(
        difference=Interval(mean, mean - half, mean + half, min(len(x), len(y))),
        p_lower=float(stats.t.sf((mean + margin) / se, df)),
        p_upper=float(stats.t.sf((margin - mean) / se, df)),
        margin=float(margin),
        alpha=alpha,
    )


def minimal_detectable_difference(
    sd: float, n: int, *, paired: bool = True, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the difference that a two-sided t test of n seeds finds with the given power, in the unit of sd.

    Source: noncentral t distribution, as in Cohen (1988), Statistical Power Analysis, chapter 2.

    Args:
        sd: above 0; of the paired differences, or of one group if not paired. n: seeds, of each group.

    >>> round(minimal_detectable_difference(1.0, 34), 2)  # the tables give 34 pairs for half an s.d.
    0.5
    """
    if not (np.isfinite(sd) and sd > 0) or n < 2 or not 0 < alpha < power < 1:
        raise InputError(
            "minimal_detectable_difference needs sd > 0, n >= 2 and 0 < alpha < power < 1; "
            f"got {sd}, {n}, {alpha}, {power}."
        )
    df = n - 1 if paired else 2 * (n - 1)
    critical = stats.t.ppf(1 - alpha / 2, df)

    def lack(shift: float) -> float:
        return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift)) - power

    # a shift of z(power) + the critical value, doubled, has more than the power asked for
    shift = optimize.brentq(lack, 0.0, 2 * (critical + stats.norm.ppf((1 + power) / 2)))
    return float(shift * sd * np.sqrt((1 if paired else 2) / n))


def sd_exponent(amounts: ArrayLike, values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the slope of log s.d. over seeds against log amount, with a jackknife-t interval over seeds.

    Means of independent samples give -1/2; a slope nearer to zero says that more text does not average the
    rest of the noise away. Least squares through the s.d. of each amount, pooled over texts if there are several. One
    draw is left out of all amounts at once, so it may use nested text at different amounts. Measured coverage with five
    and twenty seeds: normal values 0.95 to 0.97, exponential ones 0.93 to 0.95; with three seeds of three texts 0.95 to
    0.96 and 0.92 to 0.93. Percentiles of a bootstrap over seeds within each amount
    cover 0.94 to 0.98 with five seeds, but 0.90 to 0.93 with twenty; the normal theory of log s covers 0.74 to
    0.84 for exponential values.
    Source: Miller (1968), Ann. Math. Stat. 39 (jackknifing log variances).

    Args:
        amounts: (n_amounts,), above 0, at least two of them different.
        values: (n_amounts, n_seeds), or (n_amounts, n_texts, n_seeds) of texts drawn independently; >= 3 seeds.
    Raises InputError for shapes that do not fit, or an amount at which seeds are all equal.

    >>> round(sd_exponent([1.0, 4.0], [[0.0, 2.0, 4.0], [0.0, 1.0, 2.0]]).mean, 6)
    -0.5
    """
    n = finite_array(amounts, 1, "sd_exponent", "(n_amounts,)")
    given = finite_array(values, None, "sd_exponent", "(n_amounts, n_seeds) or (n_amounts, n_texts, n_seeds)")
    check_level(level)
    x = given[:, None] if given.ndim == 2 else given
    if len(n) != len(x) or x.ndim != 3 or x.shape[2] < 3:
        raise InputError(
            f"sd_exponent needs one row for each of {len(n)} amounts and at least 3 seeds, got shape {given.shape}."
        )
    if n.min() <= 0 or np.ptp(n) == 0:
        raise InputError(f"sd_exponent needs amounts above 0 that differ, got {n.tolist()}.")
    _, n_texts, n_seeds = x.shape
    squares = _sums_of_squares(x)  # (n_amounts, n_texts)
    one_less = np.stack([_sums_of_squares(np.delete(x, i, axis=2)) for i in range(n_seeds)])
    left_out = (squares.sum(axis=1, keepdims=True) - squares) + one_less  # (n_seeds, n_amounts, n_texts)
    if (left_out <= 1e-24 * np.abs(x).max(axis=(1, 2))[:, None] ** 2).any():
        raise InputError("sd_exponent: at one of the amounts all seeds, or all but one, have the same value.")
    centred = np.log(n) - np.log(n).mean()
    weights = centred / (centred @ centred)
    slope = float(weights @ np.log(squares.sum(axis=1)) / 2)
    slopes = np.einsum("a,rat->rt", weights, np.log(left_out)) / 2
    variance, df = pooled_variance([(jackknife_variance(slopes[:, t]), n_seeds - 1) for t in range(n_texts)])
    half = float(stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance))
    return Interval(slope, slope - half, slope + half, n_texts * n_seeds)


def _sums_of_squares(x: Floats) -> Floats:
    """Return the sum of squared deviations from the mean along the last axis."""
    return np.asarray(np.sum((x - x.mean(axis=-1, keepdims=True)) ** 2, axis=-1))
