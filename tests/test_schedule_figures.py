"""Figures of the chapter on schedules from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose
from test_figures import LONG, drawn, words
from test_mask_tables import COLUMNS

from calib_study import schedule_figures
from calib_study.errors import InputError
from calib_study.figure_style import METHOD_STYLE, SOURCE_STYLE
from calib_study.frames import interval_table
from calib_study.schedule_tables import COST_COLUMNS, change_table, order_table, schedule_differences

TEXTS = ("c4", "code", "math")
METHODS = ("wanda", "sparsegpt")
SHIFTS = {"block": 0.0, "sequential": -0.02, "dense": 0.1}


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def damage(
    texts: tuple[str, ...] = TEXTS, methods: tuple[str, ...] = METHODS, schedules: tuple[str, ...] = tuple(SHIFTS)
) -> pd.DataFrame:
    """Return runs of three draws: each text 0.1 above the one before, each schedule shifted, draws 0.01 apart."""
    rows = [
        (method, schedule, text, seed, 0.5 + 0.1 * place + SHIFTS[schedule] * (seed + 1) + 0.01 * seed)
        for method in methods
        for schedule in schedules
        for place, text in enumerate(texts)
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=["method", "schedule", "source", "seed", "damage"])


def masks() -> pd.DataFrame:
    """Return two pairs of each kind for each method, and one pair of methods."""
    rows = []
    for place, method in enumerate(METHODS):
        for share in (0.02, 0.04):
            rows += [
                ("schedule", "block", "dense", None, 0, "c4", method, share + 0.1 * place),
                ("seed", "0", "1", "block", None, "c4", method, 2 * share),
                ("source", "c4", "code", "block", 0, None, method, 3 * share),
            ]
    rows.append(("method", *METHODS, "block", 0, "c4", None, 0.2))
    return pd.DataFrame(rows, columns=COLUMNS)


def cost() -> pd.DataFrame:
    rows = [
        ("one forward, onednn", "float32", 13.0, 1.0, 1.6, None, None, None),
        ("wanda, textbook", "float32", 50.0, 3.8, None, None, None, None),
        ("wanda, block", "float32", 26.0, 1.94, 1.92, "forwards <= 2", False, 0.0006),
        ("wanda, dense", "bfloat16", 12.0, 0.94, 4.0, "forwards <= 1.3", True, None),
        ("owl, its extra pass", "float32", 13.0, 0.99, None, "forwards <= 1", True, None),
        ("choosing by wanda, 2:4", "float32", 0.6, None, None, "cpu_s <= 1", True, None),
    ]
    return pd.DataFrame(rows, columns=list(COST_COLUMNS))


def test_changes_have_a_panel_for_each_method_and_schedule() -> None:
    differences = schedule_differences(damage())
    figure = schedule_figures.fig_schedule_changes(differences, change_table(differences))
    drawn(figure)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["Wanda: sequential", "Wanda: dense", "SparseGPT: sequential", "SparseGPT: dense"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [*TEXTS, "all texts"]
    assert "one seed of 3" in words(figure) and "lower is better" in words(figure)


def test_changes_are_points_and_a_mean_with_its_interval() -> None:
    differences = schedule_differences(damage())
    changes = change_table(differences)
    ax = schedule_figures.fig_schedule_changes(differences, changes).axes[1]  # Wanda, dense
    (of_code,) = [line for line in ax.lines if line.get_color() == SOURCE_STYLE["code"].colour]
    assert_allclose(of_code.get_xdata(), [0.1, 0.2, 0.3])  # 0.1 times 1, 2, 3
    row = changes.query("method == 'wanda' and schedule == 'dense'").iloc[0]
    assert_allclose(ax.lines[-2].get_xdata(), [row["low"], row["high"]])
    assert_allclose(ax.lines[-1].get_xdata(), [0.2])
    (band,) = ax.patches
    assert_allclose([band.get_x(), band.get_x() + band.get_width()], [-0.01, 0.01])


def test_changes_in_words() -> None:
    differences = schedule_differences(damage(methods=("wanda+owl",), schedules=("block", "dense")))
    said = schedule_figures.describe_schedule_changes(change_table(differences))
    # draws 0.1, 0.2, 0.3 of three texts: s = 0.1, half = t(0.975, 6) * 0.1 / 3 = 0.0816
    assert said == (
        "Damage minus that under the schedule block, in nats per token, with 95 % interval: "
        "Wanda + OWL, dense: +0.200 [+0.118, +0.282]."
    )


def test_order_is_drawn_around_the_mean_of_the_texts() -> None:
    table = damage()
    order = order_table(table)
    means = interval_table(table, ["method", "schedule", "source"], "damage")
    figure = schedule_figures.fig_order_by_schedule(means, order)
    drawn(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["Wanda", "SparseGPT"]
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(SHIFTS)
    for line, expected in zip(ax.lines, (-0.1, 0.0, 0.1), strict=True):
        assert_allclose(line.get_xdata(), [expected] * 3, atol=1e-12)
    assert_allclose([bar.get_width() for bar in ax.patches], order.query("method == 'wanda'")["null_q95"])
    assert [t.get_text() for t in ax.texts] == ["range 0.200", "range 0.200\nτ = 1.00", "range 0.200\nτ = 1.00"]


def test_order_in_words() -> None:
    order = order_table(damage(methods=("sparsegpt",), schedules=("block", "dense")))
    said = schedule_figures.describe_order_by_schedule(order)
    null = f"{order['null_q95'].iloc[0]:.3f}"
    assert f"SparseGPT, block: c4 best, math worst, range 0.200 (if one text: below {null}), tau 1.00; " in said
    assert said.count("best") == 2


def test_masks_have_a_row_for_each_kind_and_method() -> None:
    figure = schedule_figures.fig_mask_disagreement(masks())
    drawn(figure)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "block / dense, Wanda",
        "block / dense, SparseGPT",
        "another draw, Wanda",
        "another draw, SparseGPT",
        "another text, Wanda",
        "another text, SparseGPT",
        "another method",
    ]
    assert_allclose([line.get_xdata()[0] for line in ax.lines[1::2]], [3, 13, 6, 6, 9, 9, 20])
    assert to_hex(ax.lines[1].get_color()) == to_hex(METHOD_STYLE["wanda"].colour)
    assert [t.get_text() for t in ax.texts][:2] == ["3.0 %", "13.0 %"]


def test_masks_in_words() -> None:
    said = schedule_figures.describe_mask_disagreement(masks())
    assert "block / dense (Wanda) 3.0 %; another draw (Wanda) 6.0 %;" in said
    assert said.endswith("another method 20.0 %.")


def test_cost_in_forwards() -> None:
    figure = schedule_figures.fig_prune_cost(cost())
    drawn(figure)
    (ax,) = figure.axes
    assert_allclose([bar.get_width() for bar in ax.patches], [3.8, 1.94, 0.94, 0.99])
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "wanda, textbook, float32",
        "wanda, block, float32",
        "wanda, dense, bfloat16",
        "owl, its extra pass, float32",
    ]
    assert [t.get_text() for t in ax.texts] == [
        "3.8",
        "1.94, 1.92 times faster, target missed",
        "0.94, 4 times faster, target met",
        "0.99, target met",
    ]


def test_cost_in_words() -> None:
    assert schedule_figures.describe_prune_cost(cost()) == (
        "Cost in dense forwards of the calibration windows: wanda, textbook, float32 3.8; "
        "wanda, block, float32 1.94 (1.92 times faster than the textbook); "
        "wanda, dense, bfloat16 0.94 (4 times faster than the textbook); owl, its extra pass, float32 0.99. "
        "Rows of the benchmark that meet their targets: 3 of 4."
    )
    assert "targets" not in schedule_figures.describe_prune_cost(cost()[1:2])


@pytest.mark.parametrize(
    ("texts", "methods", "schedules"),
    [
        (("c4", "code"), ("wanda",), ("block", "dense")),
        (tuple(SOURCE_STYLE), ("wanda",), tuple(SHIFTS)),
        ((*TEXTS, *LONG), ("dsnot+owl", "wanda_variant", "magnitude_row+owl"), tuple(SHIFTS)),
    ],
)
def test_figures_survive_few_and_many(
    texts: tuple[str, ...], methods: tuple[str, ...], schedules: tuple[str, ...]
) -> None:
    table = damage(texts, methods, schedules)
    differences = schedule_differences(table)
    drawn(schedule_figures.fig_schedule_changes(differences, change_table(differences)))
    means = interval_table(table, ["method", "schedule", "source"], "damage")
    drawn(schedule_figures.fig_order_by_schedule(means, order_table(table)))


def test_tables_without_rows_are_refused() -> None:
    with pytest.raises(InputError, match="fig_mask_disagreement: the table has no rows"):
        schedule_figures.fig_mask_disagreement(masks()[:0])
    with pytest.raises(InputError, match="fig_prune_cost: the table has no rows"):
        schedule_figures.fig_prune_cost(cost()[5:])


def test_the_same_table_gives_the_same_picture_and_is_left_alone() -> None:
    table = masks()
    before = table.copy()
    first, second = (drawn(schedule_figures.fig_mask_disagreement(table)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(table, before)
