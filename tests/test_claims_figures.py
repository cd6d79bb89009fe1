"""The figure of all verdicts: a row for each claim, a mark for each judgement."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_figures import drawn, words

from calib_study.claims import WORDS, load_claims
from calib_study.claims_figures import MARK, MARKS, STEP, describe_verdicts, fig_verdicts
from calib_study.claims_tables import PAPERS
from calib_study.errors import InputError

COLUMNS = ["id", "paper", "title", "word", "verdict", "chapter"]


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def frame() -> pd.DataFrame:
    rows = [
        ("J1", "ji2025beware", "One", "mixed", "supported", "01_data_sources"),
        ("J1", "ji2025beware", "One", "mixed", "not supported", "11_measuring"),
        ("J2", "ji2025beware", "Two", "inconclusive", "inconclusive", "11_measuring"),
        ("S1", "shin2024rethinking", "Three", "not tested", "not tested", None),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def marks(figure: Figure) -> list[tuple[float, float, str]]:
    """Return (x, y, marker) of every mark."""
    found = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", None, "")]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0]), str(line.get_marker())) for line in found]


def test_every_verdict_has_a_mark_of_its_own() -> None:
    assert set(MARKS) == set(WORDS)
    assert len({(marker, filled) for _, marker, filled in MARKS.values()}) == len(MARKS)


def test_a_row_for_each_claim_and_a_mark_for_each_judgement() -> None:
    figure = fig_verdicts(frame(), PAPERS)
    drawn(figure)
    (x1, y1, m1), (x2, y2, m2), (_, y3, m3), (_, y4, m4) = marks(figure)
    assert (m1, m2, m3, m4) == tuple(MARKS[v][1] for v in ("supported", "not supported", "inconclusive", "not tested"))
    assert y1 == y2 < y3 < y4 and x1 == MARK and x2 == pytest.approx(MARK + STEP)
    shown = words(figure)
    for text in ("Ji et al. 2025", "Shin et al. 2024", "J1", "Two", "mixed", "not tested"):
        assert text in shown


def test_the_longest_title_leaves_room_for_the_marks() -> None:
    table = pd.DataFrame(
        [(c.id, c.paper, c.title, "not tested", "not tested", None) for c in load_claims()], columns=COLUMNS
    )
    figure = fig_verdicts(table, PAPERS)
    drawn(figure)
    ax = figure.axes[0]
    limit = ax.transData.transform((MARK - STEP / 2, 0))[0]
    titles = [text for text in ax.texts if text.get_text() in set(table["title"])]
    assert len(titles) == len(table)
    assert max(text.get_window_extent().x1 for text in titles) < limit


def test_in_words() -> None:
    assert describe_verdicts(frame()) == ("One row for each of 3 claims: J1 mixed, J2 inconclusive, S1 not tested.")


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="fig_verdicts: the table has no rows"):
        fig_verdicts(frame()[:0], PAPERS)
