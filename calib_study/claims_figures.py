"""The figure of all verdicts: a frame of `claims_tables` in, Figure out."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calib_study.figure_style import BLUE, MUTED, ORANGE, PURPLE, RED, TEXT, canvas, need_rows, unique

ROW = 0.235  # inches of height for one claim
MARKS = {  # of a verdict: colour, marker, and whether it is filled
    "supported": (BLUE, "o", True),
    "not supported": (RED, "X", True),
    "inconclusive": (ORANGE, "D", True),
    "mixed": (PURPLE, "s", True),
    "not computed": (MUTED, "o", False),
    "not tested": (MUTED, "d", False),
}
TITLE, MARK, STEP, VERDICT = 0.06, 0.66, 0.03, 0.82  # where columns begin, in widths of the figure


def fig_verdicts(verdicts: pd.DataFrame, papers: dict[str, str]) -> Figure:
    """Return one row for each claim, under its paper: a mark for each judgement, and the verdict as a word.

    Args:
        verdicts: from `claims_tables.verdict_frame`. papers: what each is called.
    """
    need_rows(verdicts, "fig_verdicts")
    claims, chosen = unique(verdicts["id"]), unique(verdicts["paper"])
    with canvas((len(claims) + 1.5 * len(chosen)) * ROW + 0.1) as (figure, (ax,)):
        ax.set_axis_off()
        y = 0.0
        for paper in chosen:
            ax.text(0, y, papers.get(paper, paper), va="center", weight="bold", color=TEXT)
            own = verdicts[verdicts["paper"] == paper]
            for name in unique(own["id"]):
                y += 1
                _row(ax, y, own[own["id"] == name])
            y += 1.5
        ax.set(xlim=(0, 1), ylim=(y - 0.7, -0.6))
    return figure


def _row(ax: Axes, y: float, rows: pd.DataFrame) -> None:
    first = rows.iloc[0]
    ax.axhline(y + 0.5, color="#E6E9ED", linewidth=0.8)
    ax.text(0, y, first["id"], va="center", fontsize=9, color=MUTED)
    ax.text(TITLE, y, first["title"], va="center", fontsize=9, color=TEXT)
    for place, verdict in enumerate(rows["verdict"]):
        colour, marker, filled = MARKS[str(verdict)]
        ax.plot([MARK + STEP * place], [y], marker, color=colour, markerfacecolor=colour if filled else "white",
                markersize=6.5, markeredgewidth=1.2)  # fmt: skip
    word = str(first["word"])
    colour = TEXT if MARKS[word][2] else MUTED
    ax.text(VERDICT, y, word, va="center", fontsize=9, color=colour, weight="bold" if MARKS[word][2] else "normal")


def describe_verdicts(verdicts: pd.DataFrame) -> str:
    """Return the alt text of `fig_verdicts`: every claim with its verdict."""
    claims = verdicts.drop_duplicates("id")
    parts = [f"{name} {word}" for name, word in zip(claims["id"], claims["word"], strict=True)]
    return f"One row for each of {len(claims)} claims: {', '.join(parts)}."
