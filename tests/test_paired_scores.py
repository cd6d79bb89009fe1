"""Scores of a run item by item: their mean is the metric, and what they were scored on decides what can be compared."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny_records import answers, keep, record, spec, text_metrics

from calib_study.paired_scores import Scores, incomparable, scores_of
from calib_study.records import Record, Store

LOSSES = (1.0, 2.0, 3.0, 6.0)  # mean 3


def of(found: Record, store: Store) -> dict[tuple[str, str], Scores]:
    return scores_of(found, store.arrays(found))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_every_texts_metric_is_a_mean_over_windows(store: Store) -> None:
    scores = of(keep(store, spec(), LOSSES), store)
    assert list(scores) == [("perplexity", "c4"), ("nll", "c4"), ("bits_per_byte", "c4")]
    for found in scores.values():
        assert found.items is not None and found.noun == "windows"
        assert float(found.items.mean()) == pytest.approx(found.value)
    loss, size = scores["nll", "c4"], scores["perplexity", "c4"]
    assert loss.value == size.value == 3 and size.relative and not loss.relative  # a perplexity counts by its logarithm
    # 3 nats a token are 3 / ln 2 bits a token, and 0.25 bytes a token make four times as many bits a byte
    bits = scores["bits_per_byte", "c4"].items
    assert bits is not None
    assert_allclose(bits, np.array(LOSSES) / math.log(2) * 4)


def test_a_metric_that_is_no_mean_over_its_windows_has_no_items(store: Store) -> None:
    loss = text_metrics(LOSSES)[1]
    odd = loss.model_copy(update={"name": "median", "value": 2.5})
    none = loss.model_copy(update={"name": "none", "items": ()})
    scores = scores_of(record(spec(), (loss, odd, none)), {})
    assert scores["median", "c4"].items is None and scores["none", "c4"].items is None


def test_answers_to_items(store: Store) -> None:
    """Three of four right: acc 3/4; the right answers' log-likelihoods are -1, -1, -1, -2, so ln perplexity 5/4."""
    asked = spec(evaluation={"tasks": ("piqa",), "task_limit": 4})
    scores = of(keep(store, asked, LOSSES, [answers([True, True, True, False])]), store)
    right, words = scores["acc", "piqa"], scores["perplexity", "piqa"]
    assert right.items is not None and words.items is not None and right.noun == words.noun == "items"
    assert right.items.tolist() == [1, 1, 1, 0] and right.value == 0.75
    assert words.items.tolist() == [1, 1, 1, 2] and words.value == pytest.approx(1.25)
    without = scores_of(record(asked, (), [answers([True, True, True, False])]), {})
    assert without["acc", "piqa"].items is None and without["acc", "piqa"].value == 0.75


def test_what_was_scored_on_decides(store: Store) -> None:
    base = of(keep(store, spec(), LOSSES), store)["nll", "c4"]
    assert incomparable([(base, base)]) == ""
    assert incomparable([(base, base), (base, None)]) == "only A has it"
    assert incomparable([(None, base)]) == "only B has it"
    for changes, told in (
        ({"seq_len": 32}, "eval_seq_len 16 and 32"),
        ({"n_windows": 5}, "eval_n_windows 4 and 5"),
        ({"source_hashes": ("ef",)}, "text None and ef"),
    ):
        other = of(keep(store, spec(evaluation=changes), LOSSES), store)["nll", "c4"]
        assert incomparable([(base, other)]) == f"scored on other windows ({told})"


def test_divergence_from_another_model_is_another_measure() -> None:
    shown = text_metrics(LOSSES)[1].model_copy(update={"name": "jensen_shannon"})
    reference = {"divergence": True, "reference": "n", "reference_hash": "12"}
    one = scores_of(record(spec(evaluation={"divergence": True}), (shown,)), {})["jensen_shannon", "c4"]
    two = scores_of(record(spec(evaluation=reference), (shown,)), {})["jensen_shannon", "c4"]
    assert incomparable([(one, two)]) == "scored on other windows (reference m and n, reference_hash None and 12)"


def test_other_items_are_told(store: Store) -> None:
    found = []
    for seed, numbers in enumerate(([0, 1, 2, 3], [0, 1, 2, 9])):
        asked = spec(seed=seed, evaluation={"tasks": ("piqa",), "task_limit": 4})
        found.append(of(keep(store, asked, LOSSES, [answers([True] * 4, numbers)]), store)["acc", "piqa"])
    assert incomparable([(found[0], found[1])]).startswith("scored on other items (items 4 (")
