"""Perplexity: by hand on models whose probabilities are known, then the properties that any model must have."""

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from calib_study import perplexity as module
from calib_study.errors import InputError, NumericalError
from calib_study.model_files import resolve_model
from calib_study.models import load_tokenizer
from calib_study.perplexity import (
    Perplexity,
    WindowMean,
    bits_per_byte,
    mean_over_windows,
    padded,
    perplexity,
    scored_bytes,
)
from calib_study.sources import load_documents
from calib_study.study import Laboratory
from calib_study.windows import separator_id, tokenized


class Bigram(nn.Module):
    """The next token depends on the last one alone, by a table (d_vocab, d_vocab) of logits."""

    def __init__(self, table: list[list[float]] | torch.Tensor) -> None:
        super().__init__()
        self.table = torch.as_tensor(table)
        self.device = torch.device("cpu")
        self.calls: list[tuple[int, ...]] = []

    def forward(self, tokens: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.calls.append(tuple(tokens.shape))
        return SimpleNamespace(logits=self.table[tokens])


@pytest.mark.parametrize("d_vocab", [2, 7, 97])
def test_a_uniform_model_has_the_size_of_its_vocabulary(d_vocab: int) -> None:
    tokens = np.random.default_rng(0).integers(0, d_vocab, (3, 11))
    score = perplexity(Bigram(torch.full((d_vocab, d_vocab), 1.7)), tokens)
    assert score.value == pytest.approx(d_vocab, rel=1e-6)
    assert score.nll == pytest.approx(math.log(d_vocab), rel=1e-6)
    assert score.nll_stderr == pytest.approx(0, abs=1e-6)


def test_a_bigram_model_by_hand() -> None:
    # After 0: 0 with 1/4, 1 with 3/4. After 1: 0 with 1/2, 1 with 1/2. Logits are their logarithms, plus any constant.
    model = Bigram([[math.log(1) + 5, math.log(3) + 5], [math.log(2) - 3, math.log(2) - 3]])
    # Window 0 1 1 0: the first 0 has no context; then 3/4, 1/2, 1/2: mean -ln = (ln 4/3 + 2 ln 2) / 3.
    # Window 1 0 0 0: 1/2, 1/4, 1/4: mean -ln = (ln 2 + 2 ln 4) / 3 = 5/3 ln 2.
    first, second = (math.log(4 / 3) + 2 * math.log(2)) / 3, 5 / 3 * math.log(2)
    score = perplexity(model, np.array([[0, 1, 1, 0], [1, 0, 0, 0]]))
    assert score.by_window == pytest.approx((first, second), rel=1e-6)
    assert score.nll == pytest.approx((first + second) / 2, rel=1e-6)
    # The geometric mean of the six inverse probabilities: (4/3 * 2 * 2 * 2 * 4 * 4) ** (1 / 6)
    assert score.value == pytest.approx((4 / 3 * 128) ** (1 / 6), rel=1e-6)
    # Two values a and b: their standard deviation (n - 1) is |a - b| / sqrt(2), that of the mean |a - b| / 2.
    assert score.nll_stderr == pytest.approx(abs(first - second) / 2, rel=1e-6)
    assert score.n_tokens == 6


def test_the_first_token_is_not_scored_and_the_last_predicts_nothing() -> None:
    """Token 4 is impossible after anything, so a window may begin with it; and 3 leads to a certain 0, if anywhere."""
    table = torch.zeros(5, 5)
    table[:, 4] = -1e4
    table[3, 1:] = -1e4
    score = perplexity(Bigram(table), np.array([[4, 0, 1, 3]]))
    assert score.value == pytest.approx(4, rel=1e-6)
    assert score.n_tokens == 3


def test_the_standard_error_is_over_windows() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (5, 3))
    score = perplexity(Bigram(torch.from_numpy(rng.normal(size=(7, 7)))), tokens)
    mean = sum(score.by_window) / 5
    variance = sum((value - mean) ** 2 for value in score.by_window) / (5 - 1)
    assert score.nll == pytest.approx(mean)
    assert score.nll_stderr == pytest.approx(math.sqrt(variance / 5))
    assert perplexity(Bigram(torch.eye(7)), tokens[:1]).nll_stderr == 0


@settings(deadline=None, max_examples=20)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_a_constant_added_to_all_logits_changes_nothing(shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, tokens = torch.from_numpy(rng.normal(size=(7, 7))).float(), rng.integers(0, 7, (3, 5))
    assert perplexity(Bigram(table + shift), tokens).nll == pytest.approx(
        perplexity(Bigram(table), tokens).nll, rel=1e-4
    )


@pytest.mark.tiny
def test_windows_are_scored_each_by_itself_whatever_the_batch(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (5, 11))
    with torch.no_grad():
        log_p = tiny_model(torch.from_numpy(tokens)).logits[:, :-1].double().log_softmax(-1)
    wanted = -log_p.gather(2, torch.from_numpy(tokens)[:, 1:, None]).squeeze(2).mean(1)
    for per_call in (1, 22, 33, 1024):
        monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
        score = perplexity(tiny_model, tokens)
        assert_close(torch.tensor(score.by_window, dtype=torch.float64), wanted, rtol=1e-5, atol=0)
        assert score.n_tokens == 5 * 10
    assert perplexity(tiny_model, tokens[3:]).by_window == pytest.approx(score.by_window[3:], rel=1e-5)


@pytest.mark.parametrize(("per_call", "calls"), [(1, [1] * 5), (11, [1] * 5), (22, [2, 2, 1]), (1024, [5])])
def test_a_call_holds_as_many_windows_as_fit(monkeypatch: pytest.MonkeyPatch, per_call: int, calls: list[int]) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
    model = Bigram(torch.eye(7))
    perplexity(model, np.zeros((5, 11), np.int64))
    assert model.calls == [(n, 11) for n in calls]


def test_log_probabilities_are_float32_for_a_bfloat16_model() -> None:
    """bfloat16 has 8 bits: ln 97 = 4.57 lies between its 4.5625 and 4.59375, which are 0.2 % and 0.4 % away."""
    table = torch.zeros(97, 97, dtype=torch.bfloat16)
    tokens = np.arange(11)[None]
    assert abs(functional.cross_entropy(table[:10], torch.arange(10)).item() / math.log(97) - 1) > 1e-3
    assert perplexity(Bigram(table), tokens).nll == pytest.approx(math.log(97), rel=1e-6)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_what_is_not_a_number_is_an_error(spoilt: float) -> None:
    table = torch.zeros(7, 7)
    table[3, 2] = spoilt
    tokens = np.array([[0, 1, 2, 0], [0, 3, 1, 0]])
    with pytest.raises(NumericalError, match="log-likelihoods are not finite"):
        perplexity(Bigram(table), tokens)
    assert perplexity(Bigram(table), tokens[:1]).value == pytest.approx(7)


def test_a_perplexity_too_large_for_a_float_is_an_error() -> None:
    table = torch.zeros(7, 7)
    table[:, 0] = 800.0  # the others have probability exp(-800), and 1 / that is no float
    with pytest.raises(NumericalError, match="below -700"):
        perplexity(Bigram(table), np.ones((2, 5), np.int64))


def test_no_gradient_is_kept_and_windows_are_not_changed(tiny_model: LlamaForCausalLM) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (2, 5))
    before = tokens.copy()
    perplexity(tiny_model, tokens)
    assert np.array_equal(tokens, before)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


# ------------------------------------------------------------------ what published records rest on


@torch.no_grad()
def one_window_at_a_time(model: LlamaForCausalLM, tokens: np.ndarray) -> tuple[float, float, tuple[float, ...]]:
    """The definition without masks, as published records were computed: nll, its standard error, and by window."""
    means = []
    for batch in torch.from_numpy(tokens).split(max(1, module.TOKENS_PER_CALL // tokens.shape[1])):
        for row, targets in zip(model(batch, use_cache=False).logits, batch, strict=True):
            means.append(functional.cross_entropy(row[:-1].float(), targets[1:]).item())
    spread = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return float(np.mean(means)), spread, tuple(means)


@pytest.mark.parametrize("n_windows", [1, 5])
@pytest.mark.parametrize("per_call", [1, 22, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_windows_give_what_they_gave_before_masks_bit_by_bit(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, n_windows: int, per_call: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
    tokens = np.random.default_rng(0).integers(0, 97, (n_windows, 11))
    score = perplexity(tiny_model.to(dtype), tokens)
    assert (score.nll, score.nll_stderr, score.by_window) == one_window_at_a_time(tiny_model, tokens)
    assert perplexity(tiny_model, tokens, np.ones(tokens.shape, bool)) == score


@pytest.mark.real
def test_the_default_model_gives_what_it_gave_before_masks_bit_by_bit(smollm: Laboratory) -> None:
    smollm.dense.restore()
    tokens = np.random.default_rng(0).integers(0, 49152, (3, 31))
    score = perplexity(smollm.dense.model, tokens)
    assert (score.nll, score.nll_stderr, score.by_window) == one_window_at_a_time(smollm.dense.model, tokens)


# ------------------------------------------------------------------ means over windows


def test_a_weighted_mean_and_its_error_by_hand() -> None:
    # (2 * 1 + 1 * 4) / 3 = 2. Squares: (2 * (1 - 2))^2 + (1 * (4 - 2))^2 = 8; times 2 / (2 - 1), root 4, over 3.
    assert mean_over_windows([1.0, 4.0], [2, 1]) == WindowMean(2.0, pytest.approx(4 / 3), (1.0, 4.0))
    # Equal sizes: (1 + 4) / 2 and |1 - 4| / 2.
    assert mean_over_windows([1.0, 4.0], [7, 7]) == WindowMean(2.5, pytest.approx(1.5), (1.0, 4.0))
    assert mean_over_windows([3.0], [7]) == WindowMean(3.0, 0.0, (3.0,))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_a_weighted_error_is_near_the_jackknifes_and_scales(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values, sizes = rng.normal(5, 1, 97), rng.integers(50, 200, 97)
    found = mean_over_windows(values, sizes)
    left_out = np.array([np.average(np.delete(values, i), weights=np.delete(sizes, i)) for i in range(97)])
    assert found.value == pytest.approx(np.average(values, weights=sizes), rel=1e-12)
    assert found.stderr == pytest.approx(np.sqrt(96 / 97 * np.square(left_out - left_out.mean()).sum()), rel=0.03)
    assert mean_over_windows(scale * values, sizes * 3).stderr == pytest.approx(scale * found.stderr, rel=1e-9)


def test_the_mean_of_windows_own_perplexities_by_hand() -> None:
    model = Bigram([[math.log(1), math.log(3)], [math.log(2), math.log(2)]])
    # As above: the windows' inverse probabilities are 4/3, 2, 2 and 2, 4, 4; their geometric means are cube roots.
    score = perplexity(model, np.array([[0, 1, 1, 0], [1, 0, 0, 0]]))
    first, second = (16 / 3) ** (1 / 3), 32 ** (1 / 3)
    assert score.mean_window_perplexity.by_window == pytest.approx((first, second), rel=1e-6)
    assert score.mean_window_perplexity.value == pytest.approx((first + second) / 2, rel=1e-6)
    assert score.mean_window_perplexity.stderr == pytest.approx(abs(first - second) / 2, rel=1e-6)
    assert score.mean_window_perplexity.value > score.value


def test_each_window_counts_once_in_the_mean_of_perplexities_and_by_its_length_in_that_of_the_corpus() -> None:
    table = torch.zeros(4, 4)
    table[1, 2:] = -1e4  # after 1 come 0 and 1 alone: perplexity 2; after anything else 4
    tokens, scored = padded([np.array([1, 1, 1, 1, 1, 1]), np.array([0, 2])], seq_len=6)
    score = perplexity(Bigram(table), tokens, scored)
    assert score.mean_window_perplexity.value == pytest.approx((2 + 4) / 2, rel=1e-6)
    assert score.value == pytest.approx((2**5 * 4) ** (1 / 6), rel=1e-6)


def test_a_window_whose_own_perplexity_is_too_large_is_an_error() -> None:
    table = torch.zeros(7, 7)
    table[1, 0] = 800.0
    score = perplexity(Bigram(table), np.array([[1, 1, 1], [2, 2, 2]]))
    assert math.isfinite(score.value)
    with pytest.raises(NumericalError, match="too large for a float"):
        score.mean_window_perplexity  # noqa: B018


# ------------------------------------------------------------------ documents of unequal lengths, and masks


def random_documents(n: int = 7, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 97, rng.integers(2, 19)) for _ in range(n)]


def test_padding_by_hand() -> None:
    tokens, scored = padded([np.array([5, 6]), np.array([7, 8, 9, 1]), np.array([4, 3, 2])], seq_len=3)
    assert tokens.tolist() == [[5, 6, 0], [7, 8, 9], [4, 3, 2]]
    assert scored.tolist() == [[True, True, False], [True] * 3, [True] * 3]
    assert tokens.dtype == np.int64


@pytest.mark.parametrize(
    ("documents", "seq_len", "message"),
    [([[1, 2], [3]], 5, "document 1 has 1"), ([[1, 2]], 1, "seq_len=1"), ([], 5, "0 documents")],
)
def test_what_cannot_be_padded_is_an_error(documents: list[list[int]], seq_len: int, message: str) -> None:
    with pytest.raises(InputError, match=f"two tokens or more.*{message}"):
        padded([np.array(ids) for ids in documents], seq_len=seq_len)


@pytest.mark.parametrize("per_call", [1, 22, 1024])
def test_a_document_scores_as_it_does_alone(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, per_call: int
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
    documents = random_documents()
    tokens, scored = padded(documents, seq_len=17)
    score = perplexity(tiny_model, tokens, scored)
    alone = [perplexity(tiny_model, ids[None, :17]) for ids in documents]
    assert score.by_window == pytest.approx([one.nll for one in alone], rel=1e-5)
    assert score.tokens_by_window == tuple(one.n_tokens for one in alone)
    total = sum(one.nll * one.n_tokens for one in alone)
    assert score.n_tokens == sum(one.n_tokens for one in alone)
    assert score.nll == pytest.approx(total / score.n_tokens, rel=1e-5)


def test_what_stands_in_the_padding_does_not_matter(tiny_model: LlamaForCausalLM) -> None:
    tokens, scored = padded(random_documents(), seq_len=64)
    other = np.where(scored, tokens, 96)
    assert perplexity(tiny_model, other, scored) == perplexity(tiny_model, tokens, scored)


def test_padding_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longest first, and each call as long as its longest: 11, then 5 and 4, then 2."""
    monkeypatch.setattr(module, "TOKENS_PER_CALL", 11)
    model = Bigram(torch.eye(7))
    lengths = [4, 11, 2, 5]
    tokens, scored = padded([np.full(length, length % 7) for length in lengths], seq_len=20)
    score = perplexity(model, tokens, scored)
    assert model.calls == [(1, 11), (2, 5), (1, 2)]
    assert score.tokens_by_window == (3, 10, 1, 4)


def test_masked_tokens_are_context_but_are_not_scored() -> None:
    # After 0 everything is as likely (4), after 1 only 0 and 1 (2), after 2 only 2 (1).
    table = torch.zeros(4, 4)
    table[1, 2:] = -1e4
    table[2, [0, 1, 3]] = -1e4
    tokens = np.array([[0, 1, 0, 2, 2, 0]])  # the last is impossible, and masked
    scored = np.array([[True, False, True, True, True, False]])
    # 0 after 1: 2. 2 after 0: 4. 2 after 2: 1. The first is never scored, whatever the mask says.
    score = perplexity(Bigram(table), tokens, scored)
    assert score.value == pytest.approx((2 * 4 * 1) ** (1 / 3), rel=1e-6)
    assert (score.n_tokens, score.tokens_by_window) == (3, (3,))
    assert scored[0, 0]  # the caller's mask is not changed


def test_a_mask_that_does_not_fit_is_an_error() -> None:
    model, tokens = Bigram(torch.eye(7)), np.zeros((2, 5), np.int64)
    with pytest.raises(InputError, match=r"shape \(2, 4\), the windows have \(2, 5\)"):
        perplexity(model, tokens, np.ones((2, 4), bool))
    scored = np.ones((2, 5), bool)
    scored[1, 1:] = False
    with pytest.raises(InputError, match="window 1 of 2 has no token to score"):
        perplexity(model, tokens, scored)
    assert model.calls == []


# ------------------------------------------------------------------ bits per byte


@cache
def byte_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: a token for each of the 256 bytes, one for each merge, and an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: index for index, text in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's kind: a few pieces, a leading space as ▁, and a token for each byte of any other character."""
    pieces = ["<unk>", "▁", "▁a", "b", "bb", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {text: index for index, text in enumerate(pieces)}
    merges = [("▁", "a"), ("b", "b")]
    tokenizer = Tokenizer(models.BPE({"a": 999, **vocabulary}, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def ids_of(text: str, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])[None]


def test_bits_per_byte_by_hand() -> None:
    tokenizer = byte_tokenizer(("a", "b"))
    tokens = ids_of("cababéc", tokenizer)
    assert tokens.shape == (1, 6)  # c | ab | ab | two bytes of é | c
    score = perplexity(Bigram(torch.zeros(258, 258)), tokens)
    # 5 tokens of log2(258) bits for 2 + 2 + 2 + 1 = 7 bytes
    bits = bits_per_byte(score, tokens, tokenizer)
    assert bits.value == pytest.approx(5 * math.log2(258) / 7, rel=1e-6)
    assert bits.by_window == (bits.value,)


def test_windows_count_by_their_bytes() -> None:
    tokenizer = byte_tokenizer(("a", "b"))
    tokens = np.concatenate([ids_of("cabab", tokenizer), ids_of("cca", tokenizer)])
    score = perplexity(Bigram(torch.zeros(258, 258)), tokens)
    # 2 tokens for 4 bytes, 2 for 2: log2(258) times 1/2 and 1, together 4 / 6.
    bits = bits_per_byte(score, tokens, tokenizer)
    assert np.divide(bits.by_window, math.log2(258)) == pytest.approx([1 / 2, 1], rel=1e-6)
    assert bits.value == pytest.approx(4 / 6 * math.log2(258), rel=1e-6)
    assert bits.stderr > 0


def test_bits_per_byte_do_not_depend_on_how_text_is_cut_into_tokens() -> None:
    """The same total of nats for the same text, in 12 tokens or in 7."""
    fine, coarse = byte_tokenizer(), byte_tokenizer(("a", "b"))
    text = "c" + "ab" * 5 + "c"
    found = []
    for tokenizer in (fine, coarse):
        tokens = ids_of(text, tokenizer)
        n = tokens.size - 1
        score = Perplexity(22 / n, 0.0, n, (22 / n,), (n,))
        found.append(bits_per_byte(score, tokens, tokenizer).value)
    assert found == pytest.approx([2 / math.log(2)] * 2, rel=1e-12)  # 22 nats for 11 bytes


@settings(deadline=None, max_examples=30)
@given(text=st.text(min_size=2), cut=st.integers(0, 10))
def test_byte_level_tokens_are_counted_exactly_even_inside_characters(text: str, cut: int) -> None:
    tokenizer = byte_tokenizer()
    tokens = ids_of(text, tokenizer)[:, min(cut, len(text.encode()) - 2) :]
    assert scored_bytes(tokens, tokenizer).tolist() == [tokens.size - 1]


def test_special_tokens_are_no_text() -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    tokens = np.concatenate([ids_of("abc", tokenizer), [[end]], ids_of("é", tokenizer)], axis=1)
    assert scored_bytes(tokens, tokenizer).tolist() == [4]  # b, c and the two bytes of é
    scored = np.array([[True, True, False, True, True, False]])
    assert scored_bytes(tokens, tokenizer, scored).tolist() == [2]  # b and the first byte of é


@pytest.mark.parametrize("text", ["a bb a bbb", "b a é a 日本 b", "bé"])
def test_pieces_are_counted_as_the_text_they_add(text: str) -> None:
    tokenizer = piece_tokenizer()
    tokens = ids_of(text, tokenizer)
    assert tokenizer.decode(tokens[0]) == text
    first = len(tokenizer.decode(tokens[0, :1]).encode())
    assert scored_bytes(tokens, tokenizer).tolist() == [len(text.encode()) - first]
    each = [scored_bytes(tokens, tokenizer, np.arange(tokens.size)[None] == i)[0] for i in range(1, tokens.size)]
    assert sum(each) == len(text.encode()) - first


def test_words_are_counted_with_the_spaces_between_them(tiny_files: tuple[Path, Path]) -> None:
    tokenizer = load_tokenizer(resolve_model(str(tiny_files[0])))
    tokens = ids_of("ba be bi", tokenizer)
    assert scored_bytes(tokens, tokenizer).tolist() == [len(" be bi")]


@pytest.mark.real
@pytest.mark.parametrize("source", ["c4", "code"])
def test_the_bytes_of_tokens_are_those_of_the_documents(smollm: Laboratory, source: str) -> None:
    documents = load_documents(source, "held_out")
    separator = np.array([separator_id(smollm.dense.tokenizer)])
    ids = [np.concatenate([separator, found]) for found in tokenized(documents, smollm.dense.tokenizer)]
    tokens, scored = padded(ids, seq_len=max(map(len, ids)))
    found = scored_bytes(tokens, smollm.dense.tokenizer, scored)
    assert found.tolist() == [len(document.encode()) for document in documents]


def test_bits_per_byte_need_the_scores_own_tokens_and_some_text() -> None:
    tokenizer = byte_tokenizer()
    model = Bigram(torch.zeros(258, 258))
    tokens = ids_of("abcd", tokenizer)
    with pytest.raises(InputError, match="score is of 3 tokens, but 2 are given"):
        bits_per_byte(perplexity(model, tokens), tokens[:, :3], tokenizer)
    ends = np.full((1, 3), tokenizer.eos_token_id)
    with pytest.raises(InputError, match="window 0 decodes to no text"):
        bits_per_byte(perplexity(model, ends), ends, tokenizer)
