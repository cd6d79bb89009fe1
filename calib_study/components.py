"""What decides a result: variance components of source, method, their interaction, seeds and evaluation.

Evaluation noise is taken out, given per value or measured from the items. Few seeds decide the method, as in
`statistics`: limits come from the jackknife over seeds.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from calib_study.errors import InputError, unknown
from calib_study.resampling import item_table, jackknife_variance, pooled_variance
from calib_study.statistics import Floats, Interval, check_level, finite_array

ITEM_BLOCKS = 20  # the items are left out a twentieth at a time


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Variances of source, method, their interaction, seeds and evaluation, and each one's share of the sum.

    estimates: in the squared unit of the values, as estimated: below zero where a factor's effect is smaller
    than what noise alone makes of it. shares: estimates over their sum; they sum to 1, and are empty if the
    estimates sum to zero or less. Limits are None with two seeds, and those of the shares also if the sum is not
    above zero without one of the seeds.
    """

    estimates: dict[str, Interval]
    shares: dict[str, Interval]

    @property
    def clipped(self) -> dict[str, Interval]:
        """Return the estimates and their limits, those below zero set to zero."""
        return {name: _clip(interval) for name, interval in self.estimates.items()}

    @property
    def clipped_shares(self) -> dict[str, float]:
        """Return the shares of the clipped estimates; they sum to 1."""
        total = sum(interval.mean for interval in self.clipped.values())
        return {name: interval.mean / total for name, interval in self.clipped.items()}


def variance_components(
    values: ArrayLike,
    evaluation: ArrayLike = 0.0,
    *,
    shared_draws: bool = True,
    fixed: Collection[str] = (),
    level: float = 0.95,
) -> VarianceComponents:
    """Return variance components of a balanced source x method x seed layout by expected mean squares.

    Mean squares less the evaluation noise in them, solved for the components: for random factors and shared
    draws, seed x method = MS(DM), seed = (MS(D) - MS(DM)) / M, source x method = (MS(SM) - MS(DM)) / R, method =
    (MS(M) - MS(SM)) / (S R), source = (MS(S) - MS(D) - MS(SM) + MS(DM)) / (M R), where D are the draws within a
    source. The limits are estimate -/+ t(R - 1) * jackknife s.e., one seed left out of every cell at once.
    They are for these sources and methods with other seeds (measured coverage 0.91 to 0.99 with three to twenty
    seeds). A bootstrap over seeds repeats draws, which lowers seed variance and raises the rest. For sources as
    a sample of all sources nothing here is wide enough: six of them fix a variance to a factor of about six.
    Source: Cornfield & Tukey (1956), Ann. Math. Stat. 27; Searle, Casella & McCulloch (1992), Variance
    Components, chapter 4; Miller (1974), Biometrika 61.

    Args:
        values: (n_sources, n_methods, n_seeds), each at least 2.
        evaluation: variance that each value has from its test items alone, a number or of the shape of values;
            see `evaluation_variance`. If the items are at hand, `item_variance_components` is better.
        shared_draws: seed r of a source is the same calibration draw for every method, which splits off "seed x
            method". With shared draws False would add their common part to the noise, and bias the interaction.
        fixed: "source", "method" or both, if the levels are all there are (effects summing to zero); then
            their interaction is no part of the other factor's mean square.
    Raises InputError for another shape, a negative evaluation variance, an unknown factor, values all equal.

    >>> x = [[[0.0, 2.0], [4.0, 6.0]], [[2.0, 4.0], [6.0, 8.0]]]
    >>> {k: round(v.mean, 3) for k, v in variance_components(x, shared_draws=False).estimates.items()}
    {'source': 2.0, 'method': 8.0, 'source x method': -1.0, 'seed': 2.0, 'evaluation': 0.0}
    """
    x = finite_array(values, 3, "variance_components", "(n_sources, n_methods, n_seeds)")
    v = np.asarray(evaluation, dtype=np.float64)
    if v.shape not in ((), x.shape) or not np.isfinite(v).all() or (v < 0).any():
        raise InputError(
            f"variance_components takes evaluation variances >= 0 as one number or of shape {x.shape}; "
            f"got shape {v.shape}, smallest {v.min() if v.size else None}."
        )
    layout = _Layout(shared_draws, frozenset(fixed))
    return _with_intervals(layout, [(x, np.broadcast_to(v, x.shape))], level)


def item_variance_components(
    items: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    shared_draws: bool = True,
    fixed: Collection[str] = (),
    level: float = 0.95,
) -> VarianceComponents:
    """Return the variance components of mean scores, with evaluation noise measured from the items themselves.

    All models answer the same items, so their noise is correlated: p (1 - p) / n overstates what it adds to
    differences between runs, and understates what it adds to those between sources that favour other items.
    Here each mean square loses exactly the noise it has, from the covariance of all runs over items.
    "evaluation" is the noise in differences: half the item variance of the difference of two runs, on average.
    The jackknife variance over items (twenty blocks) is added to that over seeds; without it the interval of
    "method" was measured to cover 0.4 to 0.6 instead of 0.94 (200 items, five seeds). Where a component is no
    larger than the noise in it, coverage is 0.84 to 0.90, and it is the upper limit that is too low.
    Source: as `variance_components`; Brennan (2001), Generalizability Theory, on items as a facet.

    Args:
        items: (n_sources, n_methods, n_seeds, n_items), for example 1.0 where the answer is right.
        groups: (n_items,), the task of each item, at least 3 items a task; every task then counts the same.
        shared_draws, fixed, level: as in `variance_components`.
    Raises InputError as `variance_components`, and for a task of fewer than 3 items.
    """
    x = finite_array(items, 4, "item_variance_components", "(n_sources, n_methods, n_seeds, n_items)")
    n_items = x.shape[-1]
    labels = np.zeros(n_items) if groups is None else np.asarray(groups)
    sizes = np.unique(labels, return_counts=True)[1] if labels.shape == (n_items,) else np.array([n_items])
    if sizes.min() < 3:
        raise InputError(f"item_variance_components needs at least 3 items of every task, got {sizes.min()}.")
    tables = [_item_noise(x, labels)]
    n_blocks = min(ITEM_BLOCKS, int(sizes.min()))
    position = np.empty(n_items, dtype=int)  # dealt in turn within each task, so that every block has all of them
    position[np.argsort(labels, kind="stable")] = np.arange(n_items)
    for block in range(n_blocks):
        kept = position % n_blocks != block
        tables.append(_item_noise(x[..., kept], labels[kept]))
    return _with_intervals(_Layout(shared_draws, frozenset(fixed)), tables, level)


def evaluation_variance(accuracy: ArrayLike, n_items: int) -> Floats:
    """Return the variance that accuracies have from their items: p (1 - p) / (n - 1), unbiased for p (1 - p) / n.

    The square of the standard error that lm-evaluation-harness reports for an accuracy.

    Args:
        accuracy: any shape, in [0, 1]. n_items: number of items behind each, at least 2.

    >>> float(evaluation_variance(0.5, 101))
    0.0025
    """
    p = np.asarray(accuracy, dtype=np.float64)
    if n_items < 2 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"evaluation_variance needs accuracies in [0, 1] of 2 items or more, got {p} of {n_items}.")
    return np.asarray(p * (1 - p) / (n_items - 1), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How mean squares become components: whether methods share draws, and which factors are fixed."""

    shared_draws: bool
    fixed: frozenset[str]

    def __post_init__(self) -> None:
        for name in sorted(self.fixed - {"source", "method"}):
            raise unknown("fixed factor", name, ("source", "method"))

    @property
    def names(self) -> tuple[str, ...]:
        return ("source", "method", "source x method", "seed", *["seed x method"] * self.shared_draws, "evaluation")

    def solve(self, x: Floats, noise: Floats) -> Floats:
        """Return the components for values x: (S, M, R).

        noise: (S, M, R), the variance of each value's own noise; or (k, S, M, R), tables whose products summed
        over k are the covariance of the values' noise.
        """
        n_s, n_m, n_r = x.shape
        degrees = np.array([n_s - 1, n_m - 1, (n_s - 1) * (n_m - 1), n_s * (n_r - 1), n_s * (n_m - 1) * (n_r - 1)])
        from_noise = degrees * noise.mean() if noise.ndim == 3 else _sums(noise).sum(axis=0)
        sums = _sums(x) - from_noise
        source, method, both, draw, rest = sums / degrees
        seeds = [(draw - rest * ("method" not in self.fixed)) / n_m, rest]
        if not self.shared_draws:
            draw = rest = (sums[3] + sums[4]) / (degrees[3] + degrees[4])
            seeds = [rest]
        interaction = both - rest
        source = (source - draw - interaction * ("method" not in self.fixed)) / (n_m * n_r)
        method = (method - rest - interaction * ("source" not in self.fixed)) / (n_s * n_r)
        return np.array([source, method, interaction / n_r, *seeds, from_noise.sum() / (x.size - 1)])


def _sums(x: Floats) -> Floats:
    """Return SS of source, method, interaction, draw within source, draw x method; x: (..., S, M, R)."""
    grand = x.mean(axis=(-3, -2, -1), keepdims=True)
    source = x.mean(axis=(-2, -1), keepdims=True) - grand
    method = x.mean(axis=(-3, -1), keepdims=True) - grand
    cell = x.mean(axis=-1, keepdims=True)
    draw = x.mean(axis=-2, keepdims=True) - grand - source
    parts = (source, method, cell - grand - source - method, draw, x - cell - draw)
    squares = [np.sum(np.broadcast_to(part, x.shape) ** 2, axis=(-3, -2, -1)) for part in parts]
    return np.stack(squares, axis=-1)


def _item_noise(items: Floats, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Return the means (S, M, R) and tables (k, S, M, R) with the same covariance as the noise of the items."""
    table = item_table(items, labels)
    cells = table.noise.reshape(-1, items.shape[-1]).T
    factor: Floats = np.asarray(np.linalg.qr(cells, mode="r"))
    return table.means, factor.reshape(-1, *table.means.shape)


def _with_intervals(layout: _Layout, tables: list[tuple[Floats, Floats]], level: float) -> VarianceComponents:
    """Return the components of tables[0]; the others leave out a block of items each, for the jackknife."""
    check_level(level)
    x, noise = tables[0]
    n = x.shape[2]
    if min(x.shape) < 2:
        raise InputError(f"variance components need 2 sources, 2 methods and 2 seeds at least, got shape {x.shape}.")
    if np.ptp(x) <= 1e-12 * float(np.abs(x).max()):
        raise InputError(f"variance components: all {x.size} values are equal, so there is no variance to explain.")
    full = layout.solve(x, noise)
    left_out = []
    if n > 2:
        left_out.append([layout.solve(np.delete(x, i, axis=-1), np.delete(noise, i, axis=-1)) for i in range(n)])
    if n > 2 and len(tables) > 1:
        left_out.append([layout.solve(*table) for table in tables[1:]])
    jackknives = [np.array(values) for values in left_out]
    estimates = _named(layout.names, full, jackknives, level, n)
    if full.sum() <= 0:
        return VarianceComponents(estimates, {})
    totals = [values.sum(axis=1, keepdims=True) for values in jackknives]
    stable = all((total > 0).all() for total in totals)
    parts = [values / total for values, total in zip(jackknives, totals, strict=True)] if stable else []
    return VarianceComponents(estimates, _named(layout.names, full / full.sum(), parts, level, n))


def _named(names: tuple[str, ...], point: Floats, left_out: list[Floats], level: float, n: int) -> dict[str, Interval]:
    """Return point -/+ t * s.e. by name; the variances of the jackknives are added. No jackknife, no limits."""
    if not left_out:
        return {name: Interval(value, None, None, n) for name, value in zip(names, point.tolist(), strict=True)}
    variance, df = pooled_variance([(jackknife_variance(values), len(values) - 1) for values in left_out])
    half = stats.t.ppf((1 + level) / 2, df) * np.sqrt(variance)
    rows = zip(names, point.tolist(), (point - half).tolist(), (point + half).tolist(), strict=True)
    return {name: Interval(value, low, high, n) for name, value, low, high in rows}


def _clip(interval: Interval) -> Interval:
    low, high = (None if x is None else max(x, 0.0) for x in (interval.low, interval.high))
    return Interval(max(interval.mean, 0.0), low, high, interval.n)
