"""Figures of the chapter on the perplexity filter from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from test_figures import LONG, drawn, words
from test_filter_tables import Chapter, damage

from calib_study import filter_figures
from calib_study.errors import InputError
from calib_study.filter_tables import effect_table, filter_runs


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def texts(n: int = 40) -> pd.DataFrame:
    values = np.geomspace(2, 80, n)
    return pd.DataFrame({"index": range(n), "perplexity": values, "repeated": 0.0, "text": "x"})


def cuts() -> pd.DataFrame:
    rows = [("top", 20.0, 40.0), ("top", 40.0, 20.0), ("bottom", 20.0, 4.0), ("random", 20.0, np.nan)]
    return pd.DataFrame(rows, columns=["end", "drop", "cut"])


def test_cuts_are_lines_in_the_distribution() -> None:
    figure = filter_figures.fig_perplexity_cuts({"c4": texts()}, {"c4": cuts()})
    drawn(figure)
    (ax,) = figure.axes
    assert ax.get_title("left") == "own after c4"
    assert [line.get_xdata()[0] for line in ax.lines] == [40, 20, 4]
    assert [t.get_text() for t in ax.texts] == ["20 %", "40 %", "20 %"]
    assert sum(bar.get_height() for bar in ax.patches) == 40
    assert "dropped right of the line" in words(figure) and "dropped left of the line" in words(figure)
    assert filter_figures.describe_perplexity_cuts({"c4": texts()}, {"c4": cuts()}) == (
        "Perplexity of texts. own after c4: 40 texts from 2 to 80, median 12.7; cuts: top 20 % at 40, top 40 % at 20, "
        "bottom 20 % at 4."
    )


def test_damage_is_drawn_beside_its_difference_from_random_drops() -> None:
    cfg = Chapter()
    runs = filter_runs(damage(cfg), cfg)
    effects = effect_table(runs)
    figure = filter_figures.fig_filter_damage(runs, effects, "wanda")
    drawn(figure)
    left, right = figure.axes
    lines = [line for line in left.lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    assert_allclose([line.get_ydata() for line in lines], [[0.5, 0.44, 0.43], [0.5, 0.51, 0.6], [0.5, 0.5, 0.52]])
    marks = [line.get_ydata()[0] for line in right.lines if len(line.get_xdata()) == 1]
    assert_allclose(marks, effects["mean"])
    (band,) = right.patches
    assert_allclose([band.get_y(), band.get_y() + band.get_height()], [-0.01, 0.01])
    assert {"highest perplexity", "lowest perplexity", "at random"} <= set(words(figure).split("\n"))


def test_damage_in_words() -> None:
    cfg = Chapter(ends=("top", "random"))
    runs = filter_runs(damage(cfg), cfg)
    assert filter_figures.describe_filter_damage(runs, effect_table(runs), "wanda") == (
        "Wanda: damage 0.500 nats per token with the whole texts, after random drops 20 % 0.500; 40 % 0.520. Minus "
        "random drops: top 20 %: -0.060 [-0.076, -0.044]; top 40 %: -0.090 [-0.106, -0.074]."
    )


def test_several_texts_with_long_names_and_few_texts_fit_the_page() -> None:
    names = ("c4", *LONG)
    drawn(filter_figures.fig_perplexity_cuts(dict.fromkeys(names, texts(2)), dict.fromkeys(names, cuts())))
    cfg = Chapter(sources=list(names), ends=("bottom", "random"))
    runs = filter_runs(damage(cfg), cfg)
    drawn(filter_figures.fig_filter_damage(runs, effect_table(runs), "wanda"))


def test_tables_without_rows_are_refused() -> None:
    cfg = Chapter()
    runs = filter_runs(damage(cfg), cfg)
    with pytest.raises(InputError, match="fig_filter_damage: the table has no rows"):
        filter_figures.fig_filter_damage(runs, effect_table(runs), "dsnot")
    with pytest.raises(InputError, match="fig_perplexity_cuts: the table has no rows"):
        filter_figures.fig_perplexity_cuts({}, {})


def test_the_same_table_gives_the_same_picture_and_is_left_alone() -> None:
    table = texts()
    before = table.copy()
    first, second = (drawn(filter_figures.fig_perplexity_cuts({"c4": table}, {"c4": cuts()})) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(table, before)
