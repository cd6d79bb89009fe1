"""Windows: what they are made of, how they follow the seed, and the files that hold them."""

import hashlib
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_study import END_OF_TEXT, WORDS, tiny_source
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calib_study.errors import InputError
from calib_study.sources import is_held_out, load_documents
from calib_study.windows import (
    POLICIES,
    Tokens,
    Windows,
    draw_windows,
    load_tokens,
    save_tokens,
    separator_id,
    tokenized,
)

pytestmark = pytest.mark.usefixtures("own_cache")
SEPARATOR_ID = 7  # neither the first nor the last of the vocabulary


def word_tokenizer(*, end_of_text: bool = True, eos: str | None = "<|im_end|>") -> PreTrainedTokenizerFast:
    """One token a word; `<|endoftext|>` has id 7 if it is there at all."""
    words = ["<unk>", "<|im_end|>", *WORDS]
    words.insert(SEPARATOR_ID, END_OF_TEXT if end_of_text else "zz")
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=eos)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 documents of 20 to 40 words drawn from 90, so that no two share a run of words as long as a window."""
    return str(tiny_source(tmp_path_factory.mktemp("text") / "tiny.txt"))


def document_ids(source: str, tokenizer: PreTrainedTokenizerFast, part: str = "calibration") -> list[list[int]]:
    return [[tokenizer.convert_tokens_to_ids(w) for w in text.split()] for text in load_documents(source, part)]


def starts_in(window: Tokens, document: list[int]) -> list[int]:
    """Every position at which a document holds the window."""
    n = len(window)
    return [i for i in range(len(document) - n + 1) if document[i : i + n] == window.tolist()]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("part", ["calibration", "held_out"])
def test_shape_and_type(source: str, tokenizer: PreTrainedTokenizerFast, policy: str, part: str) -> None:
    windows = draw_windows(source, tokenizer, n_samples=3, seq_len=11, seed=0, policy=policy, part=part)
    assert windows.tokens.shape == (3, 11)
    assert windows.tokens.dtype == np.int64


@pytest.mark.parametrize("seed", [0, 1])
def test_packed_windows_in_a_row_are_shuffled_documents_with_separators(
    source: str, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """So they are disjoint, and no document is used twice: all but the last are there whole, and once."""
    windows = draw_windows(source, tokenizer, n_samples=60, seq_len=17, seed=seed)
    stream = windows.tokens.flatten()
    pieces = [piece.tolist() for piece in np.split(stream, np.flatnonzero(stream == SEPARATOR_ID) + 1)]
    *whole, last = [piece for piece in pieces if piece]
    documents = document_ids(source, tokenizer)
    order = [documents.index(piece[:-1]) for piece in whole]
    assert len(set(order)) == len(order) == windows.n_documents - 1
    assert order != sorted(order)
    ends = [index for index, ids in enumerate(documents) if [*ids, SEPARATOR_ID][: len(last)] == last]
    assert ends and not set(ends) & set(order)


def test_packed_can_use_all_text_and_not_one_token_more(source: str, tokenizer: PreTrainedTokenizerFast) -> None:
    n_tokens = sum(len(ids) + 1 for ids in document_ids(source, tokenizer))  # one separator after each
    windows = draw_windows(source, tokenizer, n_samples=1, seq_len=n_tokens, seed=0)
    assert windows.n_documents == len(document_ids(source, tokenizer))
    with pytest.raises(
        InputError, match=rf"policy 'packed': 1 windows of {n_tokens + 1} .* {n_tokens:,} tokens give 0"
    ):
        draw_windows(source, tokenizer, n_samples=1, seq_len=n_tokens + 1, seed=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_document_window_is_a_slice_of_a_document_of_its_own(
    source: str, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    windows = draw_windows(source, tokenizer, n_samples=23, seq_len=19, seed=seed, policy="document")
    documents = document_ids(source, tokenizer)
    holders = [[i for i, ids in enumerate(documents) if starts_in(window, ids)] for window in windows.tokens]
    assert all(len(found) == 1 for found in holders)
    assert len({found[0] for found in holders}) == windows.n_documents == 23


def test_a_document_window_may_start_anywhere_it_fits(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    words = next(WORDS[i : i + 8] for i in range(len(WORDS)) if not is_held_out(" ".join(WORDS[i : i + 8])))
    (tmp_path / "one.txt").write_text(" ".join(words))
    ids = tokenizer.convert_tokens_to_ids(words)
    name = str(tmp_path / "one.txt")
    drawn = [draw_windows(name, tokenizer, n_samples=1, seq_len=6, seed=seed, policy="document") for seed in range(40)]
    assert {start for windows in drawn for start in starts_in(windows.tokens[0], ids)} == {0, 1, 2}  # 8 - 6 = 2


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["text", "random"])
def test_windows_follow_the_seed(source: str, tokenizer: PreTrainedTokenizerFast, policy: str, name: str) -> None:
    def draw(seed: int) -> Windows:
        chosen = source if name == "text" else name
        return draw_windows(chosen, tokenizer, n_samples=5, seq_len=13, seed=seed, policy=policy)

    assert draw(3).sha256 == draw(3).sha256
    assert draw(3).sha256 != draw(4).sha256


def test_more_windows_begin_with_the_fewer(source: str, tokenizer: PreTrainedTokenizerFast) -> None:
    fewer, more = (draw_windows(source, tokenizer, n_samples=n, seq_len=13, seed=0).tokens for n in (3, 7))
    assert np.array_equal(more[:3], fewer)


@pytest.mark.parametrize("policy", POLICIES)
def test_documents_below_the_least_length_are_left_out(
    source: str, tokenizer: PreTrainedTokenizerFast, policy: str
) -> None:
    """The source's documents have up to 40 tokens; of those that have 35, windows come from no other."""
    ids = [tuple(tokenizer(text)["input_ids"]) for text in load_documents(source, "calibration")]
    long = [document for document in ids if len(document) >= 35]
    assert 0 < len(long) < len(ids)
    draw = partial(draw_windows, source, tokenizer, seq_len=7, seed=0, policy=policy)
    windows = draw(n_samples=len(long), min_tokens=35)
    pieces = {document[i : i + 5] for document in long for i in range(len(document) - 4)}
    assert any(tuple(window[:5].tolist()) in pieces for window in windows.tokens)
    if policy == "document":
        assert all(tuple(window[:5].tolist()) in pieces for window in windows.tokens)
        with pytest.raises(InputError, match=rf"documents of 35 tokens or more: .* it has {len(long)} "):
            draw(n_samples=len(long) + 1, min_tokens=35)
    else:
        n_tokens = sum(map(len, long)) + len(long)
        with pytest.raises(InputError, match=rf"documents of 35 tokens or more: .* its {n_tokens:,} tokens"):
            draw(n_samples=n_tokens // 7 + 1, min_tokens=35)
    assert not np.array_equal(draw(n_samples=len(long)).tokens, windows.tokens)


def test_too_few_long_documents_are_counted(source: str, tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [len(ids) for ids in document_ids(source, tokenizer)]
    enough = sum(length >= 35 for length in lengths)
    draw_windows(source, tokenizer, n_samples=enough, seq_len=35, seed=0, policy="document")
    with pytest.raises(
        InputError, match=rf"part, policy 'document': {enough + 1} documents .* it has {enough} \(the longest has 40\)"
    ):
        draw_windows(source, tokenizer, n_samples=enough + 1, seq_len=35, seed=0, policy="document")
    assert 0 < enough < len(lengths) and max(lengths) == 40


def test_no_window_of_either_part_is_in_the_other(source: str, tokenizer: PreTrainedTokenizerFast) -> None:
    held_out = document_ids(source, tokenizer, "held_out")
    windows = draw_windows(source, tokenizer, n_samples=40, seq_len=15, seed=0, policy="document")
    assert not any(starts_in(window, ids) for window in windows.tokens for ids in held_out)


def test_random_tokens_cover_the_vocabulary_and_no_more(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = draw_windows("random", tokenizer, n_samples=31, seq_len=101, seed=0)
    # 3,131 draws of 93 ids: one is missing with a chance of 93 * (92 / 93) ** 3131, about 2e-13
    assert np.array_equal(np.unique(windows.tokens), np.arange(len(tokenizer)))
    assert windows.n_documents == 0
    other = draw_windows("random", tokenizer, n_samples=31, seq_len=101, seed=0, policy="document")
    assert np.array_equal(other.tokens, windows.tokens)


def test_an_unknown_policy_lists_the_two(source: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=r"unknown policy 'pack'\. Did you mean 'packed'\? Allowed: document, packed"):
        draw_windows(source, tokenizer, n_samples=1, seq_len=8, seed=0, policy="pack")


def test_the_separator_is_end_of_text_where_there_is_one() -> None:
    assert separator_id(word_tokenizer()) == SEPARATOR_ID
    assert separator_id(word_tokenizer(end_of_text=False)) == 1  # <|im_end|>
    with pytest.raises(InputError, match="use policy 'document'"):
        separator_id(word_tokenizer(end_of_text=False, eos=None))


class CountingTokenizer:
    """Passes on to a tokenizer, and counts how often it is asked to encode."""

    def __init__(self, inner: PreTrainedTokenizerFast) -> None:
        self.inner = inner
        self.backend_tokenizer = inner.backend_tokenizer
        self.calls = 0

    def __call__(self, *args: object, **options: object) -> object:
        self.calls += 1
        return self.inner(*args, **options)


DOCUMENTS = ("ba be bi", "bo", "bu ba")


def test_token_ids_are_encoded_once(tokenizer: PreTrainedTokenizerFast, own_cache: Path) -> None:
    counting = CountingTokenizer(tokenizer)
    first = tokenized(DOCUMENTS, counting)
    again = tokenized(DOCUMENTS, counting)
    assert counting.calls == 1
    # ids: <unk> <|im_end|> ba be bi bo bu <|endoftext|> ca ...
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in again] == [[2, 3, 4], [5], [6, 2]]
    tokenized(DOCUMENTS[::-1], counting)
    other = CountingTokenizer(word_tokenizer(end_of_text=False))
    tokenized(DOCUMENTS, other)
    assert (counting.calls, other.calls) == (2, 1)
    assert len(list((own_cache / "tokens").iterdir())) == 3


@pytest.mark.parametrize("damage", ["empty", "half", "one byte", "not an archive", "other arrays"])
def test_a_damaged_token_cache_is_made_again(tokenizer: PreTrainedTokenizerFast, own_cache: Path, damage: str) -> None:
    wanted = [ids.tolist() for ids in tokenized(DOCUMENTS, tokenizer)]
    (file,) = (own_cache / "tokens").iterdir()
    whole = file.read_bytes()
    at = whole.index(np.array([2, 3, 4, 5]).tobytes())
    if damage == "other arrays":
        np.savez(file, other=np.zeros(3))
    else:
        spoilt = {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "one byte": whole[:at] + b"\x09" + whole[at + 1 :],
            "not an archive": b"damaged" * 40,
        }
        file.write_bytes(spoilt[damage])
    assert [ids.tolist() for ids in tokenized(DOCUMENTS, tokenizer)] == wanted
    assert file.read_bytes() == whole or damage == "other arrays"


def test_the_hash_is_of_the_shape_and_the_ids() -> None:
    ids = (5, 3, 2, 7, 0, 11)
    wanted = hashlib.sha256(b"2x3:" + struct.pack("<6q", *ids)).hexdigest()
    assert Windows(np.array(ids).reshape(2, 3), 1).sha256 == wanted
    assert Windows(np.array(ids).reshape(2, 3).astype(">i8"), 0).sha256 == wanted
    assert Windows(np.array(ids).reshape(3, 2), 1).sha256 != wanted


def test_saved_tokens_come_back(source: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    windows = draw_windows(source, tokenizer, n_samples=3, seq_len=11, seed=0)
    file = tmp_path / "new" / "tokens.npy"
    save_tokens(windows, file)
    again = load_tokens(file, vocab_size=len(tokenizer), n_samples=3, seq_len=11)
    assert np.array_equal(again.tokens, windows.tokens)
    assert again.sha256 == windows.sha256
    assert [path.name for path in file.parent.iterdir()] == ["tokens.npy"]


def saved(folder: Path, array: np.ndarray) -> Path:
    file = folder / "tokens.npy"
    np.save(file, array)
    return file


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5), np.int32), r"expected int64 \(n_samples, seq_len\), got int32 \(3, 5\)"),
        (np.zeros((3, 5), ">i8"), r"got >i8 \(3, 5\)"),
        (np.zeros((3, 5)), r"got float64 \(3, 5\)"),
        (np.zeros(15, np.int64), r"got int64 \(15,\)"),
        (np.zeros((1, 3, 5), np.int64), r"got int64 \(1, 3, 5\)"),
        (np.zeros((0, 5), np.int64), r"shape \(0, 5\)"),
        (np.full((3, 5), -1), "ids from -1 to -1, but the model's vocabulary has 0 to 96. .* another tokenizer"),
        (np.full((3, 5), 97), "ids from 97 to 97"),
    ],
)
def test_arrays_that_are_not_token_ids_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_tokens(saved(tmp_path, array), vocab_size=97)


def test_the_last_id_of_the_vocabulary_is_allowed(tmp_path: Path) -> None:
    assert load_tokens(saved(tmp_path, np.full((3, 5), 96)), vocab_size=97).tokens.max() == 96


@pytest.mark.parametrize("asked", [{"n_samples": 4}, {"seq_len": 4}, {"n_samples": 5, "seq_len": 3}])
def test_tokens_of_another_shape_than_asked_are_refused(tmp_path: Path, asked: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"shape \(3, 5\), but \(\d, \d\) was asked"):
        load_tokens(saved(tmp_path, np.zeros((3, 5), np.int64)), vocab_size=97, **asked)


def test_files_that_are_not_arrays_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, np.zeros((3, 5), np.int64)).read_bytes()
    np.savez(tmp_path / "archive.npz", tokens=np.zeros((3, 5), np.int64))
    contents = {
        "empty": b"",
        "text": b"1 2 3\n",
        "half": whole[:-40],
        "archive": (tmp_path / "archive.npz").read_bytes(),
        "header": whole.replace(b"}", b" "),
        "huge": whole.replace(b"(3, 5), }" + b" " * 13, b"(3, 50000000000000), }"),  # as long as before
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: not a \.npy file of numbers"):
            load_tokens(tmp_path / name, vocab_size=97)
    for absent in (tmp_path / "nothing.npy", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            load_tokens(absent, vocab_size=97)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    victim = tmp_path / "victim"

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (victim,))

    file = tmp_path / "tokens.npy"
    np.save(file, np.array([[Malicious()]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"not a \.npy file of numbers"):
        load_tokens(file, vocab_size=97)
    assert not victim.exists()
