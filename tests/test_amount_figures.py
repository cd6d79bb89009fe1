"""Figures of the chapter on amounts from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose
from test_amount_tables import runs
from test_figures import LONG, drawn, words

from calib_study import amount_figures as figures
from calib_study.amount_tables import exponent_table, gap_table, size_changes, size_differences, spread_table
from calib_study.errors import InputError
from calib_study.figure_style import METHOD_STYLE, SOURCE_STYLE


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def many(texts: tuple[str, ...], methods: tuple[str, ...], amounts: tuple[int, ...]) -> pd.DataFrame:
    """Return runs of three draws that come closer with the amount, by methods with more and more damage."""
    rows = [
        (method, text, seed, n, 64, (1 + place) * (0.3 + 0.1 * k + 0.5 / n) + 0.1 * (seed - 1) / np.sqrt(n))
        for place, method in enumerate(methods)
        for k, text in enumerate(texts)
        for seed in range(3)
        for n in amounts
    ]
    return pd.DataFrame(rows, columns=["method", "source", "seed", "n_samples", "seq_len", "damage"])


def test_damage_has_a_panel_for_each_method_and_a_line_for_each_text() -> None:
    figure = figures.fig_damage_by_amount(runs())
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["Wanda", "SparseGPT"]
    points, line = (x for x in figure.axes[1].lines if x.get_color() == SOURCE_STYLE["code"].colour)
    assert_allclose(line.get_xydata(), [[2, 1.10], [10, 0.60], [50, 0.45]])
    assert len(points.get_xdata()) == 9
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2", "10", "50"]
    assert "lower is better" in words(figure)


def test_damage_in_words() -> None:
    assert figures.describe_damage_by_amount(runs()) == (
        "Mean damage in nats per token with 2 and with 50 windows. Wanda: c4 0.320 to 0.300, code 0.520 to 0.500; "
        "SparseGPT: c4 0.900 to 0.250, code 1.100 to 0.450."
    )


def test_changes_are_marked_as_good_as_the_largest_or_not() -> None:
    levels = {"wanda": {2: 0.5, 10: 0.301, 50: 0.3}, "sparsegpt": {2: 0.9, 10: 0.4, 50: 0.25}}
    differences = size_differences(runs(levels))
    changes = size_changes(differences)
    figure = figures.fig_size_changes(differences, changes)
    drawn(figure)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["2", "10"]
    marks = [line for line in ax.lines if line.get_markersize() == 6.5]
    assert_allclose(sorted(mark.get_xdata()[0] for mark in marks), [0.001, 0.15, 0.2, 0.65])
    full = [mark for mark in marks if to_hex(mark.get_color()) != "#ffffff"]
    assert_allclose([mark.get_xdata()[0] for mark in full], [0.001])
    assert to_hex(full[0].get_color()) == to_hex(METHOD_STYLE["wanda"].colour)
    (band,) = ax.patches
    assert_allclose([band.get_x(), band.get_x() + band.get_width()], [-0.01, 0.01])


def test_only_what_is_far_off_makes_the_axis_logarithmic() -> None:
    near, far = (runs({"wanda": {2: level, 50: 0.3}}) for level in (0.35, 0.9))
    scales = []
    for table in (near, far):
        differences = size_differences(table)
        scales.append(figures.fig_size_changes(differences, size_changes(differences)).axes[0].get_xscale())
    assert scales == ["linear", "symlog"]


def test_changes_in_words() -> None:
    levels = {"wanda": {2: 0.302, 10: 0.301, 50: 0.3}, "sparsegpt": {2: 0.9, 10: 0.4, 50: 0.25}}
    assert figures.describe_size_changes(size_changes(size_differences(runs(levels)))) == (
        "Damage minus that of the largest size, in nats per token with 90 % interval, by windows. "
        "Wanda: 10 +0.001 [+0.001, +0.001], 2 +0.002 [+0.002, +0.002] (as good as the largest from 2 on); "
        "SparseGPT: 10 +0.150 [+0.150, +0.150], 2 +0.650 [+0.650, +0.650] (none is shown to be as good as the largest)."
    )


def test_gap_is_drawn_with_its_limits() -> None:
    gaps = gap_table(runs())
    figure = figures.fig_gap_by_amount(gaps)
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["Wanda\ncode − c4", "SparseGPT\ncode − c4"]
    ax = figure.axes[0]
    assert_allclose(ax.lines[-1].get_xydata(), [[2, 0.2], [10, 0.2], [50, 0.2]])
    assert_allclose(ax.lines[1].get_ydata(), gaps.loc[0, ["low", "high"]].to_numpy(float))


def test_gap_in_words() -> None:
    # t(0.975, df 4) * sqrt(2 * 1e-4 / 3) = 0.0227
    said = figures.describe_gap_by_amount(gap_table(runs({"wanda": {2: 0.3, 10: 0.3}})))
    assert said == (
        "Gap of damage between two texts by number of windows, in nats per token. "
        "Wanda, code − c4: 0.200 [0.177, 0.223] at 2, 0.200 [0.177, 0.223] at 10."
    )


def test_spread_is_drawn_with_both_lines() -> None:
    table = many(("c4", "code"), ("wanda",), (1, 4, 16))
    spreads, exponents = spread_table(table), exponent_table(table)
    figure = figures.fig_spread_by_amount(spreads, exponents)
    drawn(figure)
    (ax,) = figure.axes
    assert ax.get_title("left") == "Wanda: β = 0.50"  # the draws differ as n^-1/2
    fitted, independent = ax.lines[:2]
    assert_allclose(fitted.get_ydata(), np.sqrt(2) * 0.1 / np.array([1, 2, 4]))
    assert_allclose(independent.get_ydata(), fitted.get_ydata())
    assert_allclose(ax.lines[-1].get_ydata(), fitted.get_ydata())
    said = figures.describe_spread_by_amount(spreads, exponents)
    assert "Wanda: 0.1414 [" in said and said.endswith("at 16; β = 0.50 [0.50, 0.50].")


@pytest.mark.parametrize(
    ("texts", "methods", "amounts"),
    [
        (("c4", "code"), ("wanda",), (1, 2)),
        (tuple(name for name in SOURCE_STYLE if name != "random"), ("wanda", "sparsegpt"), (1, 8, 64)),
        (("c4", *LONG), ("dsnot+owl", "wanda_variant", "magnitude_row+owl", "wanda"), tuple(2**k for k in range(10))),
    ],
)
def test_figures_survive_few_and_many(
    texts: tuple[str, ...], methods: tuple[str, ...], amounts: tuple[int, ...]
) -> None:
    table = many(texts, methods, amounts)
    differences = size_differences(table)
    drawn(figures.fig_damage_by_amount(table))
    drawn(figures.fig_size_changes(differences, size_changes(differences)))
    drawn(figures.fig_gap_by_amount(gap_table(table)))
    drawn(figures.fig_spread_by_amount(spread_table(table), exponent_table(table)))


def test_lengths_have_their_own_label() -> None:
    table = runs({"wanda": {8: 0.30, 2: 0.33}}).assign(seq_len=lambda t: 512 // t["n_samples"])
    differences = size_differences(table, "seq_len")
    figure = figures.fig_size_changes(differences, size_changes(differences, "seq_len"), "seq_len")
    drawn(figure)
    assert figure.axes[0].get_title("left") == "Tokens in a window"


def test_tables_without_rows_are_refused() -> None:
    with pytest.raises(InputError, match="fig_damage_by_amount: the table has no rows"):
        figures.fig_damage_by_amount(runs()[:0])


def test_the_table_is_left_alone() -> None:
    table = runs()
    before = table.copy()
    first, second = (drawn(figures.fig_damage_by_amount(table)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(table, before)
