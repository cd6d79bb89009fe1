"""Figures of the chapter on sparsity from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose
from test_figures import LONG, drawn, words
from test_scaling_levels import LEVELS, TEXTS, runs

from calib_study import scaling_figures
from calib_study.errors import InputError
from calib_study.figure_style import METHOD_STYLE, SOURCE_STYLE
from calib_study.scaling_levels import compared, gap_table, growth_table
from calib_study.scaling_tables import agreement_table, magnitude_table, place_table


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def test_damage_has_a_panel_for_sparsity_and_one_for_structure() -> None:
    figure = scaling_figures.fig_damage_by_level(runs(), "wanda")
    drawn(figure)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_xticklabels()] == ["50 %", "70 %"]
    assert [t.get_text() for t in right.get_xticklabels()] == ["unstructured", "4:8", "2:4"]
    (of_code,) = [line for line in right.lines if line.get_color() == SOURCE_STYLE["code"].colour]
    assert_allclose(of_code.get_ydata(), [1.1, 1.65, 2.2])
    plain = [line for line in left.lines if line.get_color() == METHOD_STYLE["magnitude"].colour]
    assert_allclose(plain[0].get_ydata(), [4, 12])
    assert left.get_yscale() == "log" and "lower is better" in words(figure) and "random mask" in words(figure)


def test_damage_in_words() -> None:
    said = scaling_figures.describe_damage_by_level(runs(), "wanda")
    assert said.startswith(
        "Damage by Wanda, in nats per token. 50 %: texts 1 to 1.4, magnitude 4, random mask 13; 70 %: texts 3 to 4.2, "
    )
    assert said.endswith("; 4:8: texts 1.5 to 2.1, magnitude 6, random mask 13; 2:4: texts 2 to 2.8, magnitude 8, "
                         "random mask 13.")  # fmt: skip
    table = runs()
    assert "magnitude" not in scaling_figures.describe_damage_by_level(table[table["method"] == "wanda"], "wanda")


def test_gaps_are_drawn_in_nats_and_as_shares() -> None:
    gaps = gap_table(runs())
    figure = scaling_figures.fig_gap_by_level(gaps, "wanda")
    drawn(figure)
    above, _, below, _ = figure.axes
    null, noise, gap, without = above.lines
    assert_allclose(gap.get_ydata(), [0.4, 1.2])
    assert_allclose(without.get_ydata(), [0.1, 0.3])
    assert_allclose(noise.get_ydata(), [0.01, 0.03])
    assert_allclose(null.get_ydata(), gaps.query("method == 'wanda' and pattern == 'unstructured'")["null_q95"])
    assert_allclose(below.lines[2].get_ydata(), 100 * 0.4 / (1 + 0.5 / 3))
    assert below.get_ylim()[0] == 0 and above.get_yscale() == "log"
    assert "if all texts were one" in words(figure)


def test_gaps_in_words() -> None:
    gaps = gap_table(runs({"dsnot": list(LEVELS)[:2]}))
    said = scaling_figures.describe_gap_by_level(gaps, "dsnot")
    null = f"{gaps['null_q95'].iloc[0]:.3f}"
    assert said.startswith(
        "Worst minus best text with DSnoT, in nats per token. 50 %: 0.400, 40.0 s.d. of draws, 34.3 % of the damage "
        f"(if one text: below {null}; c4 best, math worst); 70 %: 1.200"
    )


def test_growth_is_filled_for_whole_chains() -> None:
    growth = growth_table(runs(), "wanda")
    figure = scaling_figures.fig_spread_growth(growth)
    drawn(figure)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == [
        "50 % → 70 %",
        "unstructured → 4:8",
        "4:8 → 2:4",
        "unstructured → 2:4",
    ]
    marks = [line for line in left.lines if line.get_marker() == "o"]
    assert_allclose([line.get_xdata()[0] for line in marks], growth["mean"])
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True, True, False]
    (band,) = left.patches
    assert_allclose([band.get_x(), band.get_x() + band.get_width()], [-0.01, 0.01])
    assert not right.patches


def test_growth_in_words() -> None:
    known = {"low": 0.1, "high": 0.5, "share": 0.1, "share_low": -0.05, "share_high": 0.2}
    growth = growth_table(runs(), "wanda").assign(**known)
    said = scaling_figures.describe_spread_growth(growth[:2])
    assert said == (
        "Change of the standard deviation between texts, noise of draws taken out. 50 % → 70 %: +0.416 [+0.100, "
        "+0.500] nats per token, +10.0 [-5.0, +20.0] points of the damage; unstructured → 4:8: +0.104 [+0.100, +0.500] "
        "nats per token, +10.0 [-5.0, +20.0] points of the damage."
    )


def test_texts_stand_in_multiples_of_magnitude() -> None:
    table = runs()
    figure = scaling_figures.fig_against_magnitude(table, magnitude_table(table))
    drawn(figure)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["Wanda, 50 %", "Wanda, 70 %"]
    of_math = [line for line in ax.lines if line.get_color() == SOURCE_STYLE["math"].colour]
    assert len(of_math) == 6
    assert_allclose([line.get_xdata()[0] for line in of_math], 1.4 / 4)  # the same at every level
    masks = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "|"]
    assert_allclose(masks[:2], [13 / 4, 13 / 12])
    assert_allclose(ax.lines[0].get_xdata(), 1)
    assert "random mask" in words(figure)
    bare = table[table["method"] != "random"]
    assert "random mask" not in words(scaling_figures.fig_against_magnitude(bare, magnitude_table(bare)))


def test_magnitude_in_words() -> None:
    against = magnitude_table(runs({"wanda": list(LEVELS)[:2]}))
    assert scaling_figures.describe_against_magnitude(against) == (
        "Damage with the worst text, in multiples of magnitude's. Wanda, 50 %: math 0.35, random mask 3.25; "
        "Wanda, 70 %: math 0.35, random mask 1.08."
    )


def test_methods_have_a_panel_for_each_level() -> None:
    gaps = compared(gap_table(runs()))
    figure = scaling_figures.fig_gap_by_method(gaps)
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["50 %", "70 %"]
    ax = figure.axes[1]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Wanda", "DSnoT"]
    assert_allclose([line.get_xdata()[0] for line in ax.lines], 1.2)
    assert to_hex(ax.lines[1].get_color()) == to_hex(METHOD_STYLE["dsnot"].colour)
    assert_allclose([bar.get_width() for bar in ax.patches], gaps[gaps["sparsity"] == 0.7]["null_q95"])
    assert ax.texts[0].get_text() == "40.0 s.d. of draws, 34.3 % of the damage"


def test_methods_in_words() -> None:
    table = runs({"wanda": [(0.5, "unstructured")], "dsnot": [(0.5, "unstructured")]})
    said = scaling_figures.describe_gap_by_method(compared(gap_table(table)), agreement_table(table))
    assert said.count("c4 best, math worst") == 2
    assert said.endswith(
        "Rank correlation of the texts on different draws: 50 % 1.00 between methods and 1.00 for a method with itself."
    )


def test_places_are_filled_where_a_text_may_be_the_best() -> None:
    places = place_table(runs({"wanda": list(LEVELS)[:2]}))
    places.loc[places["source"] == "code", "perhaps_best"] = [True, False]
    figure = scaling_figures.fig_text_places(places)
    drawn(figure)
    (ax,) = figure.axes
    of_code = [line for line in ax.lines if line.get_markeredgecolor() == SOURCE_STYLE["code"].colour]
    marks = [line for line in of_code if line.get_marker() != "None"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True]
    place = (TEXTS["code"] - 1 / 6) / np.sqrt(0.13 / 3)
    assert_allclose([line.get_xdata()[0] for line in marks], place)
    assert scaling_figures.describe_text_places(places) == (
        "Best and worst texts. Wanda, 50 %: c4 (perhaps code) best, math worst; Wanda, 70 %: c4 best, math worst."
    )


@pytest.mark.parametrize("texts", [("c4", "code"), tuple(name for name in SOURCE_STYLE if name != "random"), LONG])
@pytest.mark.parametrize("methods", [("wanda",), ("wanda_variant", "dsnot+owl", "magnitude_row+owl", "sparsegpt")])
def test_figures_survive_few_and_many(texts: tuple[str, ...], methods: tuple[str, ...]) -> None:
    free = [level for level in LEVELS if level[1] == "unstructured"]
    levels = {methods[0]: list(LEVELS) if len(methods) > 1 else free, **{name: free for name in methods[1:]}}
    table = runs(levels, {text: 0.1 * place for place, text in enumerate(texts)})
    gaps = gap_table(table)
    drawn(scaling_figures.fig_damage_by_level(table, methods[0]))
    drawn(scaling_figures.fig_gap_by_level(gaps, methods[0]))
    drawn(scaling_figures.fig_spread_growth(growth_table(table, methods[0])))
    drawn(scaling_figures.fig_against_magnitude(table, magnitude_table(table)))
    drawn(scaling_figures.fig_text_places(place_table(table)))
    if len(methods) > 1:
        drawn(scaling_figures.fig_gap_by_method(compared(gaps)))


def test_tables_without_rows_are_refused() -> None:
    gaps = gap_table(runs({"wanda": list(LEVELS)}))
    with pytest.raises(InputError, match="fig_gap_by_method: the table has no rows"):
        scaling_figures.fig_gap_by_method(compared(gaps))
    with pytest.raises(InputError, match="fig_gap_by_level: the table has no rows"):
        scaling_figures.fig_gap_by_level(gaps, "dsnot")


def test_the_same_table_gives_the_same_picture_and_is_left_alone() -> None:
    table = gap_table(runs())
    before = table.copy()
    first, second = (drawn(scaling_figures.fig_gap_by_level(table, "wanda")) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(table, before)
