"""Source against method, measure by measure: spreads and variance components of a crossed grid.

A crossed grid has every calibration text with every method and every draw. Noise of the evaluation (which items,
which windows) is taken out of the components, and shown as a part of its own.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from calib_study.components import VarianceComponents, item_variance_components, variance_components
from calib_study.errors import InputError
from calib_study.frames import cells
from calib_study.measures import Answers, window_values
from calib_study.records import Record
from calib_study.resampling import noise_in_differences
from calib_study.statistics import Floats, Interval, finite_array, mean_interval
from calib_study.verdicts import at_least

Layout = tuple[Sequence[str], Sequence[str], Sequence[int]]  # texts, methods, seeds
WINDOWED = {"damage": "nll", "jensen_shannon": "jensen_shannon"}  # measure: metric it is the mean of
ANSWERED = {"answer_loss": "bits", "accuracy_loss": "correct"}


def spread_difference(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return how much more the texts differ than the methods: s.d. of the text means minus s.d. of the method means.

    One difference for each seed, and Student's interval over the seeds. A standard deviation, unlike a range, does not
    grow with the number of texts or methods, so six texts and four methods can be compared.

    Args:
        values: (n_sources, n_methods, n_seeds), at least 2 sources and 2 methods.

    >>> spread_difference([[[0.0], [2.0]], [[4.0], [6.0]]]).mean.__round__(3)
    1.414
    """
    x = finite_array(values, 3, "spread_difference", "(n_sources, n_methods, n_seeds)")
    if min(x.shape[:2]) < 2:
        raise InputError(f"spread_difference needs 2 sources and 2 methods, got shape {x.shape}.")
    return mean_interval(x.mean(axis=1).std(axis=0, ddof=1) - x.mean(axis=0).std(axis=0, ddof=1), level)


def spread_table(table: pd.DataFrame, layout: Layout, measures: Sequence[str]) -> pd.DataFrame:
    """Return for each measure how much texts and methods differ, and whether texts differ at least as much.

    Columns: measure, by_text and by_method (s.d. of the means), mean, low, high of their difference, verdict.

    Args:
        table: from `measures.measure_table`. layout: texts, methods that use text, and seeds of the crossed grid.
    """
    rows = []
    for measure in measures:
        x = cells(table, *layout, measure)
        found = spread_difference(x)
        by_text, by_method = x.mean(axis=(1, 2)).std(ddof=1), x.mean(axis=(0, 2)).std(ddof=1)
        rows.append((measure, float(by_text), float(by_method), found.mean, found.low, found.high, at_least(found)))
    return pd.DataFrame(rows, columns=["measure", "by_text", "by_method", "mean", "low", "high", "verdict"])


def crossed_components(
    table: pd.DataFrame, layout: Layout, records: Sequence[Record], answers: Answers
) -> dict[str, VarianceComponents]:
    """Return the variance components of each measure over texts, methods and draws, evaluation noise taken out.

    For accuracy and right answers the noise is measured from the items; for damage and divergence from the windows
    within each held-out text. Texts and methods count as samples of more; the draws are shared by the methods.
    """
    which = index_of(table, layout)
    parts = {}
    for measure, metric in WINDOWED.items():
        runs = {record.run_id: record for record in records}
        windows, texts = window_values([runs[run_id] for run_id in which.ravel()], metric)
        noise = noise_in_differences(windows, texts) if np.unique(texts, return_counts=True)[1].min() > 1 else 0.0
        parts[measure] = variance_components(cells(table, *layout, measure), noise)
    for measure, what in ANSWERED.items():
        items = answers.of(list(which.ravel()), what).reshape(*which.shape, -1)
        parts[measure] = item_variance_components(items, groups=answers.tasks)
    return parts


def index_of(table: pd.DataFrame, layout: Layout) -> NDArray[np.str_]:
    """Return the run_ids of the grid's cells, (n_sources, n_methods, n_seeds). Raises InputError as `cells` does."""
    rows = cells(table.assign(row=np.arange(len(table))), *layout, "row").astype(int)
    return np.asarray(table["run_id"].to_numpy(dtype=str)[rows])


def component_table(parts: dict[str, VarianceComponents]) -> pd.DataFrame:
    """Return the share of each component in each measure: measure, part, share (those below zero set to 0).

    A measure whose components sum to zero or less has no shares.
    """
    rows = [
        (m, part, share) for m, found in parts.items() if found.shares for part, share in found.clipped_shares.items()
    ]
    return pd.DataFrame(rows, columns=["measure", "part", "share"])


def stack_seeds(values: Floats) -> Floats:
    """Return (n_sources, n_methods, n_seeds) as (n_seeds, n_methods, n_sources), as rank correlations take it."""
    return np.ascontiguousarray(values.transpose(2, 1, 0))
