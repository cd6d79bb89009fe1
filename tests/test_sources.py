"""Sources: cleaning and splitting by hand and as properties, names and paths, and the real documents."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_study import tiny_source

from calib_study import sources
from calib_study.catalogue import HubEntry, load_catalogue
from calib_study.errors import DataError, InputError
from calib_study.preflight import check_evaluation_source
from calib_study.sources import (
    assert_disjoint,
    clean,
    content_hash,
    hub_documents,
    is_held_out,
    is_unseen,
    load_documents,
    load_source,
    normalised,
    register_source,
    resolve_source,
    source_hash,
    source_names,
    split_documents,
)

texts = st.lists(st.text(alphabet="ab \n\ufffd", max_size=6), max_size=12)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_registered", {})


def test_cleaning_by_hand() -> None:
    raw = ["\n\n  indented\n", "twice  over", "", " \n", "twice\nover\n", "lost \ufffd", "half \ud83d", "ok"]
    # Kept: the first with its indentation; the first "twice over"; "ok". Dropped: empty, repeated, broken.
    assert clean(raw) == ("  indented", "twice  over", "ok")
    assert clean(raw, min_chars=3) == ("  indented", "twice  over")
    assert clean(["abc", "abcd"], min_chars=4) == ("abcd",)


def test_the_split_by_hand() -> None:
    # First 8 digits of sha256, modulo 4 (that of the last digit): a ca978112 -> 2, f 252f10c8 -> 0,
    # one 7692c3ad -> 1, three 8b5b9db0 -> 0, c 2e7d2c03 -> 3
    documents = ["a", "f", "one", "three", "c"]
    assert [is_held_out(text) for text in documents] == [False, True, False, True, False]
    assert split_documents(documents) == (("a", "one", "c"), ("f", "three"))
    assert is_held_out(" three\n")


@given(texts)
def test_cleaned_documents_are_whole_distinct_and_stay_as_they_are(raw: list[str]) -> None:
    documents = clean(raw)
    assert len({normalised(text) for text in documents}) == len(documents)
    assert all(text.strip() and "\ufffd" not in text for text in documents)
    assert clean(documents) == documents


@given(texts)
def test_each_cleaned_document_is_in_one_part_and_keeps_its_order(raw: list[str]) -> None:
    documents = clean(raw)
    calibration, held_out = split_documents(documents)
    assert_disjoint(calibration, held_out)
    assert tuple(text for text in documents if is_held_out(text)) == held_out
    assert tuple(text for text in documents if not is_held_out(text)) == calibration


def test_a_document_on_both_sides_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 document\(s\) stand in both .* such as 'one two'"):
        assert_disjoint(["a", "one  two"], ["one\ntwo", "b"])


def test_the_content_hash_depends_on_documents_and_order() -> None:
    hashes = {content_hash(d) for d in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], [])}
    assert len(hashes) == 5
    assert content_hash(["a", "b"]) == content_hash(("a", "b"))


def test_names_come_in_catalogue_order_with_random_last() -> None:
    register_source("mine", lambda: ["a"], "mine", "mine")
    names = source_names()
    assert names[0] == "c4"
    assert names[-2:] == ["mine", "random"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("c5", "unknown source 'c5'. Did you mean 'c4'"),
        ("wikpedia", "Did you mean 'wikipedia'"),
        ("hub:c5", "unknown hub data set 'hub:c5'. Did you mean 'hub:c4'"),
        ("absent.txt", "there is no such file or folder"),
        ("absent/folder", "there is no such file or folder"),
        ("", "unknown source ''"),
    ],
)
def test_unknown_sources_are_refused_with_near_matches(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve_source(name)
    assert said in str(caught.value)


def test_paths_are_checked_without_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt or \.md file"):
        resolve_source("folder")
    for name in ("a.txt", "a.md", "a.jsonl", "folder/a.txt"):
        Path(name).write_bytes(b"\xff")
        assert resolve_source(name) == str(tmp_path / name)
    assert resolve_source("folder") == str(tmp_path / "folder")
    Path("a.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"must be \.txt or \.md .* or \.jsonl"):
        resolve_source("a.pkl")
    # A name of the catalogue stays one, whatever lies in the folder.
    Path("c4").mkdir()
    assert resolve_source("c4") == "c4"


def test_resolving_is_fast_and_opens_no_archive(own_cache: Path) -> None:
    start = time.perf_counter()
    assert [resolve_source(name) for name in source_names()] == source_names()
    assert resolve_source("hub:dclm") == "hub:dclm"
    assert time.perf_counter() - start < 0.5
    assert not own_cache.exists()
    with pytest.raises(DataError, match="Run: calib-study fetch exllamav3"):
        load_documents("c4", "calibration")


def test_a_file_of_the_users_own_is_cleaned_split_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("a\n\nf\n\none\n\nthree\n\na\n")
    assert load_source(str(path)).documents == ("a", "f", "one", "three")
    assert load_documents(str(path), "calibration") == ("a", "one")
    assert load_documents(str(path), "held_out") == ("f", "three")
    assert source_hash(str(path)) == content_hash(["a", "f", "one", "three"])
    before = source_hash(str(path))
    path.write_text("a\n\nf\n")
    assert source_hash(str(path)) != before


def test_a_source_without_documents_on_one_side_says_how_many_it_has(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "three"}\n')
    with pytest.raises(InputError, match=r"has 1 document\(s\): 0 for calibration, 1 held out"):
        load_documents(str(path), "calibration")
    path.write_text('{"text": " "}\n')
    with pytest.raises(InputError, match="has no documents"):
        load_documents(str(path), "calibration")


def test_random_has_no_documents_and_parts_have_two_names() -> None:
    assert resolve_source("random") == "random"
    assert source_hash("random") is None
    with pytest.raises(InputError, match="has no documents: its windows are token ids"):
        load_documents("random", "held_out")
    with pytest.raises(InputError, match="unknown part 'held-out'. Did you mean 'held_out'"):  # noqa: RUF043
        load_documents("c4", "held-out")  # type: ignore[arg-type]


def test_a_registered_source_is_one_like_the_others() -> None:
    register_source("mine", lambda: iter(["a", "three", "a "]), "my letters", "CC0")
    source = load_source("mine")
    assert (source.summary, source.licence, source.documents) == ("my letters", "CC0", ("a", "three"))
    assert load_documents("mine", "held_out") == ("three",)
    assert source_hash("mine") == content_hash(["a", "three"])
    register_source("mine", lambda: ["one"], "again", "CC0")
    assert load_source("mine").documents == ("one",)
    with pytest.raises(InputError, match="in the catalogue already"):
        register_source("c4", list, "", "")
    for unfit in ("hub:x", "My Text", "a/b", ""):
        with pytest.raises(InputError, match="lower-case letters"):
            register_source(unfit, list, "", "")


HUB = HubEntry(
    name="toy",
    dataset="some/set",
    config="en",
    split="train",
    column="body",
    documents=3,
    summary="toy",
    licence="CC0",
)


def test_hub_documents_are_streamed_in_order_once_and_kept(own_cache: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def load(*args: Any, **kwargs: Any) -> Iterator[dict[str, str]]:
        calls.append((*args, kwargs))
        for number in range(1000):
            assert number < 3, "read further than asked"
            yield {"body": f"text {number}\nline", "other": "x"}

    expected = [f"text {number}\nline" for number in range(3)]
    assert hub_documents(HUB, load) == expected
    assert hub_documents(HUB, load) == expected
    assert calls == [("some/set", "en", {"split": "train", "streaming": True})]


@pytest.mark.parametrize("error", [ConnectionError("no route"), KeyError("body")])
def test_a_hub_that_cannot_be_read_leaves_nothing(own_cache: Path, error: Exception) -> None:
    def load(*args: Any, **kwargs: Any) -> Iterator[dict[str, str]]:
        yield {"body": "one"}
        raise error

    with pytest.raises(DataError, match=r"cannot read hub:toy \(some/set\).*It needs a network") as caught:
        hub_documents(HUB, load)
    assert "c4, wikipedia" in str(caught.value)
    assert list((own_cache / "hub").iterdir()) == []


def test_a_hub_source_loads_by_name(own_cache: Path) -> None:
    entry = load_catalogue().hub["c4"]
    kept = own_cache / "hub" / f"c4-{entry.documents}.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "three")))
    assert load_documents("hub:c4", "calibration") == ("a",)
    assert source_hash("hub:c4") == content_hash(["a", "three"])


# documents for calibration, held out, characters of all, and the start of the content hash: published numbers
# rest on these texts, so a change of any is a change of every record of that source.
REAL = {
    "c4": (637, 234, 2_028_687, "25a06a8a6e9a"),
    "wikipedia": (510, 202, 1_750_462, "d1ad083fcc34"),
    "code": (248, 81, 983_881, "b5623e632fa7"),
    "instruct": (750, 235, 780_337, "956bc0ba1ac3"),
    "chat": (2809, 963, 12_547_505, "df0e0cebf335"),
    "math": (3799, 1201, 3_565_464, "fd0d2f8b3df2"),
    "stories": (241, 76, 256_085, "e63c3bc72e0b"),
    "french": (7155, 2420, 3_493_105, "6ce154fba8c9"),
    "spanish": (4540, 1518, 2_642_157, "bd9e93d30719"),
    "leads": (7520, 2458, 4_870_477, "544a281bc108"),
}


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in load_catalogue().sources if name != "random"])
def test_the_real_documents_are_these(name: str) -> None:
    documents = load_source(name).documents
    calibration, held_out = split_documents(documents)
    assert REAL[name] == (
        len(calibration),
        len(held_out),
        sum(map(len, documents)),
        content_hash(documents)[:12],
    )
    assert source_hash(name) is None


@pytest.mark.real
def test_the_real_documents_begin_and_end_where_they_should() -> None:
    wikipedia = load_source("wikipedia").documents
    assert wikipedia[0].startswith("2007 European Parliament election in Romania\n\nRomania elected its members")
    assert not any("<doc " in text or "</doc>" in text for text in wikipedia)
    assert min(map(len, wikipedia)) >= 200
    code = load_source("code").documents
    assert not any("// ===== " in text for text in code)
    assert load_source("instruct").documents[0].startswith("Describe a process of making crepes.\n\nMaking crepes")
    assert not any("<|endoftext|>" in text for text in load_source("stories").documents)


@pytest.mark.real
def test_no_calibration_document_of_any_source_is_held_out_in_another() -> None:
    names = [name for name in load_catalogue().sources if name != "random"]
    everything = [text for name in names for text in load_source(name).documents]
    assert_disjoint(*split_documents(everything))


def test_the_seen_and_the_unseen_part_make_up_the_calibration_part(tmp_path: Path) -> None:
    file = tiny_source(tmp_path / "own.txt")
    whole = load_documents(str(file), "calibration")
    seen, unseen = (load_documents(f"{file}@{view}", "calibration") for view in ("seen", "unseen"))
    assert seen == tuple(text for text in whole if not is_unseen(text))
    assert unseen == tuple(text for text in whole if is_unseen(text))
    # 45 documents or so, of which about one in four is unseen
    assert 0 < len(unseen) < len(seen) < len(whole)
    hashes = {source_hash(name) for name in (str(file), f"{file}@seen", f"{file}@unseen")}
    assert len(hashes) == 3 and None not in hashes
    assert source_hash("chat@seen") is None
    assert load_source(f"{file}@seen").summary == "text of your own; the seen part"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chatt@seen", "unknown source 'chatt'. Did you mean 'chat'"),
        ("random@seen", "only real text has a part that models were trained on"),
        ("c4:1,code:1@seen", "only real text has a part"),
        ("chat@seen@seen", "only real text has a part"),
        ("chat@sene", "unknown source 'chat@sene'"),
    ],
)
def test_parts_of_nothing_are_refused(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_source(name)
    assert said in str(caught.value)


def test_a_part_of_the_calibration_text_is_never_held_out() -> None:
    with pytest.raises(InputError, match="a part of the calibration text, seen or unseen"):
        load_documents("french@seen", "held_out")
    with pytest.raises(InputError, match="a part of the calibration text, seen or unseen"):
        check_evaluation_source("french@unseen")
    assert resolve_source("chat@seen:3,math@unseen:1") == "chat@seen:0.75,math@unseen:0.25"
