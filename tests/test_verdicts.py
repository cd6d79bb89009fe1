"""Verdicts by hand: each word, and each edge between two."""

from typing import Any

import numpy as np
import pytest

from calib_study.statistics import Interval, SameSourceNull, mean_interval
from calib_study.verdicts import SMALLEST_EFFECT, at_least, for_all, sources_differ, text_of


def null(p_value: float, null_q95: float) -> SameSourceNull:
    return SameSourceNull(
        observed=0.1,
        null_mean=0.05,
        null_q95=null_q95,
        p_value=p_value,
        relative=2.0,
        within_sd=0.05,
        n_sources=4,
        n_seeds=5,
        draws=np.array([0.05]),
    )


@pytest.mark.parametrize(
    ("p_value", "null_q95", "verdict"),
    [
        (0.0001, 0.2, "supported"),
        (0.0499, 0.001, "supported"),  # however small the effect would have had to be
        (0.05, 0.2, "inconclusive"),  # "p < 0.05" is strict
        (0.3, SMALLEST_EFFECT, "inconclusive"),  # an effect of exactly 0.01 need not have shown
        (0.3, 0.0099, "not supported"),  # a difference of 0.01 would have been beyond 95 % of the null
    ],
)
def test_sources_differ(p_value: float, null_q95: float, verdict: str) -> None:
    assert sources_differ(null(p_value, null_q95)) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.3, "supported"),
        (-0.3, -0.01, "not supported"),
        (-0.1, 0.1, "inconclusive"),
        (0.0, 0.1, "inconclusive"),  # an interval that touches zero decides nothing
        (-0.1, 0.0, "inconclusive"),
        (None, None, "inconclusive"),
        (None, 0.1, "inconclusive"),
    ],
)
def test_at_least(low: float | None, high: float | None, verdict: str) -> None:
    assert at_least(Interval(0.1, low, high, 5)) == verdict


def test_at_least_from_values() -> None:
    # mean 2, s = 1, n = 3: 2 -/+ 4.303 * 1 / sqrt(3) = 2 -/+ 2.484, which holds zero; with 12, 13, 14 it does not
    assert at_least(mean_interval([1.0, 2.0, 3.0])) == "inconclusive"
    assert at_least(mean_interval([12.0, 13.0, 14.0])) == "supported"
    assert at_least(mean_interval([-12.0, -13.0, -14.0])) == "not supported"
    assert at_least(mean_interval([5.0])) == "inconclusive"  # one value has no interval


def test_text_of() -> None:
    assert text_of(Interval(0.1234, 0.1, 0.1468, 5)) == "0.123 [0.100, 0.147]"
    assert text_of(Interval(-2.0, -3.0, -1.0, 5), digits=1) == "-2.0 [-3.0, -1.0]"
    assert text_of(Interval(0.5, None, None, 1)) == "0.500"


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive"], "inconclusive"),
        (["inconclusive", "not supported"], "not supported"),
        ([], "inconclusive"),
    ],
)
def test_a_claim_about_several_cases_must_hold_in_all(verdicts: Any, whole: str) -> None:
    assert for_all(verdicts) == whole
