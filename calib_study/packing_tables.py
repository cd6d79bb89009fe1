"""What the way of cutting windows changes: damage, how far texts lie apart, and their order.

A *cut* is a policy (`packed`: documents joined; `document`: one window from one document) with a selection of documents
(`all`, or `long` ones only). Tables of runs come from `frames.text_runs` by way of `cut_runs`.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from calib_study.errors import InputError
from calib_study.frames import FLOOR_SOURCE, cells, text_runs
from calib_study.records import Record, to_frame
from calib_study.schedule_tables import order_table
from calib_study.statistics import Floats, Interval, finite_array, mean_interval, shares_interval
from calib_study.verdicts import Judgement, at_least
from calib_study.windows import POLICIES

SELECTIONS = ("all", "long")
CUTS = tuple(f"{policy}, {selection}" for policy in POLICIES for selection in SELECTIONS)
JOINED, SINGLE = CUTS[0], CUTS[-1]  # how the papers' loaders cut Wikipedia, and every other text
PAPERS = "as the papers cut"
PACKED_TEXT = "wikipedia"
FACTORS = ("text", "policy", "selection")
CHANGES = ("document − packed", "long − all")


# --- runs ---------------------------------------------------------------------------------------------------


def cut_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with their `selection` and `cut` in columns, in the order of `CUTS`."""
    selection = np.where(runs["min_tokens"].isna(), *SELECTIONS)
    named = runs.assign(selection=selection, cut=runs["policy"] + ", " + selection)
    return named.sort_values("cut", key=lambda cuts: cuts.map(CUTS.index), kind="stable").reset_index(drop=True)


def packed_text(texts: Sequence[str]) -> str:
    """Return the text in the place of the one that the papers cut from a joined stream: Wikipedia, if it is there.

    >>> packed_text(["c4", "hub:wikipedia"]), packed_text(["math", "code"])
    ('hub:wikipedia', 'math')
    """
    return next((name for name in texts if name.removeprefix("hub:") == PACKED_TEXT), texts[0])


def values_of(damage: pd.DataFrame, method: str) -> tuple[list[str], Floats]:
    """Return the texts and a method's damage as (n_texts, n_policies, n_selections, n_seeds), as `CUTS` are ordered."""
    texts, seeds = list(dict.fromkeys(damage["source"])), sorted(damage["seed"].unique())
    by_cut = [cells(damage[damage["cut"] == cut], texts, [method], seeds, "damage")[:, 0] for cut in CUTS]
    return texts, np.stack(by_cut, axis=1).reshape(len(texts), len(POLICIES), len(SELECTIONS), len(seeds))


# --- how far texts lie apart --------------------------------------------------------------------------------


def in_rows(values: ArrayLike, packed: int) -> Floats:
    """Return the damage under each of `CUTS` and then as the papers' loaders cut: (n_cuts + 1, n_texts, n_seeds).

    The last row has the first cut of text number `packed`, and the last cut of every other text.

    Args:
        values: (n_texts, n_policies, n_selections, n_seeds).
    """
    x = finite_array(values, 4, "in_rows", "(n_texts, n_policies, n_selections, n_seeds)")
    alike = x.reshape(len(x), -1, x.shape[-1]).transpose(1, 0, 2)
    mixed = alike[-1].copy()
    mixed[packed] = alike[0, packed]
    return np.concatenate([alike, mixed[None]])


def packing_difference(values: ArrayLike, packed: int) -> Interval:
    """Return how much further the texts lie apart as the papers' loaders cut them than when they are cut alike.

    For each seed: the s.d. between texts in the papers' way minus the mean of the s.d. under the equal cuts; Student's
    interval over seeds. In nats per token.

    Args:
        values, packed: as in `in_rows`, at least two texts.
    """
    rows = in_rows(values, packed)
    if rows.shape[1] < 2:
        raise InputError(f"packing_difference compares texts: at least 2 are needed, got {rows.shape[1]}.")
    spreads = rows.std(axis=1, ddof=1)  # (n_cuts + 1, n_seeds)
    return mean_interval(spreads[-1] - spreads[:-1].mean(axis=0))


def spread_table(damage: pd.DataFrame) -> pd.DataFrame:
    """Return how far the texts lie apart under each cut, and as the papers' loaders cut them.

    Columns: method, cut; sd, low, high: the s.d. between texts, mean over seeds with its 95 % interval; packed: the
    text that the papers' way joins; deficit, deficit_low, deficit_high: its damage minus the mean of the other texts'.
    """
    rows = []
    for method in dict.fromkeys(damage["method"]):
        texts, values = values_of(damage, method)
        joined = packed_text(texts)
        which = texts.index(joined)
        for cut, here in zip([*CUTS, PAPERS], in_rows(values, which), strict=True):
            sd = mean_interval(here.std(axis=0, ddof=1))
            deficit = mean_interval(here[which] - np.delete(here, which, axis=0).mean(axis=0))
            limits = (sd.mean, sd.low, sd.high, joined, deficit.mean, deficit.low, deficit.high)
            rows.append((method, cut, *limits))
    columns = ["method", "cut", "sd", "low", "high", "packed", "deficit", "deficit_low", "deficit_high"]
    return pd.DataFrame(rows, columns=columns)


def text_means(damage: pd.DataFrame) -> pd.DataFrame:
    """Return the mean damage of each text under each cut and as the papers' loaders cut: method, cut, source, mean."""
    rows = []
    for method in dict.fromkeys(damage["method"]):
        texts, values = values_of(damage, method)
        means = in_rows(values, texts.index(packed_text(texts))).mean(axis=2)
        for cut, here in zip([*CUTS, PAPERS], means, strict=True):
            rows += [(method, cut, text, float(mean)) for text, mean in zip(texts, here, strict=True)]
    return pd.DataFrame(rows, columns=["method", "cut", "source", "mean"])


# --- effects of the cut -------------------------------------------------------------------------------------


def cut_differences(damage: pd.DataFrame) -> pd.DataFrame:
    """Return what policy and selection change in damage, text by text and seed by seed: the other one averaged over.

    Columns: method, change (one of `CHANGES`), source, seed, difference.
    """
    rows = []
    for method in dict.fromkeys(damage["method"]):
        texts, values = values_of(damage, method)
        effects = np.diff(values, axis=1).mean(axis=(1, 2)), np.diff(values, axis=2).mean(axis=(1, 2))
        for change, effect in zip(CHANGES, effects, strict=True):
            for (text, seed), difference in np.ndenumerate(effect):
                rows.append((method, change, texts[text], seed, float(difference)))
    return pd.DataFrame(rows, columns=["method", "change", "source", "seed", "difference"])


def cut_order_table(damage: pd.DataFrame) -> pd.DataFrame:
    """Return whether the order of the texts is that of the first cut: `schedule_tables.order_table`, by `cut`."""
    return order_table(damage.drop(columns=["policy", "min_tokens"]), "cut", JOINED)


def cut_shares(values: ArrayLike, level: float = 0.95) -> dict[str, Interval]:
    """Return which share of the variance of damage text, policy, selection, their interactions and the draw explain.

    Sums of squares of a balanced layout over their total, corrected for bias, with intervals over seeds as in
    `statistics.variance_shares_interval`.

    Args:
        values: (n_texts, n_policies, n_selections, n_seeds), at least 3 seeds.
    """
    x = finite_array(values, 4, "cut_shares", "(n_texts, n_policies, n_selections, n_seeds)")
    if x.shape[-1] < 3:
        raise InputError(f"cut_shares needs at least 3 seeds, got shape {x.shape}.")
    return shares_interval(x, _sums_of_squares, [*(" x ".join(names) for names in _subsets(FACTORS)), "draw"], level)


def _sums_of_squares(x: Floats) -> Floats:
    """Return the sum of squares of each effect and interaction of the first axes, and within cells."""
    cell, size = x.mean(axis=-1), x.shape[-1]
    means = {(): np.full_like(cell, cell.mean())}
    sums = []
    for axes in _subsets(range(cell.ndim)):
        others = tuple(axis for axis in range(cell.ndim) if axis not in axes)
        mean = np.broadcast_to(cell.mean(axis=others, keepdims=True), cell.shape)
        means[axes] = mean - sum(part for inner, part in means.items() if set(inner) < set(axes))
        sums.append(size * float(np.sum(means[axes] ** 2)))
    return np.array([*sums, float(np.sum((x - cell[..., None]) ** 2))])


def _subsets(factors: Any) -> list[tuple[Any, ...]]:
    """Return the subsets of factors but the empty one, smaller ones first."""
    every = list(factors)
    return [chosen for n in range(1, len(every) + 1) for chosen in combinations(every, n)]


def documents_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return from how many documents a calibration set is cut, on average, by text (rows) and cut (columns)."""
    found = [
        {"source": text.source, "policy": text.policy, "min_tokens": text.min_tokens, "n": facts.n_documents}
        for record in records
        if (text := record.spec.calibration) and (facts := record.calibration) and text.source != FLOOR_SOURCE
    ]
    table = cut_runs(pd.DataFrame(found))
    return table.pivot_table(index="source", columns="cut", values="n", sort=False)


# --- verdict ------------------------------------------------------------------------------------------------


def judge(cfg: Any, records: Sequence[Record]) -> list[Judgement]:
    """Return what the records say of claim J14, by the first method.

    Args:
        cfg: parameters of 04_packing. records: its runs.
    """
    method = str(cfg.methods[0])
    texts, values = values_of(cut_runs(text_runs(to_frame(records))), method)
    joined = packed_text(texts)
    found = packing_difference(values, texts.index(joined))
    spreads = in_rows(values, texts.index(joined)).std(axis=1, ddof=1).mean(axis=1)
    said = (
        f"{method}: s.d. between texts {spreads[-1]:.3f} with {joined} cut ‘{JOINED}’ and the others ‘{SINGLE}’, "
        f"{spreads[:-1].mean():.3f} when cut alike; difference {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}] "
        "nats per token"
    )
    return [Judgement("J14", said, at_least(found), "fig-texts-by-cut")]
