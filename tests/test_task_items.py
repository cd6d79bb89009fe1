"""Items that come back from arrays as they went in, and the table of items."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calib_study.array_files import from_bytes, to_bytes
from calib_study.errors import InputError, StudyError
from calib_study.task_items import STORED, TaskMetric, TaskResult, item_arrays, items_frame, results_of

NAN = math.nan


def toy(**changes: Any) -> TaskResult:
    """Three items of two subjects; the second has two answers, the others three.

    Right answers 0, 1, 2. Item 0: -1 is highest, and so it is per character. Item 1: -2 against -3; but per character
    -2 / 1 against -3 / 2, so that the second answer wins. Item 2: the first of two equals is chosen, which is wrong.
    """
    fields: dict[str, Any] = {
        "task": "toy",
        "version": "1.0",
        "split": "test",
        "n_total": 9,
        "num_fewshot": 5,
        "limit": 3,
        "seed": 4,
        "metrics": {
            "acc": TaskMetric("acc", 1 / 3, 0.1, 3, True),
            "acc_norm": TaskMetric("acc_norm", 2 / 3, None, 3, True),
        },
        "primary": "acc",
        "parts": ("one", "two"),
        "part_of": np.array([0, 0, 1]),
        "item_ids": np.array([2, 3, 8]),
        "gold": np.array([0, 1, 2]),
        "chosen": np.array([0, 0, 0]),
        "correct": np.array([True, False, False]),
        "correct_norm": np.array([True, True, False]),
        "loglikelihoods": np.array([[-1, -2, -3], [-2, -3, NAN], [-0.5, -0.5, -7]], np.float32),
        "n_chars": np.array([[1, 1, 1], [1, 2, 0], [1, 1, 2]]),
        "n_bytes": np.array([[2, 2, 2], [2, 3, 0], [2, 2, 4]]),
    }
    return TaskResult(**{**fields, **changes})


def word() -> TaskResult:
    """A task with one answer an item: which greedy decoding writes, or does not."""
    return toy(
        task="word",
        metrics={"perplexity": TaskMetric("perplexity", 1.5, 0.2, 2, False)},
        primary="perplexity",
        parts=("word",),
        part_of=np.array([0, 0]),
        item_ids=np.array([0, 5000]),
        gold=np.array([0, 0]),
        chosen=np.array([-1, 0]),
        correct=np.array([False, True]),
        correct_norm=None,
        loglikelihoods=np.array([[-0.1], [-12.25]], np.float32),
        n_chars=np.array([[5], [70000]]),
        n_bytes=np.array([[5], [70001]]),
        limit=None,
    )


def assert_equal(found: TaskResult, expected: TaskResult) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert_array_equal(getattr(found, name), value, strict=True)
        else:
            assert getattr(found, name) == value, name


def kept(*results: TaskResult) -> list[TaskResult]:
    """Return results as they come back from a file of arrays."""
    return results_of(from_bytes(to_bytes(item_arrays(results)), "items.npz"))


def test_results_come_back_as_they_were() -> None:
    one, two = kept(toy(), word())
    assert_equal(one, toy())
    assert_equal(two, word())
    assert one.value == 1 / 3 and two.value == 1.5


def test_no_results_make_no_arrays() -> None:
    assert item_arrays([]) == {}
    assert results_of({"mask_bits": np.zeros(3)}) == []


def test_the_order_of_the_metrics_is_kept() -> None:
    metrics = {name: TaskMetric(name, 0.5, None, 3, True) for name in ("perplexity", "acc", "acc_norm")}
    assert list(kept(toy(metrics=metrics))[0].metrics) == ["perplexity", "acc", "acc_norm"]


def test_items_are_compact() -> None:
    """1,000 items of 4 answers: 16 kB of log-likelihoods, which are noise, and little besides."""
    n = 1000
    rng = np.random.default_rng(0)
    loglikelihoods = rng.normal(-20, 5, (n, 4)).astype(np.float32)
    result = toy(
        part_of=np.zeros(n, np.int64),
        item_ids=np.arange(n) * 3,
        gold=rng.integers(0, 4, n),
        chosen=loglikelihoods.argmax(1),
        correct=rng.random(n) < 0.5,
        correct_norm=rng.random(n) < 0.5,
        loglikelihoods=loglikelihoods,
        n_chars=np.full((n, 4), 20),
        n_bytes=np.full((n, 4), 21),
    )
    arrays = item_arrays([result])
    assert {f"toy/{name}" for name in STORED} <= set(arrays)
    assert len(to_bytes(arrays)) < 22_000
    assert_array_equal(kept(result)[0].loglikelihoods, loglikelihoods, strict=True)


def test_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="gold holds a value that int16 cannot"):
        item_arrays([word(), toy(gold=np.array([0, 1, 40_000]))])


def test_a_task_is_kept_once() -> None:
    with pytest.raises(InputError, match="once, got toy, word, toy"):
        item_arrays([toy(), word(), toy()])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": ('"version": 1}', '"version": 9}')}, r"written by another version \(format 9\)"),
        ({"tasks": ('"n_total"', '"n_tutal"')}, "damaged .TypeError: .*n_tutal"),
        ({"tasks": ("{", "")}, "damaged .JSONDecodeError"),
        ({"toy/gold": None}, "damaged .KeyError: .*toy/gold"),
    ],
)
def test_damaged_items_are_refused(change: dict[str, tuple[str, str] | None], said: str) -> None:
    arrays = item_arrays([toy()])
    for name, replaced in change.items():
        if replaced is None:
            del arrays[name]
        else:
            arrays[name] = np.array(str(arrays[name]).replace(*replaced))
    with pytest.raises(StudyError, match=f"task items .*{said}"):
        results_of(arrays)


def test_the_table_has_a_row_for_each_item() -> None:
    table = items_frame([toy(), word()])
    assert table["task"].tolist() == ["toy"] * 3 + ["word"] * 2
    assert table["part"].tolist() == ["one", "one", "two", "word", "word"]
    assert table["item_id"].tolist() == [2, 3, 8, 0, 5000]
    assert table["gold"].tolist() == [0, 1, 2, 0, 0]
    assert table["chosen"].tolist() == [0, 0, 0, -1, 0]
    assert table["correct"].tolist() == [1, 0, 0, 0, 1]
    assert_array_equal(table["correct_norm"], [1, 1, 0, NAN, NAN])
    # Of the right answers: -1, -3, -7, -0.1, -12.25 nats in 2, 3, 4, 5, 70,001 bytes.
    assert_allclose(table["gold_loglikelihood"], [-1, -3, -7, -0.1, -12.25], rtol=1e-7)
    assert_allclose(
        table["gold_bits_per_byte"], np.array([1 / 2, 3 / 3, 7 / 4, 0.1 / 5, 12.25 / 70001]) / math.log(2), rtol=1e-7
    )
    assert table.groupby("task")["correct"].mean().to_dict() == {"toy": 1 / 3, "word": 1 / 2}


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no task results"):
        items_frame([])


def test_a_result_is_frozen() -> None:
    with pytest.raises(AttributeError):
        toy().seed = 1  # type: ignore[misc]
    assert replace(toy(), seed=1).seed == 1
