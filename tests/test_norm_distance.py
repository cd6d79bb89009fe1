"""Distances between activation norms: by hand, then the properties of a distance that pruning could feel."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calib_study.errors import InputError, NumericalError
from calib_study.norm_distance import SMALLEST_SHARE, NormDistance, norm_distance

NORMS = arrays(np.float64, 7, elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e6))).filter(np.any)


def test_two_layers_by_hand() -> None:
    # q: log-ratios 0, ln 4, ln 4, 0; mean ln 2; each is ln 2 from it. down: all channels doubled, which is nothing.
    a = {"q": [1.0, 4.0, 12.0, 3.0], "down": [1.0, 2.0, 5.0]}
    b = {"q": [1.0, 1.0, 3.0, 3.0], "down": [2.0, 4.0, 10.0]}
    found = norm_distance(a, b)
    assert list(found.by_layer) == ["q", "down"]
    assert found.by_layer == {"q": pytest.approx(math.log(2)), "down": pytest.approx(0, abs=1e-12)}
    assert found.mean == pytest.approx(math.log(2) / 2)


def test_a_silent_channel_counts_as_a_thousandth_of_the_median() -> None:
    # The median of those above 0 is 2 for both, so the first norm of a is held at 0.002. Log-ratios ln (1 / 1000), 0,
    # 0; their variance is 1/3 - 1/9 = 2/9 of ln(1000)^2.
    found = norm_distance({"q": [0.0, 2.0, 2.0]}, {"q": [2.0, 2.0, 2.0]})
    assert found.mean == pytest.approx(math.sqrt(2) / 3 * math.log(1000))
    quieter = norm_distance({"q": [1e-30, 2.0, 2.0]}, {"q": [2.0, 2.0, 2.0]})
    assert quieter == found and SMALLEST_SHARE == 1e-3
    assert norm_distance({"q": [0.0, 2.0, 2.0]}, {"q": [0.0, 6.0, 6.0]}).mean == pytest.approx(0, abs=1e-12)


def test_a_massive_channel_does_not_hide_the_others() -> None:
    """The cosine of these is 1 but for 1e-6; half of the ordinary channels are twice as loud."""
    a, b = np.array([1e4, 1.0, 1.0, 1.0, 1.0]), np.array([1e4, 2.0, 2.0, 1.0, 1.0])
    assert 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 1e-6
    assert norm_distance({"q": a}, {"q": b}).mean > 0.3


@given(NORMS, NORMS, NORMS, st.floats(1e-3, 1e3))
def test_it_is_a_distance_between_directions(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    factor: float,  # type: ignore[type-arg]
) -> None:
    def distance(x: np.ndarray, y: np.ndarray) -> float:  # type: ignore[type-arg]
        return norm_distance({"q": x}, {"q": y}).mean

    assert distance(a, a) == 0
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    assert distance(a, b) == pytest.approx(distance(a * factor, b), abs=1e-9)
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="same layers of two texts, got 1 and 2: k"):
        norm_distance({"q": [1.0]}, {"q": [1.0], "k": [1.0]})
    with pytest.raises(InputError, match="got 0 and 0: there is none"):
        norm_distance({}, {})
    with pytest.raises(InputError, match=r"q: .* 2 and 3 channels"):
        norm_distance({"q": [1.0, 2.0]}, {"q": [1.0, 2.0, 3.0]})
    with pytest.raises(InputError, match=r"q: .* got \(1, 2\)"):
        norm_distance({"q": [[1.0, 2.0]]}, {"q": [1.0, 2.0]})
    with pytest.raises(NumericalError, match="q: some of its 2 norms are negative or not finite"):
        norm_distance({"q": [1.0, math.nan]}, {"q": [1.0, 2.0]})
    with pytest.raises(NumericalError, match="q: some of its 2 norms are negative"):
        norm_distance({"q": [1.0, 2.0]}, {"q": [1.0, -2.0]})
    with pytest.raises(NumericalError, match="q: all of its 2 norms are 0"):
        norm_distance({"q": [1.0, 2.0]}, {"q": [0.0, 0.0]})


def test_the_order_of_layers_is_the_first_texts() -> None:
    found = norm_distance({"v": [1.0, 2.0], "k": [1.0, 2.0]}, {"k": [1.0, 2.0], "v": [1.0, 2.0]})
    assert found == NormDistance(0.0, {"v": 0.0, "k": 0.0}) and list(found.by_layer) == ["v", "k"]
