"""How differently two texts excite a model's layers: a distance between the activation norms that pruning reads.

Wanda and its kin know of a calibration text only the norm of each input channel. So this is the part of a text that
can change what they remove. Here are no models, no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from calib_study.errors import InputError, NumericalError
from calib_study.statistics import Floats

SMALLEST_SHARE = 1e-3  # of a layer's median norm: such a channel is removed first under either text


@dataclass(frozen=True)
class NormDistance:
    """Distances between two texts' activation norms, nats of a channel's ratio.

    mean: over layers, one weight each; layers that share an input, as q, k and v do, count it once each.
    by_layer: of each layer by name, in the order of the first text.
    """

    mean: float
    by_layer: dict[str, float]


def norm_distance(a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike]) -> NormDistance:
    """Return how far the activation norms of two texts are apart in each layer, and the mean over layers.

    The standard deviation over channels of ln(norm under a / norm under b), in nats: 0.1 if channels' norms typically
    differ by 10 % one against the other. Why this: Wanda ranks ln |W_ij| + ln norm_j within a row of W, so a
    difference of ln norms is what a text does to the ranking, and one that all channels share (a longer text, a
    louder one) does nothing, which centring takes out. The cosine of the norms would be that of the few massive
    channels, which are massive under every text; a distance relative to ln norms would depend on their unit.
    It is a metric on norms up to a factor: symmetric, 0 for proportional norms, with the triangle inequality.
    Source: Aitchison (1986), The Statistical Analysis of Compositional Data (centred log-ratios), divided by the
    square root of the number of channels; norms as in Wanda (Sun et al., ICLR 2024), equation 1.

    Args:
        a, b: by layer name, (d_in,) the root mean square (or the norm: any factor will do) of each input channel, 0
            or more. A norm below 0.001 of the layer's median (of those above 0) counts as that: a channel that a text
            leaves silent is as good as removed, however silent it is.
    Raises InputError unless both have the same layers of the same widths; NumericalError naming the layer if a norm is
    negative or not finite, or all are 0.

    >>> round(norm_distance({"q": [1.0, 1.0]}, {"q": [2.0, 8.0]}).mean, 4)  # ln 2 and ln 8: ln 2 from their mean
    0.6931
    """
    if not a or set(a) != set(b):
        only = ", ".join(sorted(set(a) ^ set(b))[:3]) or "there is none"
        raise InputError(f"norm_distance compares the same layers of two texts, got {len(a)} and {len(b)}: {only}.")
    by_layer = {name: _distance(name, a[name], b[name]) for name in a}
    return NormDistance(float(np.mean(list(by_layer.values()))), by_layer)


def _distance(layer: str, a: ArrayLike, b: ArrayLike) -> float:
    x, y = _log_norms(layer, a), _log_norms(layer, b)
    if x.shape != y.shape:
        raise InputError(f"{layer}: the texts' norms have {len(x)} and {len(y)} channels. Are they of one model?")
    return float(np.std(x - y))


def _log_norms(layer: str, norms: ArrayLike) -> Floats:
    """Return ln of a layer's norms, (d_in,), the least of them held up."""
    x = np.asarray(norms, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise InputError(f"{layer}: norms have shape (d_in,), one for each input channel; got {x.shape}.")
    if not np.isfinite(x).all() or (x < 0).any():
        raise NumericalError(f"{layer}: some of its {x.size} norms are negative or not finite.")
    if not (x > 0).any():
        raise NumericalError(f"{layer}: all of its {x.size} norms are 0; no text can be told by them.")
    return np.asarray(np.log(np.maximum(x, SMALLEST_SHARE * np.median(x[x > 0]))))
