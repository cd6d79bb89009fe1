"""On how many weights the masks of two runs disagree, for all pairs of runs that differ in one thing only."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from calib_study.records import OWL_SUFFIX, Record
from calib_study.statistics import mean_interval
from calib_study.verdicts import at_least

if TYPE_CHECKING:
    from calib_study.mask_samples import MaskSample

COMPARED = ("schedule", "seed", "source", "method")  # in the order of the table


def mask_table(records: Iterable[Record], samples: Mapping[str, "MaskSample"]) -> pd.DataFrame:
    """Return the share of weights on which two runs disagree, for each pair that differs in one thing only.

    Columns: differs, one of `COMPARED`, by which the rows are sorted; one, other: its two values; method, schedule,
    source, seed: what the two share (None for what differs); share, in [0, 1].

    Args:
        records: of one model, sparsity and pattern; those without text, or not in `samples`, are left out.
        samples: by run_id, from `MaskSample.of_arrays(store.arrays(record))`.
    """
    from calib_study.mask_samples import disagreement

    runs = []
    for record in records:
        spec = record.spec
        if spec.calibration is not None and record.run_id in samples:
            name = spec.method + (OWL_SUFFIX if spec.allocation else "")
            kind = (spec.schedule, spec.seed, spec.calibration.source, name)
            runs.append((dict(zip(COMPARED, kind, strict=True)), samples[record.run_id]))
    rows = []
    for (one, mask), (other, its_mask) in combinations(runs, 2):
        differing = [name for name in one if one[name] != other[name]]
        if len(differing) == 1:
            (name,) = differing
            pair = {"differs": name, "one": str(one[name]), "other": str(other[name])}
            rows.append({**pair, **one, name: None, "share": disagreement(mask, its_mask)})
    rows.sort(key=lambda row: COMPARED.index(row["differs"]))
    return pd.DataFrame(rows, columns=["differs", "one", "other", *COMPARED, "share"])


def mask_changes(masks: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return whether a schedule moves the mask less than another draw of the same text does.

    For each text: the mean share of weights that differ between two draws (same method and schedule), minus that
    between the schedule and the reference (same method and draw); then the mean over texts with Student's interval.
    Columns: method, schedule, schedule_share, draw_share, mean, low, high, n, verdict ("supported" if the interval
    lies above zero). Empty if there are no masks of both kinds.

    Args:
        masks: from `mask_table`. reference: the schedule that the others are compared with.
    """
    rows = []
    turned = masks[(masks["differs"] == "schedule") & ((masks["one"] == reference) | (masks["other"] == reference))]
    turned = turned.assign(changed=turned["other"].where(turned["one"] == reference, turned["one"]))
    drawn = masks[masks["differs"] == "seed"].groupby(["method", "source"])["share"].mean().to_dict()
    for key, group in turned.groupby(["method", "changed"], sort=False):
        method, schedule = str(key[0]), str(key[1])
        by_text = group.groupby("source")["share"].mean().to_dict()
        pairs = [(drawn[method, text], share) for text, share in by_text.items() if (method, text) in drawn]
        if pairs:
            draws, shares = np.array(pairs).T
            less = mean_interval(draws - shares)
            found = (float(shares.mean()), float(draws.mean()), less.mean, less.low, less.high, less.n)
            rows.append((method, schedule, *found, at_least(less)))
    columns = ["method", "schedule", "schedule_share", "draw_share", "mean", "low", "high", "n", "verdict"]
    return pd.DataFrame(rows, columns=columns)
