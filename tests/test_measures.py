"""The table of measures against numbers worked by hand, and answers item by item."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from test_task_items import toy, word
from tiny_scores import TASKS, answers, grid, measured, records, settings, tidy

from calib_study.errors import InputError
from calib_study.measures import (
    MEASURES,
    answers_of,
    chance_of,
    measure_table,
    task_means,
    task_table,
    window_values,
)


def test_every_measure_is_a_loss_against_the_dense_model() -> None:
    """Wanda on c4, seed 0: loses 1.5 - 0.4 at home and 1.5 on code, mean 1.3; divergences are fixed shares of that."""
    table, answered = measured()
    assert table.loc[0, "method"] == "dense"
    assert_allclose(table.loc[0, list(MEASURES)].to_numpy(float), 0)
    row = table.set_index("run_id").loc["wanda-c4-0-0.5"]
    assert_allclose([row["damage on c4"], row["damage on code"], row["damage"]], [1.1, 1.5, 1.3])
    assert_allclose([row["jensen_shannon"], row["kl_dense_pruned"], row["disagreement"]], [0.13, 0.26, 0.13])
    assert_allclose(row["answer_loss"], 1.3)
    right = task_means(answered.of(["dense-None-0-0.0", "wanda-c4-0-0.5"]), TASKS)
    assert_allclose(row["accuracy_loss"], right[0] - right[1])


def test_a_table_needs_one_dense_run_and_all_measures() -> None:
    runs = grid()
    with pytest.raises(InputError, match="needs one dense run"):
        measure_table(tidy(runs[1:]), answers(runs[1:]))
    twice = [*runs, settings("dense", None, 1, 0.0)]
    with pytest.raises(InputError, match="needs one dense run"):
        measure_table(tidy(twice), answers(twice))
    frame = tidy(runs)
    lacking = frame[(frame["run_id"] != "wanda-c4-0-0.5") | (frame["metric"] != "jensen_shannon")]
    with pytest.raises(InputError, match=r"1 runs lack a measure; the first is wanda-c4-0-0\.5"):
        measure_table(lacking, answers(runs))


def test_answers_come_item_by_item_from_all_tasks() -> None:
    """Bits of the right answers of `toy`: 1 / ln 2 / 2 bytes, 3 / ln 2 / 3, 7 / ln 2 / 4."""
    found = answers_of({"one": [toy(), word()]})
    assert found.tasks.tolist() == ["toy"] * 3 + ["word"] * 2
    assert found.correct[0, :3].tolist() == [1, 0, 0]
    assert_allclose(found.bits[0, :3], np.array([1 / 2, 3 / 3, 7 / 4]) / np.log(2))


def test_runs_that_answered_other_items_cannot_be_compared() -> None:
    other = toy(item_ids=np.array([2, 3, 7]))
    with pytest.raises(InputError, match="run two answered other items than one"):
        answers_of({"one": [toy()], "two": [other]})
    with pytest.raises(InputError, match="not asked any task"):
        answers_of({"one": []})


def test_chance_is_one_over_the_answers_of_each_item() -> None:
    """Three, two and three answers: (1/3 + 1/2 + 1/3) / 3; a word to be written cannot be guessed."""
    chance = chance_of([toy(), word()])
    assert chance["toy"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3) and chance["word"] == 0


def test_tasks_stand_in_rows_and_methods_in_columns() -> None:
    table, answered = measured()
    found = task_table(answered, table, {"piqa": 0.5})
    assert found["task"].tolist() == ["piqa", "copa"] and found["n"].tolist() == [6, 6]
    assert found["chance"].tolist() == [0.5, 0.0]
    assert found.loc[0, "dense"] == answered.of(["dense-None-0-0.0"])[0, :6].mean()


def test_windows_are_those_of_all_texts() -> None:
    runs = grid()[:3]
    values, texts = window_values(records(runs), "nll")
    assert values.shape == (3, 4) and texts.tolist() == ["c4", "c4", "code", "code"]
    assert_allclose(values[2], [1.1, 1.1 + 0.2 + 0.02, 1.5, 1.7])
    with pytest.raises(InputError, match="no 'perplexity' on the same windows"):
        window_values(records(runs), "perplexity")
