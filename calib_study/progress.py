"""One progress bar for everything that takes more than a few seconds."""

import warnings
from typing import Any

from tqdm import TqdmWarning, tqdm

# Bars are text everywhere, in notebooks too; that a library would have preferred a widget is no news to a reader.
warnings.filterwarnings("ignore", message="IProgress not found", category=TqdmWarning)


def bar(total: int | None, desc: str, unit: str = "it", *, initial: int = 0, shown: bool = True) -> "tqdm[Any]":
    """Return a progress bar with an estimate of the time left; `.update(n)` moves it, `with` closes it.

    `unit="B"` counts bytes in powers of ten. It writes to stderr, so that output can be piped.
    """
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        unit_scale=unit == "B",
        mininterval=0.5,
        dynamic_ncols=True,
        leave=True,
        disable=not shown,
    )
