"""One look for all figures: colours and markers of sources and methods, the page-wide canvas, axis helpers.

Hues are those of Okabe and Ito (2008), safe for colour-blind readers, less their yellow; related sources
share a hue and differ in marker, and no two sources share both.
"""

import base64
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from calib_study.errors import InputError
from calib_study.measures import MEASURES

WIDTH = 7.5  # inches; a page of the book is 750 px wide
STYLE_FILE = Path(__file__).with_name("style.mplstyle")
TEXT, MUTED = "#222222", "#757575"  # both readable as text on white
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BROWN, BLACK = "#8C5A2B", "#000000"


@dataclass(frozen=True, slots=True)
class Mark:
    """How a calibration source is drawn: colour and matplotlib marker."""

    colour: str
    marker: str


@dataclass(frozen=True, slots=True)
class Line:
    """How a method is drawn as a line: colour and matplotlib line style."""

    colour: str
    dash: str | tuple[float, tuple[float, ...]]


SOURCE_STYLE = {
    "c4": Mark(BLUE, "o"),
    "wikipedia": Mark(RED, "s"),
    "leads": Mark(RED, "D"),
    "code": Mark(GREEN, "^"),
    "instruct": Mark(PURPLE, "v"),
    "chat": Mark(PURPLE, "X"),
    "math": Mark(ORANGE, "P"),
    "stories": Mark(BROWN, "*"),
    "french": Mark(SKY, "<"),
    "spanish": Mark(SKY, ">"),
    "random": Mark(MUTED, "d"),
}
OTHER_SOURCES = tuple(Mark(c, m) for m in ("h", "p", "8") for c in (BLUE, RED, GREEN, ORANGE, PURPLE, BROWN))

_METHODS = {
    "magnitude": Line(BLACK, "-."),
    "magnitude_row": Line("#5A5A5A", (0, (3, 1, 1, 1, 1, 1))),
    "wanda": Line(BLUE, "-"),
    "wanda_variant": Line(SKY, "-"),
    "sparsegpt": Line(RED, "-"),
    "dsnot": Line(GREEN, "-"),
}


class _OrOwn(dict[str, Line]):
    """Styles by name. All methods of the user's own, which are not in the table, are drawn alike."""

    def __missing__(self, name: str) -> Line:
        return Line(BROWN, (0, (2, 1)))


METHOD_STYLE = _OrOwn(
    {
        "dense": Line(MUTED, "--"),
        "random": Line("#B0B0B0", ":"),
        **_METHODS,
        # the same hue with OWL, in long dashes
        **{f"{name}+owl": Line(style.colour, (0, (6, 2))) for name, style in _METHODS.items()},
    }
)
METHOD_LABELS = {
    "random": "random mask",
    "magnitude_row": "magnitude in rows",
    "wanda": "Wanda",
    "wanda_variant": "Wanda, variant",
    "sparsegpt": "SparseGPT",
    "dsnot": "DSnoT",
}


def source_marks(names: Iterable[str]) -> dict[str, Mark]:
    """Return a mark for each source; users' own sources take the spare ones in alphabetical order.

    >>> source_marks(["my.txt", "c4"])["c4"].marker
    'o'
    """
    asked = list(dict.fromkeys(names))
    own = sorted(name for name in asked if name not in SOURCE_STYLE)
    spare = {name: OTHER_SOURCES[i % len(OTHER_SOURCES)] for i, name in enumerate(own)}
    return {name: SOURCE_STYLE.get(name) or spare[name] for name in asked}


def source_label(name: str, longest: int = 20) -> str:
    """Return the name as shown: random tokens called that, and of a long path or hub name the end.

    >>> source_label("random"), source_label("/home/me/corpora/letters_1890_1920.jsonl")
    ('random tokens', '…tters_1890_1920.jsonl')
    """
    if name == "random":
        return "random tokens"
    tail = name if len(name) <= longest else Path(name).name
    return tail if len(tail) <= longest else "…" + tail[-(longest + 1) :]


def method_label(name: str) -> str:
    """Return the name of a method as shown.

    >>> method_label("wanda+owl"), method_label("magnitude")
    ('Wanda + OWL', 'magnitude')
    """
    method, plus, _ = name.partition("+")
    return METHOD_LABELS.get(method, method) + (" + OWL" if plus else "")


def measure_label(name: str) -> str:
    """Return a measure's name as shown.

    >>> measure_label("damage on c4"), measure_label("accuracy_loss")
    ('damage on c4', 'accuracy lost')
    """
    return MEASURES[name][0] if name in MEASURES else name


@contextmanager
def canvas(height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a page-wide figure and its axes in reading order, drawn in the house style.

    The figure is closed, so that a notebook shows it once: as the value that a cell returns.
    height: inches. options: of `plt.subplots`.
    """
    with plt.style.context(STYLE_FILE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
        try:
            yield figure, list(axes.flat)
        finally:
            plt.close(figure)


def as_html(figure: Figure, alt: str) -> HTML:
    """Return a figure as an image element with alternative text, to be shown on another page of the book.

    Figures pasted across pages lose their alternative text; HTML keeps it.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    code = base64.b64encode(picture.getvalue()).decode()
    element = f'<img class="figure-card" alt="{html.escape(alt)}" src="data:image/png;base64,{code}" width="100%">'
    return HTML(element)  # type: ignore[no-untyped-call]


def window(core: Sequence[float], references: Sequence[float], stretch: float = 3.0) -> tuple[float, float, list[bool]]:
    """Return axis limits (low, high) that show `core` well, and which references lie inside them.

    References are taken in order, each only if the axis stays at most `stretch` times as long as the core:
    differences between sources must stay visible. Those left out are to be drawn as arrows at the edge.

    >>> window([1.0, 2.0], [0.0, 50.0])[2]
    [True, False]
    """
    low, high = min(core), max(core)
    span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-9)
    inside = []
    for value in references:
        wider = max(high, value) - min(low, value)
        inside.append(wider <= stretch * span)
        if inside[-1]:
            low, high = min(low, value), max(high, value)
    margin = 0.06 * max(high - low, span)
    return low - margin, high + margin, inside


def log_ticks(axes: Axes, low: float, high: float, most: int = 5, *, vertical: bool = False) -> None:
    """Make x, or y if vertical, a logarithmic axis from low to high with a few round, plainly written ticks."""
    axis = axes.yaxis if vertical else axes.xaxis
    axes.set(**{"yscale" if vertical else "xscale": "log", "ylim" if vertical else "xlim": (low, high)})
    if high / low < 5:
        ticks = [float(t) for t in MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    else:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        digits = (1, 2, 5) if high / low < 200 else (1,)
        ticks = [d * 10.0**k for k in decades for d in digits]
    ticks = [t for t in ticks if low <= t <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([number(t) for t in ticks]))
    axis.set_minor_locator(NullLocator())


def number(value: float) -> str:
    """Return the number with three significant digits, thousands grouped, no exponent below a million.

    >>> number(19.84), number(0.2), number(48213.0), number(3.2e9)
    ('19.8', '0.2', '48,200', '3e9')
    """
    if abs(value) >= 1e6:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def tag(axes: Axes, x: float, y: float, label: str, colour: str) -> None:
    """Write the label beside the vertical line at x, on the side with more room; off the axis, as an arrow."""
    low, high = axes.get_xlim()
    style: dict[str, Any] = {"va": "center", "color": colour, "fontsize": 9}
    if low <= x <= high:
        share = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0]
        shift, side = ((-5, 0), "right") if share > 0.5 else ((5, 0), "left")
        axes.annotate(label, (x, y), xytext=shift, textcoords="offset points", ha=side, **style)
    elif x > high:
        axes.text(1.0, y, f"{label} →", transform=axes.get_yaxis_transform(), ha="right", **style)
    else:
        axes.text(0.0, y, f"← {label}", transform=axes.get_yaxis_transform(), ha="left", **style)


def seed_legend(figure: Figure, n_seeds: int, mean: str) -> None:
    """Put below the panels what a faint point, a marker and a bar are."""
    seed = Line2D([], [], linestyle="", marker="o", color=MUTED, alpha=0.5, markersize=5, markeredgewidth=0)
    centre = Line2D([], [], color=TEXT, marker="o", markerfacecolor="white", linewidth=1.6)
    single = Line2D([], [], linestyle="", color=TEXT, marker="o", markerfacecolor="white")
    if n_seeds > 1:
        handles, labels = [seed, centre], [f"one seed of {n_seeds}", f"{mean}, 95 % interval"]
    else:
        handles, labels = [single], ["one seed only, no interval"]
    figure.legend(handles, labels, loc="outside lower right", ncols=2, columnspacing=1.5)


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def unique(column: "pd.Series[str]") -> list[str]:
    """Return the values of a column, each once, in order of appearance."""
    return [str(name) for name in dict.fromkeys(column)]


def need_rows(table: pd.DataFrame, caller: str) -> None:
    """Raise InputError for a table without rows."""
    if not len(table):
        raise InputError(f"{caller}: the table has no rows to draw.")
