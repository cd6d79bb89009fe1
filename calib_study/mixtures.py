"""Mixtures of sources: "c4:0.7,code:0.3" names a calibration text of which seven windows in ten are C4."""

import math
from collections.abc import Sequence

from calib_study.errors import InputError

Parts = tuple[tuple[str, float], ...]


def parse_mixture(text: str) -> Parts | None:
    """Return the (source, share) pairs of a mixture, shares summing to 1; None if the text is no mixture.

    A mixture is two or more `name:weight` with commas between; weights may have any positive sum.
    Raises InputError for a weight that is not above zero, or a source named twice.

    >>> parse_mixture("c4:3,code:1")
    (('c4', 0.75), ('code', 0.25))
    >>> parse_mixture("hub:c4") is None
    True
    """
    pairs = [part.strip().rpartition(":") for part in text.split(",")]
    if len(pairs) < 2 or not all(name and _is_number(weight) for name, _, weight in pairs):
        return None
    weights = [float(weight) for _, _, weight in pairs]
    names = [name for name, _, _ in pairs]
    if any(not 0 < weight < math.inf for weight in weights):
        raise InputError(f"mixture {text!r}: every weight must be above zero.")
    if len(set(names)) < len(names):
        raise InputError(f"mixture {text!r}: each source can be named once only.")
    return tuple((name, weight / sum(weights)) for name, weight in zip(names, weights, strict=True))


def mixture_name(parts: Parts) -> str:
    """Return the one way in which specifications write a mixture: in the given order, shares to six digits.

    >>> mixture_name((("c4", 0.75), ("code", 0.25)))
    'c4:0.75,code:0.25'
    """
    return ",".join(f"{name}:{share:.6g}" for name, share in parts)


def windows_of_each(parts: Parts, n_samples: int) -> list[int]:
    """Return how many of `n_samples` windows each source gives: its share rounded down, the rest by largest remainder.

    Raises InputError if a source would give none.

    >>> windows_of_each((("a", 0.5), ("b", 0.3), ("c", 0.2)), 8)
    [4, 2, 2]
    """
    exact = [share * n_samples for _, share in parts]
    counts = [math.floor(size + 1e-9) for size in exact]
    by_remainder: Sequence[int] = sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: n_samples - sum(counts)]:
        counts[i] += 1
    for (name, share), count in zip(parts, counts, strict=True):
        if count == 0:
            raise InputError(
                f"mixture {mixture_name(parts)!r}: {name} has a share of {share:.3g}, which is no whole window of "
                f"{n_samples}. Ask for more windows or another weight."
            )
    return counts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
