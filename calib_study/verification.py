"""Published records computed again on this machine: which, and how the comparison is shown."""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from calib_study import paths
from calib_study.errors import DataError
from calib_study.records import Record, Store

if TYPE_CHECKING:
    import pandas as pd


def choose(sample: int | None, seed: int | None) -> tuple[list[Record], int]:
    """Return published records, a random sample of them or all (None), and the seed that chose them.

    Raises DataError if a published file is not a record, or there are none.
    """
    records, problems = Store(paths.results_dir()).scan()
    if problems:
        raise DataError("published records that cannot be read:\n" + "\n".join(problems))
    if not records:
        raise DataError(f"{paths.results_dir()} holds no records.")
    seed = secrets.randbelow(2**31) if seed is None else seed
    return sample_of(records, sample, seed), seed


def sample_of(records: Sequence[Record], sample: int | None, seed: int) -> list[Record]:
    """Return `sample` of the records chosen by a seed, or all of them for None or when there are no more."""
    if sample is None or sample >= len(records):
        return list(records)
    chosen = np.random.default_rng(seed).choice(len(records), sample, replace=False)
    return [records[i] for i in sorted(chosen)]


def report(records: Sequence[Record], *, device: str, tolerance: float | None) -> tuple[str, bool]:
    """Compute records again; return a table, one line for each number, and whether all agree."""
    from calib_study.study import RELATIVE_TOLERANCE, verify

    comparisons = verify(records, device=device, tolerance=RELATIVE_TOLERANCE if tolerance is None else tolerance)
    lines = []
    for row in comparisons:
        if isinstance(row.stored, float):
            numbers = f"{row.stored:>14.6g}{row.again:>14.6g}{row.relative:>12.1e}"
        else:
            numbers = f"{row.stored:>14}{row.again:>14}{'':>12}"
        verdict = "equal" if row.relative == 0 else "agrees" if row.within else "DIFFERS"
        lines.append(f"{row.run_id}  {row.title:<32}{row.quantity:<26}{numbers}  {verdict}")
    head = f"{'run_id':<18}{'run':<32}{'quantity':<26}{'stored':>14}{'again':>14}{'relative':>12}"
    return "\n".join([head, *lines]), all(row.within for row in comparisons)


def spot_check(records: Sequence[Record], sample: int, *, device: str) -> "tuple[pd.DataFrame, int]":
    """Compute a few of the published among `records` again; return the comparison and the seed that chose them.

    The frame has a row for each number: run, quantity, stored, here, difference (relative), agrees. It is empty
    if none of the records is published, for then all of them were computed on this machine.
    """
    import pandas as pd

    from calib_study.study import verify

    seed = secrets.randbelow(2**31)
    published = [record for record in records if (paths.results_dir() / f"{record.run_id}.json").is_file()]
    rows = verify(sample_of(published, sample, seed), device=device) if published and sample else []
    columns = ["run", "quantity", "stored", "here", "relative difference", "agrees"]
    table = [(row.title, row.quantity, row.stored, row.again, row.relative, row.within) for row in rows]
    return pd.DataFrame(table, columns=columns), seed
