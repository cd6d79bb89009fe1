"""Each format by hand, and the files a user may give."""

import gzip
import json
from pathlib import Path

import pytest

from calib_study.errors import DataError, InputError
from calib_study.formats import path_documents, read_documents


def read(content: str | bytes, written_as: str) -> list[str]:
    data = content.encode() if isinstance(content, str) else content
    return read_documents(data, written_as, "toy: member")  # type: ignore[arg-type]


def test_lines_end_at_line_feeds_only() -> None:
    assert read("one\u2028still one\ntwo\x0bstill two\n", "lines") == ["one\u2028still one", "two\x0bstill two", ""]


def test_jsonl() -> None:
    assert read('{"text": "a\\nb"}\n\n{"text": "c", "id": 1}\n', "jsonl") == ["a\nb", "c"]


def test_wikiextractor_articles_lose_the_wrapper_and_html_entities() -> None:
    text = (
        '<doc id="1" url="u" title="A &amp; B">\nA &amp; B\n\nFirst.\nSecond.\n\n</doc>\n'
        '<doc id="2" url="u" title="Stub">\nStub\n\n\n\n</doc>\n'
    )
    assert read(text, "wikiextractor") == ["A & B\n\nFirst.\nSecond.\n", "Stub\n\n\n"]


def test_code_is_what_stands_between_a_pair_of_marks() -> None:
    text = (
        "loose snippet\n"
        "// ===== BEGIN python =====\ndef f():\n    pass\n\n// ===== END =====\n\n"
        "// ===== BEGIN c++ =====\nint x;\n// ===== END =====\n"
        "// ===== BEGIN css =====\n/* cut o"
    )
    assert read(text, "marked-code") == ["def f():\n    pass\n\n", "int x;\n"]


def test_instructions_leave_empty_inputs_out() -> None:
    items = [
        {"instruction": "Add.", "input": "1, 2", "output": "3\n"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
    ]
    assert read(json.dumps(items), "alpaca") == ["Add.\n\n1, 2\n\n3", "Greet.\n\nHello."]


def test_chats_are_messages_one_a_line() -> None:
    turns = [[{"text": "hi "}, {"text": " "}, {"text": "you?"}], [{"text": "fine"}]]
    assert read(json.dumps({"x": {"messages": turns, "prompt": "p"}}), "chitchat") == ["hi\nyou?\nfine"]


def test_problems_are_gzipped_requests() -> None:
    line = json.dumps({"doc": {"problem": "1+1?", "solution": "2", "query": "q"}, "request": {}})
    assert read(gzip.compress(f"{line}\n".encode()), "problems") == ["1+1?\n\n2"]


def test_end_of_text_and_extracts() -> None:
    assert read("one\n<|endoftext|>\ntwo", "end-of-text") == ["one\n", "\ntwo"]
    assert read('{"T": {"title": "T", "extract": "e"}}', "extracts") == ["e"]


@pytest.mark.parametrize(
    ("content", "written_as"),
    [
        (b"\xff", "lines"),
        (b"[", "alpaca"),
        (b'[{"instruction": "a"}]', "alpaca"),
        (b"[1]", "chitchat"),
        (b"not gzip", "problems"),
        (b'{"T": 1}', "extracts"),
        (b'{"txt": "a"}', "jsonl"),
    ],
)
def test_content_that_is_written_otherwise_is_refused(content: bytes, written_as: str) -> None:
    with pytest.raises(DataError, match=f"toy: member is not written as '{written_as}'"):
        read(content, written_as)


def test_a_text_file_is_cut_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\nstill one\r\n \t\r\ntwo\n\n\n\nthree\n")
    assert [text.strip() for text in path_documents(path)] == ["one\nstill one", "two", "three"]
    path.write_text("a line\nanother\n")
    assert path_documents(path) == ["a line\nanother\n"]


def test_a_folder_is_one_document_a_file_in_the_order_of_paths(tmp_path: Path) -> None:
    for name, text in {"b.txt": "B\n\nb", "a.md": "A", "sub/c.txt": "C", "d.py": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert path_documents(tmp_path) == ["A", "B\n\nb", "C"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 3: not JSON"),
        ('["a"]', 'line 3: expected an object with a string "text"'),
        ('{"txt": "a"}', 'line 3: expected an object with a string "text", got \'{"txt": "a"}\''),
        ('{"text": 1}', "line 3: expected an object"),
    ],
)
def test_a_bad_line_of_a_jsonl_file_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n')
    with pytest.raises(InputError) as caught:
        path_documents(path)
    assert f"{path}, {said}" in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 text: byte 3"):
        path_documents(path)
