"""Parts of a synthesis: what is kept of a text, and that damage or another request is never taken for it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calib_study.generation import Text
from calib_study.manifests import Synthesis, TextFacts, checked_request
from calib_study.prompts import Prompt
from calib_study.text_parts import Parts, Row, repeated_share

pytestmark = pytest.mark.usefixtures("own_cache")


def request(**changes: Any) -> Synthesis:
    return checked_request(
        Synthesis, **({"model": "m", "prefix_len": 0, "n_texts": 4, "new_tokens": 3, "end_of_text": "ban"} | changes)
    )


def row(index: int) -> Row:
    return Row((1, index), TextFacts(index=index, n_scored=2, perplexity=1.5))


def test_the_share_of_repeated_4_grams_by_hand() -> None:
    # 1 2 3 4 1 2 3 4 1: the 4-grams 1234 2341 3412 4123 1234 2341, of which the last two came before
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4, 1]) == pytest.approx(2 / 6)
    assert repeated_share([7] * 103) == 0.99  # 100 of them, 99 not for the first time
    assert repeated_share(list(range(50))) == 0
    assert repeated_share([1, 1, 1]) == repeated_share([]) == 0  # too short to have any


def test_what_is_kept_of_a_text() -> None:
    prompt = Prompt(6, (0, 4, 5), 1, np.zeros(4))
    text = Text(prompt, [0, 4, 5, 4, 5], nll=4 * math.log(3.0), n_scored=4, ends=1, margin=0.0012345)
    kept = Row.of(text)
    assert kept.ids == (4, 5, 4, 5)
    assert kept.facts == TextFacts(index=6, n_scored=4, perplexity=3.0, n_tokens=4, ends=1, repeated=0.0, margin=0.0012)
    assert Row.from_line(kept.to_line()) == kept
    assert Row.of(Text(Prompt(0, (4,), 0, np.zeros(4)), [4])).facts.perplexity is None  # one token, none scored


def test_parts_add_up_whoever_wrote_them() -> None:
    parts = Parts(request())
    assert parts.read() == {}
    parts.put([])
    parts.put([row(3), row(1)])
    Parts(request()).put([row(2)])
    assert parts.read() == {index: row(index) for index in (1, 2, 3)}
    assert sorted(file.name for file in parts.folder.iterdir()) == ["000001.jsonl", "000002.jsonl"]


def test_only_the_number_of_texts_makes_no_difference() -> None:
    folders = {Parts(request(**changes)).folder for changes in ({}, {"n_texts": 9})}
    assert len(folders) == 1
    for changes in ({"seed": 1}, {"new_tokens": 4}, {"model_hash": "1"}, {"temperature": 0.7}, {"dtype": "bfloat16"}):
        folders.add(Parts(request(**changes)).folder)
    assert len(folders) == 6


@pytest.mark.parametrize("content", ["", "{", "{}\n", '{"ids": [1], "facts": {"index": 0}}\n', "\ufffd\x00"])
def test_what_is_damaged_is_absent(content: str) -> None:
    parts = Parts(request())
    parts.put([row(2)])
    (parts.folder / "000000.jsonl").write_text(content)
    assert parts.read() == {2: row(2)}


def test_one_process_at_a_time(own_cache: Path) -> None:
    from threading import Thread

    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with Parts(request(n_texts=9)).locked(said.append):
            order.append("second")

    with Parts(request()).locked(said.append):
        thread = Thread(target=second)
        thread.start()
        while not said:
            thread.join(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == ["another process is writing these texts; waiting for it."]
