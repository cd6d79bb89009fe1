"""Figures of the chapter on own text from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose
from test_figures import LONG, drawn, words
from test_own_text_tables import BY_LENGTH, DRAWS, LEVELS, Chapter, runs

from calib_study import own_text_figures, own_text_tables
from calib_study.errors import InputError
from calib_study.figure_style import SOURCE_STYLE
from calib_study.own_text_facts import SPEED_COLUMNS
from calib_study.own_text_figures import text_marks

CFG = Chapter()


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def of_lengths() -> pd.DataFrame:
    rows = [(length, level + draw) for length, level in BY_LENGTH.items() for draw in DRAWS]
    return pd.DataFrame(rows, columns=["length", "damage"])


def speed() -> pd.DataFrame:
    rows = [
        ("generate, default product", 1000, 100, 50.0, 99.0, 20.0, 1.0, 10.0, 5.0),
        ("engine, rows it chooses", 1000, 80, 14.3, 28.0, 70.0, 3.5, 10.0, 1.43),
    ]
    table = pd.DataFrame(rows, columns=list(SPEED_COLUMNS))
    table.attrs.update({"target": 3.0, "read_weights_s": 0.05, "multiply_token_s": 0.004, "batch_size": 32})
    return table


# --- marks ----------------------------------------------------------------------------------------------------


def test_own_text_has_the_hue_of_its_prefix_and_a_marker_of_its_own() -> None:
    own = {name: f"selfgen:{name}" for name in ("c4", "wikipedia", "leads", "french")}
    marks = text_marks([*SOURCE_STYLE, *LONG], own)
    assert len({(mark.colour, mark.marker) for mark in marks.values()}) == len(marks)
    for prefix, name in own.items():
        assert marks[prefix] == SOURCE_STYLE[prefix]
        assert marks[name].colour == marks[prefix].colour and marks[name].marker != marks[prefix].marker


# --- own beside real text ---------------------------------------------------------------------------------------


def test_gaps_have_a_panel_for_each_method_and_a_row_for_each_text() -> None:
    gaps = own_text_tables.gap_table(runs(shift=0.1), CFG)
    figure = own_text_figures.fig_own_gaps(own_text_tables.run_gaps(runs(shift=0.1), CFG), gaps, CFG.own())
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["Wanda", "DSnoT"]
    rows = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert rows == ["c4", "code", "math", "own after c4", "own after code"]
    assert "one seed of 3" in words(figure)
    ax = figure.axes[1]
    points = [line for line in ax.lines if line.get_marker() == "H" and line.get_alpha()]
    assert_allclose(points[0].get_xdata(), 0.6 + 0.1 - 0.7 + DRAWS, atol=1e-12)
    assert to_hex(points[0].get_color()) == to_hex(SOURCE_STYLE["c4"].colour)
    (band,) = ax.patches
    assert_allclose([band.get_x(), band.get_x() + band.get_width()], [-0.01, 0.01])


def test_gaps_in_words() -> None:
    said = own_text_figures.describe_own_gaps(own_text_tables.gap_table(runs(), Chapter(methods=["wanda"])))
    assert said == (
        "Damage minus the mean of real texts, in nats per token, rank 1 the best of 5. Wanda: own after c4 -0.100 "
        "(rank 2), own after code +0.100 (rank 4); real texts from c4 -0.200 to math +0.200."
    )
    table = own_text_tables.comparison_table(runs(), Chapter(methods=["wanda"]))
    said = own_text_figures.describe_comparison(table)
    assert said.startswith("Own text in damage, all texts (nats per token), negative where it is better: Wanda: ")
    # s = 0.01, df = 10: 2.228 * 0.01 * sqrt((2 / 4 + 1) / 3) = 0.0158
    assert "minus best real text +0.200 [+0.184, +0.216]" in said


def test_prefix_sources_are_joined_from_real_to_own() -> None:
    table = own_text_tables.prefix_source_table(runs(**{"own-code": -0.15}), CFG)
    figure = own_text_figures.fig_prefix_sources(table, CFG.own())
    drawn(figure)
    (ax,) = figure.axes
    joined = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert_allclose(joined, [[0.5, 0.6], [0.7, 0.65]])
    assert [t.get_text() for t in ax.texts] == ["range 0.200", "range 0.050"]
    assert_allclose([bar.get_width() for bar in ax.patches], table.groupby("kind", sort=False)["null_q95"].first())
    said = own_text_figures.describe_prefix_sources(table)
    assert "real texts: range 0.200 from c4 0.500 to code 0.700 (if one text: below" in said
    assert "own texts after them: range 0.050 from c4 0.600 to code 0.650" in said


# --- length, added text, speed ----------------------------------------------------------------------------------


def test_lengths_are_drawn_in_order_around_the_chosen_one() -> None:
    lengths = own_text_tables.length_table(runs(), CFG)
    figure = own_text_figures.fig_prefix_length(of_lengths(), lengths, 0.5, "c4")
    drawn(figure)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "2", "16", "64"]
    (means,) = [line for line in ax.lines if len(line.get_xdata()) == 4]
    assert_allclose(means.get_ydata(), list(BY_LENGTH.values()))
    (band,) = ax.patches
    assert_allclose([band.get_y(), band.get_y() + band.get_height()], [0.59, 0.61])
    assert "c4 itself" in words(figure)
    said = own_text_figures.describe_prefix_length(lengths, 0.5, "c4")
    assert said == (
        "Damage in nats per token by length of the prefix, and difference from 2 tokens: 0 tokens 0.650 (+0.050, "
        "different); 2 tokens 0.600; 16 tokens 0.595 (-0.005, inconclusive); 64 tokens 0.450 (-0.150, different). "
        "c4 itself has 0.500."
    )


def test_added_text_joins_the_sets_of_a_seed() -> None:
    single = own_text_tables.added_runs(runs(), CFG)
    figure = own_text_figures.fig_own_added(single)
    drawn(figure)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["real", "twice as much real", "real, and as much own"]
    joined = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 3]
    assert_allclose(joined, np.array([[0.5, 0.49, 0.47]] * 3) + DRAWS[:, None])
    said = own_text_figures.describe_own_added(single, own_text_tables.added_table(single))
    assert said == (
        "Damage in nats per token: c4, real 0.500; c4, real, twice 0.490; c4, real + own 0.470. Means: real + own "
        "minus real -0.030 [-0.030, -0.030]; real + own minus real, twice -0.020 [-0.020, -0.020]."
    )


def test_speed_is_drawn_and_judged() -> None:
    figure = own_text_figures.fig_writing_speed(speed())
    drawn(figure)
    assert [t.get_text() for t in figure.axes[0].texts] == ["20 (1 times; floor × 5)", "70 (3.5 times; floor × 1.43)"]
    # 32 tokens of 4 ms are 128 ms to multiply, more than 50 ms to read
    assert own_text_figures.describe_writing_speed(speed()) == (
        "Plain generate keeps 20 tokens a second, the engine 70: 3.5 times as many, in 1.43 times the floor. The "
        "target, 3 times generate or within 1.5 times the floor, is met. Reading all weights once takes 50 ms here, "
        "multiplying them with one token 4.0 ms; so a step of 32 texts has 128 ms to multiply, and its floor is set by "
        "computing."
    )


@pytest.mark.parametrize(
    ("speedup", "over_floor", "token", "met", "bound"),
    [(2.9, 1.4, 0.001, "met", "memory"), (3.0, 2.0, 0.002, "met", "computing"), (2.9, 1.6, 0.001, "missed", "memory")],
)
def test_the_target_of_speed_at_its_edges(
    speedup: float, over_floor: float, token: float, met: str, bound: str
) -> None:
    table = speed()
    table.loc[1, ["speedup", "over_floor"]] = [speedup, over_floor]
    table.attrs["multiply_token_s"] = token
    said = own_text_figures.describe_writing_speed(table)
    assert f"is {met}." in said and said.endswith(f"set by {bound}.")


# --- awkward tables -----------------------------------------------------------------------------------------------


def test_many_texts_with_long_names_fit_the_page() -> None:
    cfg = Chapter(sources=[*LEVELS, *LONG], methods=["wanda", "wanda+owl", "dsnot"], prefixes=LONG)
    names = [*cfg.sources, *cfg.own().values()]
    rows = [(m, name, 8, seed, 0.5 + 0.1 * seed) for m in cfg.methods for name in names for seed in range(3)]
    table = pd.DataFrame(rows, columns=["method", "source", "n_samples", "seed", "damage"])
    gaps = own_text_tables.gap_table(table, cfg)
    drawn(own_text_figures.fig_own_gaps(own_text_tables.run_gaps(table, cfg), gaps, cfg.own()))


def test_tables_without_rows_are_refused() -> None:
    empty = pd.DataFrame()
    for draw in (
        lambda: own_text_figures.fig_own_gaps(empty, empty, {}),
        lambda: own_text_figures.fig_prefix_sources(empty, {}),
        lambda: own_text_figures.fig_prefix_length(empty, empty, 0.0, "c4"),
        lambda: own_text_figures.fig_own_added(empty),
        lambda: own_text_figures.fig_writing_speed(empty),
    ):
        with pytest.raises(InputError, match="the table has no rows"):
            draw()


def test_the_same_table_gives_the_same_picture_and_is_left_alone() -> None:
    table = own_text_tables.added_runs(runs(), CFG)
    before = table.copy()
    first, second = (drawn(own_text_figures.fig_own_added(table)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(table, before)
