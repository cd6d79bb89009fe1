"""The figure of the adapter's speed from made-up tables: what is drawn where, and what is said of it."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from test_figures import drawn, words

from calib_study.errors import InputError
from calib_study.harness_figures import describe_harness_agreement, describe_harness_speed, fig_harness_speed
from calib_study.harness_tables import HARNESS_COLUMNS

KNOWN = ["task", "shots", "items", "items_that_differ", "max_abs_difference", "ratio", "target", "met", "overhead_s"]


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def speed() -> pd.DataFrame:
    rows = [
        ("boolq", 0, 40, 0, 2e-5, 1.21, 1.0, True, 0.01),
        ("hellaswag", 0, 40, 1, 1.5e-4, 2.5, 1.8, True, 0.02),
        ("piqa", 0, 40, 0, 3e-5, 1.6, 1.8, False, 0.03),
        ("mmlu", 5, 12, 0, 2e-5, 3.44, 1.0, True, 0.25),
    ]
    table = pd.DataFrame(rows, columns=KNOWN).reindex(columns=HARNESS_COLUMNS)
    table.attrs = {"device": "cpu"}
    return table


def test_speed_is_a_bar_with_its_target() -> None:
    figure = fig_harness_speed(speed())
    drawn(figure)
    (ax,) = figure.axes
    assert_allclose([bar.get_width() for bar in ax.patches], [1.21, 2.5, 1.6, 3.44])
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "boolq, 0 shots",
        "hellaswag, 0 shots",
        "piqa, 0 shots",
        "mmlu, 5 shots",
    ]
    *targets, stock = ax.lines
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in targets] == [(1, 0), (1.8, 1), (1.8, 2), (1, 3)]
    assert list(stock.get_xdata()) == [1, 1]
    assert [t.get_text() for t in ax.texts] == ["1.21", "2.5", "1.6, target missed", "3.44"]
    pale = [bar.get_alpha() for bar in ax.patches]
    assert pale[2] < pale[0] == pale[1] == pale[3]
    assert "higher is better →" in words(figure) and "CPU time of the stock class" in words(figure)


def test_no_label_stands_on_a_target() -> None:
    """A bar that ends before its target has its label behind the target."""
    figure = fig_harness_speed(speed())
    drawn(figure)
    (ax,) = figure.axes
    assert [t.xy[0] for t in ax.texts] == [1.21, 2.5, 1.8, 3.44]


def test_speed_in_words() -> None:
    assert describe_harness_speed(speed()) == (
        "CPU time of the stock class over that of the adapter: from 1.21 (boolq, 0 shots) to 3.44 (mmlu, 5 shots). "
        "Targets met: boolq, 0 shots; hellaswag, 0 shots; mmlu, 5 shots. "
        "Targets missed: piqa, 0 shots (1.6, target 1.8). "
        "acc or acc_norm differs on 1 of 132 items (hellaswag, 0 shots: 1). "
        "The largest difference of a log-likelihood is 1.5e-04 nats. "
        "Beside the model's answers, an evaluation takes 0.25 s at most."
    )


def test_words_when_all_agree_or_none_is_met() -> None:
    fine = speed().query("met and items_that_differ == 0")
    said = describe_harness_speed(fine)
    assert "No target is missed." in said and "differs on 0 of 52 items. " in said
    said = describe_harness_speed(speed().query("not met"))
    assert "Targets met" not in said and "Targets missed: piqa, 0 shots (1.6, target 1.8)." in said


def test_seconds_on_a_gpu_are_not_called_cpu_time() -> None:
    table = speed()
    table.attrs = {"device": "cuda"}
    assert describe_harness_speed(table).startswith("Time of the stock class")
    assert "CPU" not in words(fig_harness_speed(table))


@pytest.mark.parametrize("n", [1, 15])
def test_the_figure_survives_few_and_many(n: int) -> None:
    table = pd.concat([speed()] * 4, ignore_index=True)[:n].assign(task="a_task_with_quite_a_long_name")
    drawn(fig_harness_speed(table))


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="fig_harness_speed: the table has no rows"):
        fig_harness_speed(speed()[:0])
    with pytest.raises(InputError, match="describe_harness_speed: the table has no rows"):
        describe_harness_speed(speed()[:0])


def test_the_same_table_gives_the_same_picture_and_is_left_alone() -> None:
    table = speed()
    before = table.copy()
    first, second = (drawn(fig_harness_speed(table)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    pd.testing.assert_frame_equal(table, before)


def test_agreement_counts_items_that_differ() -> None:
    assert describe_harness_agreement(speed()) == (
        "acc or acc_norm differs on 1 of 132 items (hellaswag, 0 shots: 1). "
        "The largest difference of a log-likelihood is 1.5e-04 nats."
    )
