"""Generated sources as sources: by name and by path, whole for calibration, refused for evaluation."""

import json
from pathlib import Path

import pytest

from calib_study import generated
from calib_study.errors import DataError, InputError
from calib_study.generated import (
    DOCUMENTS,
    MANIFEST,
    check_target,
    document_lines,
    generated_folder,
    generated_home,
    generated_names,
    generated_summaries,
    named_folder,
    read_generated,
    write_generated,
)
from calib_study.manifests import Manifest, Synthesis, TextFacts, checked_request
from calib_study.preflight import check_evaluation_source, evaluation_of
from calib_study.sources import (
    content_hash,
    is_held_out,
    load_documents,
    load_source,
    resolve_source,
    source_hash,
)

pytestmark = pytest.mark.usefixtures("own_cache")
TEXTS = ["a", "f", "one", "three", "c"]  # by their hashes, "f" and "three" would be held out


def request(n_texts: int = 5) -> Synthesis:
    return checked_request(Synthesis, model="m", prefix_source="c4", n_texts=n_texts, new_tokens=3)


def make(folder: Path, texts: list[str] = TEXTS) -> Manifest:
    facts = tuple(TextFacts(index=index, n_scored=3, perplexity=2.0 + index) for index in range(len(texts)))
    return write_generated(
        folder,
        document_lines(texts, [[1, index] for index in range(len(texts))]),
        request=request(),
        counts={"asked": len(texts), "kept": len(texts)},
        texts=facts,
        environment={},
        finished="now",
    )


def test_all_of_it_is_for_calibration() -> None:
    make(named_folder("mine"))
    assert any(map(is_held_out, TEXTS))
    assert load_documents("selfgen:mine", "calibration") == tuple(TEXTS)
    assert source_hash("selfgen:mine") == content_hash(TEXTS)
    assert load_source("selfgen:mine").summary == "text that m wrote after 2 tokens of c4"
    assert "c4" in resolve_source("selfgen:mine:0.5,c4:0.5")
    with pytest.raises(InputError, match="was generated, which can serve for calibration, not for evaluation"):
        load_documents("selfgen:mine", "held_out")


def test_a_folder_elsewhere_is_the_same_source_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "given")
    make(named_folder("mine"))
    monkeypatch.chdir(tmp_path)
    assert resolve_source("given") == str(tmp_path / "given")
    for name in ("given", str(tmp_path / "given")):
        assert load_documents(name, "calibration") == tuple(TEXTS)
        assert source_hash(name) == source_hash("selfgen:mine")
        with pytest.raises(InputError, match="not for evaluation"):
            check_evaluation_source(name)
    with pytest.raises(InputError, match="not for evaluation"):
        evaluation_of(["selfgen:mine"])


def test_a_name_of_the_catalogue_stays_one_whatever_lies_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "c4")
    monkeypatch.chdir(tmp_path)
    check_evaluation_source("c4")
    assert generated_folder(resolve_source("c4")) is None


def test_a_published_source_goes_before_one_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "published_home", lambda: tmp_path / "published")
    make(named_folder("mine"), ["a"])
    make(tmp_path / "published" / "mine", ["one", "c"])
    make(tmp_path / "published" / "other")
    assert load_documents("selfgen:mine", "calibration") == ("one", "c")
    assert generated_names() == ["selfgen:mine", "selfgen:other"]
    assert named_folder("new") == generated_home() / "new"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("selfgen:minr", "unknown generated source 'selfgen:minr'. Did you mean 'selfgen:mine'"),
        ("selfgen:", "use letters, digits"),
        ("selfgen:../x", "use letters, digits"),
        ("selfgen:.parts", "use letters, digits"),
        ("mine", "unknown source 'mine'."),
    ],
)
def test_unknown_names_are_refused(name: str, said: str) -> None:
    make(named_folder("mine"))
    with pytest.raises(InputError) as caught:
        resolve_source(name)
    assert said in str(caught.value)


def test_names_are_listed_without_parts_and_with_what_is_damaged() -> None:
    assert generated_names() == []
    make(named_folder("b"))
    make(named_folder("a"))
    make(generated_home() / ".parts" / "x")
    (named_folder("b") / MANIFEST).write_text("{}")
    assert generated_names() == ["selfgen:a", "selfgen:b"]
    assert [text.partition(":")[0] for _, text in generated_summaries()] == [
        "text that m wrote after 2 tokens of c4",
        "damaged",
    ]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (DOCUMENTS, '{"text": "other"}\n', "is not the file that manifest.json names"),
        (MANIFEST, "{}", "is no manifest:\n  - request"),
        (MANIFEST, "no JSON", "is no manifest"),
    ],
)
def test_damaged_sources_are_refused(file: str, content: str, said: str) -> None:
    make(named_folder("mine"))
    (named_folder("mine") / file).write_text(content)
    with pytest.raises(DataError) as caught:
        load_documents("selfgen:mine", "calibration")
    assert said in str(caught.value)


def test_files_hold_texts_with_their_ids_and_are_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make(folder, ["one\nline", "ü"])
    lines = (folder / DOCUMENTS).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "one\nline", "ids": [1, 0]}, {"text": "ü", "ids": [1, 1]}]
    manifest = make(folder, ["two"])
    assert read_generated(folder) == (manifest, ["two"])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["b"]


def test_a_target_is_free_or_holds_the_same(tmp_path: Path) -> None:
    assert not check_target(tmp_path / "new", request())
    (tmp_path / "empty").mkdir()
    assert not check_target(tmp_path / "empty", request())
    make(tmp_path / "made")
    assert check_target(tmp_path / "made", request())
    with pytest.raises(InputError, match="holds text that was generated otherwise; choose another name"):
        check_target(tmp_path / "made", request(n_texts=6))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; name a directory"):
        check_target(tmp_path / "file", request())
    with pytest.raises(InputError, match=r"is a file\. Choose a folder you can write to"):
        check_target(tmp_path / "file" / "below", request())
    with pytest.raises(InputError, match="holds other files"):
        check_target(tmp_path, request())
    (tmp_path / "made" / DOCUMENTS).write_text("")
    with pytest.raises(DataError, match="was changed"):
        check_target(tmp_path / "made", request())
