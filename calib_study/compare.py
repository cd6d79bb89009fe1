"""Two stored runs, or two groups of runs paired by seed, beside each other: differences with their intervals.

Runs are compared on what both answered: the same windows of held-out text, the same items of tasks. Two single runs
are paired by window and by item, two groups by the seed that drew their calibration text.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from calib_study.errors import InputError
from calib_study.methods import METHODS
from calib_study.paired_scores import Scores, incomparable, scores_of
from calib_study.records import Record
from calib_study.resampling import hierarchical_bootstrap, paired_bootstrap
from calib_study.selection import Selection, facts
from calib_study.statistics import Interval, paired_difference

Over = Literal["seeds", "both"]
LEVEL = 0.95
MIN_ITEMS = 4  # windows or items, for an interval that holds for new ones; fewer give one of any width
SHOWN_SETTINGS = 5  # in the error for a group of several


@dataclass(frozen=True)
class Row:
    """One metric on one data set.

    Attributes:
        a, b: means over seeds, of a perplexity geometric ones.
        difference: A - B with its limits; A / B - 1 if `relative`, which only perplexities are.
        n: what it is paired by.
    """

    metric: str
    dataset: str
    unit: str
    higher_is_better: bool
    a: float
    b: float
    difference: Interval
    relative: bool
    n: str

    @property
    def better(self) -> str:
        """ "A" or "B", "equal", "undecided" if the interval holds zero, or nothing without an interval."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return ""
        if low == high == 0:
            return "equal"
        if low <= 0 <= high:
            return "undecided"
        return "A" if (low > 0) == self.higher_is_better else "B"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        pairs: runs of A and B, by seed if there are several. differs: (field, of A, of B) of their specifications.
        left_out: a line for each reason why something was not compared.
    """

    a: Selection
    b: Selection
    pairs: tuple[tuple[Record, Record], ...]
    differs: tuple[tuple[str, str, str], ...]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    over: Over


def compare(a: Selection, b: Selection, *, over: Over = "seeds", seed: int = 0) -> Comparison:
    """Return the differences of all metrics that both have, on the same windows and items.

    Args:
        a, b: one record each, or records that differ in their seeds only. One run of a method without randomness
            stands beside every seed.
        over: what the interval of groups holds for: new "seeds", the windows and items as given, or "both" new.
            Single runs: new windows and items.
        seed: of the resampling.
    Raises InputError for groups of several settings, no shared seed, twice the same run, or nothing to compare.
    """
    pairs, notes = _pairs(a, b)
    scores = [(scores_of(one, a.store.arrays(one)), scores_of(two, b.store.arrays(two))) for one, two in pairs]
    rows, reasons = [], dict[str, list[str]]()
    for key in dict.fromkeys(key for both in scores for part in both for key in part):
        if reason := incomparable([(one.get(key), two.get(key)) for one, two in scores]):
            reasons.setdefault(reason, []).append(" on ".join(key))
        else:
            rows.append(_row(key, [one[key] for one, _ in scores], [two[key] for _, two in scores], over, seed))
    left_out = [*notes, *(f"{', '.join(names)}: {reason}." for reason, names in reasons.items())]
    if not rows:
        raise InputError("nothing was scored alike in A and B:\n" + "\n".join(left_out))
    return Comparison(a, b, tuple(pairs), _differences(pairs), tuple(rows), tuple(left_out), over)


# --- which runs belong together ---------------------------------------------------------------------------


def _pairs(a: Selection, b: Selection) -> tuple[list[tuple[Record, Record]], list[str]]:
    """Return the pairs of runs, and a note of seeds that only one side has."""
    for name, side in (("A", a), ("B", b)):
        _check_one_setting(name, side)
    if {one.run_id for one in a.records} == {two.run_id for two in b.records}:
        raise InputError(f"A and B are the same: {', '.join(one.run_id for one in a.records)}.")
    if len(a.records) == len(b.records) == 1:
        return [(a.records[0], b.records[0])], []
    ours, theirs = _by_seed(a, b), _by_seed(b, a)
    shared = sorted(ours.keys() & theirs.keys())
    lost = [
        f"seeds {_seeds(own.keys() - other.keys())}: only {name} has them."
        for name, own, other in (("A", ours, theirs), ("B", theirs, ours))
        if own.keys() - other.keys()
    ]
    if not shared:
        raise InputError("A and B share no seed, by which groups are paired:\n" + "\n".join(lost))
    return [(ours[seed], theirs[seed]) for seed in shared], lost


def _by_seed(side: Selection, other: Selection) -> dict[int, Record]:
    """Return the runs by seed; a single one without randomness stands for every seed of the other side."""
    first = side.records[0]
    method = METHODS.get(first.spec.method)
    if len(side.records) == 1 and method and not method.needs_seed and first.calibration is None:
        return {record.spec.seed: first for record in other.records}
    return {record.spec.seed: record for record in side.records}


def _check_one_setting(name: str, side: Selection) -> None:
    """Raise InputError, naming some of the settings, unless the records differ in their seeds only."""
    known = [{field: text for field, text in facts(one.spec).items() if field != "seed"} for one in side.records]
    settings = Counter(tuple(one.items()) for one in known)
    if len(settings) > 1:
        shown = [
            f"  {_condition(dict(one), [dict(other) for other in settings if other != one])}  (records: {n})"
            for one, n in settings.most_common(SHOWN_SETTINGS)
        ]
        raise InputError(
            f"{name} ({side.asked}) should be one setting drawn with several seeds, but its {len(known)} records are "
            f"of {len(settings)}. Add conditions, or --where for both sides; these single out the largest:\n"
            + "\n".join(shown)
        )


def _condition(setting: dict[str, str], others: list[dict[str, str]]) -> str:
    """Return conditions that hold for one setting and not for the others, as few as a greedy choice finds."""
    chosen = []
    while others:
        best = max(setting, key=lambda name: sum(other[name] != setting[name] for other in others))
        chosen.append(f"{best}={setting[best]}")
        others = [other for other in others if other[best] == setting[best]]
    return ",".join(chosen)


def _differences(pairs: Sequence[tuple[Record, Record]]) -> tuple[tuple[str, str, str], ...]:
    """Return (field, of A, of B) for every field in which the specifications differ; seeds of single runs too."""
    one, two = (facts(record.spec) for record in pairs[0])
    return tuple(
        (name, one[name], two[name]) for name in one if one[name] != two[name] and (name != "seed" or len(pairs) == 1)
    )


def _seeds(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


# --- the differences --------------------------------------------------------------------------------------


def _row(key: tuple[str, str], a: Sequence[Scores], b: Sequence[Scores], over: Over, seed: int) -> Row:
    first = a[0]
    difference = _interval(a, b, over, seed)
    n_items = 0 if first.items is None else len(first.items)
    n = f"{n_items} {first.noun}" if n_items else ""
    if len(a) > 1:
        n = f"{len(a)} seeds" + (f" x {n}" if n and over == "both" else "")
    means = [float(np.mean([one.value for one in side])) for side in (a, b)]
    if first.relative:
        low, high = (None if v is None else math.expm1(v) for v in (difference.low, difference.high))
        difference = Interval(math.expm1(difference.mean), low, high, difference.n)
        means = [math.exp(mean) for mean in means]
    better, unit = first.metric.higher_is_better, first.metric.unit
    return Row(*key, unit, better, means[0], means[1], difference, first.relative, n)


def _interval(a: Sequence[Scores], b: Sequence[Scores], over: Over, seed: int) -> Interval:
    """Return the mean of a - b with its limits, None where there is nothing to tell them from."""
    if len(a) > 1 and over == "seeds":
        return paired_difference([one.value for one in a], [two.value for two in b], LEVEL)
    ours, theirs = ([one.items for one in side if one.items is not None] for side in (a, b))
    if len(ours) < len(a) or len(theirs) < len(b) or len(ours[0]) < MIN_ITEMS:
        return Interval(float(np.mean([one.value - two.value for one, two in zip(a, b, strict=True)])), None, None, 1)
    if len(a) == 1:
        return paired_bootstrap(ours[0], theirs[0], seed=seed, level=LEVEL)
    return hierarchical_bootstrap(np.stack(ours), np.stack(theirs), seed=seed, level=LEVEL)


# --- how it is shown --------------------------------------------------------------------------------------


def lines(found: Comparison) -> list[str]:
    """Return the comparison as text: the two sides, what differs between them, the table, what the intervals mean."""
    shown = [f"{name}: {_side(side)}" for name, side in (("A", found.a), ("B", found.b))]
    shown += ["", *_aligned([("differs", "A", "B"), *found.differs], "lll"), ""]
    head = ("metric", "on", "A", "B", "A - B", "interval", "paired by", "better")
    shown += _aligned([head, *(_cells(row) for row in found.rows)], "llrrrlll")
    shown += ["", *(f"Left out: {reason}" for reason in found.left_out), *_meaning(found)]
    if any(row.relative for row in found.rows):
        shown.append("Perplexities differ by A / B - 1, in per cent.")
    return shown


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as what JSON can hold."""
    rows = [{**asdict(row), "difference": asdict(row.difference), "better": row.better} for row in found.rows]
    return {
        "a": {"asked": found.a.asked, "run_ids": [one.run_id for one, _ in found.pairs]},
        "b": {"asked": found.b.asked, "run_ids": [two.run_id for _, two in found.pairs]},
        "seeds": [[one.spec.seed, two.spec.seed] for one, two in found.pairs],
        "differs": {name: [one, two] for name, one, two in found.differs},
        "over": "items" if len(found.pairs) == 1 else found.over,
        "level": LEVEL,
        "rows": rows,
        "left_out": list(found.left_out),
    }


def _side(side: Selection) -> str:
    first = side.records[0]
    if len(side.records) == 1:
        return f"{first.run_id}, {first.spec.model}: {first.spec.title}"
    title = first.spec.title.rpartition(", seed")[0]
    return f"{first.spec.model}: {title}, seeds {_seeds(one.spec.seed for one in side.records)}"


def _cells(row: Row) -> tuple[str, ...]:
    scale, unit = (100.0, " %") if row.relative else (1.0, "")
    digits = 2 if row.relative else 4
    low, high = row.difference.low, row.difference.high
    interval = "" if low is None or high is None else f"[{low * scale:+.{digits}f}, {high * scale:+.{digits}f}]"
    shown = f"{row.difference.mean * scale:+.{digits}f}{unit}"
    return row.metric, row.dataset, f"{row.a:.4f}", f"{row.b:.4f}", shown, interval, row.n, row.better


def _meaning(found: Comparison) -> list[str]:
    """Return what the intervals hold for."""
    if len(found.pairs) == 1:
        how = "resampled over windows or items: for these two models on new ones, not for new draws of text."
    elif found.over == "seeds":
        how = "Student's over seeds: for new draws of calibration text, on these windows and items."
    else:
        how = "resampled over seeds, windows and items: for new draws of calibration text and new windows and items."
    said = [f"Interval: {LEVEL:.0%}, {how}", "Each holds for itself; of 20, one misses by chance."]
    if any(row.difference.low is None for row in found.rows):
        said.append(f"None where fewer than {MIN_ITEMS} windows or items, or no values of single ones, are kept.")
    return said


def _aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Return the lines of a table; sides: "l" or "r" for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(sides))]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
