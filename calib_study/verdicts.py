"""Verdicts: from a rule written beforehand and its statistic to one of three words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from calib_study.statistics import Interval, SameSourceNull

Verdict = Literal["supported", "not supported", "inconclusive"]

# Nats per token; 0.01 is one per cent of perplexity. A smaller difference between texts is of no practical use.
SMALLEST_EFFECT = 0.01
SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the records say of one claim of a paper, by a rule written before.

    claim: its id, such as "J1". statistic: what the rule looks at, in words, with estimate, interval and unit.
    figure: label of the figure that shows it.
    """

    claim: str
    statistic: str
    verdict: Verdict
    figure: str


def judgement_table(judgements: Sequence[Judgement]) -> str:
    """Return judgements as a table in Markdown, one row for each, with links to figures of the same page."""
    lines = [f"| {j.claim} | {j.statistic} | **{j.verdict}** | [shown](#{j.figure}) |" for j in judgements]
    return "\n".join(["| claim | statistic | verdict | figure |", "|---|---|---|---|", *lines])


def sources_differ(null: SameSourceNull) -> Verdict:
    """Return whether sources differ by more than draws from one source do.

    "supported" if p < 0.05 under the same-source null. If not, "not supported" when the experiment would have
    shown a difference of `SMALLEST_EFFECT` (the null's 95 % quantile lies below it), else "inconclusive".
    """
    if null.p_value < SIGNIFICANCE:
        return "supported"
    return "not supported" if null.null_q95 < SMALLEST_EFFECT else "inconclusive"


def at_least(difference: Interval) -> Verdict:
    """Return whether one quantity is at least another, by the interval of their difference (first minus second).

    "supported" if the whole interval is above zero, "not supported" if it is below, else "inconclusive".
    """
    if difference.low is None or difference.high is None:
        return "inconclusive"
    if difference.low > 0:
        return "supported"
    return "not supported" if difference.high < 0 else "inconclusive"


def shifted(interval: Interval, by: float) -> Interval:
    """Return an interval moved by a number, for a rule whose threshold is not zero.

    >>> shifted(Interval(1.0, 0.5, None, 3), -0.5)
    Interval(mean=0.5, low=0.0, high=None, n=3)
    """
    low, high = (None if end is None else end + by for end in (interval.low, interval.high))
    return Interval(interval.mean + by, low, high, interval.n)


def for_all(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on "it holds in every case": not supported if in one it is not, supported if in all it is."""
    if "not supported" in verdicts:
        return "not supported"
    return "supported" if verdicts and set(verdicts) == {"supported"} else "inconclusive"


def text_of(interval: Interval, digits: int = 3) -> str:
    """Return an interval as "0.123 [0.100, 0.146]", or the estimate alone if it has no limits.

    >>> text_of(Interval(0.1234, 0.1, 0.1468, 5))
    '0.123 [0.100, 0.147]'
    """
    if interval.low is None or interval.high is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
