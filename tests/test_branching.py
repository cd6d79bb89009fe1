"""Scoring answers as branches: trees by hand and by brute force, then every answer beside the harness's own HFLM.

Random words of a tiny tokenizer stand for text. Rows of branches have masks and positions of their own, so each family
of models is tried; the windows of attention that some have are 8 tokens, shorter than most sequences here.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from numpy.testing import assert_allclose, assert_array_equal
from test_families import FAMILIES, family_model
from tiny_study import WORDS
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from calib_study.branching import LONGEST_ROW, BranchingLM, Row, batches, n_shared, plan_rows, row_time
from calib_study.errors import InputError, NumericalError
from calib_study.matmul import select_float32_matmul
from calib_study.study import Laboratory
from calib_study.task_prompts import prepare

Answers = list[tuple[float, bool]]
Pair = tuple[str, str]
CONTEXT = 64  # positions of the tiny models
WINDOWED = {"mistral", "gemma2", "gemma3_text"}  # attention over the last 8 tokens
WITHOUT_POSITIONS = {"mpt", "bloom"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small run three times faster on one thread than on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tokenizer(tiny_files: tuple[Path, Path]) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(tiny_files[0])
    return loaded


@pytest.fixture
def model(tiny_files: tuple[Path, Path]) -> LlamaForCausalLM:
    loaded: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(tiny_files[0])
    return loaded.eval()


def asked(pairs: Sequence[Pair]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


def words(n: int, rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def questions(seed: int = 0, n: int = 9, longest: int = 30) -> list[Pair]:
    """Random requests: answers to shared contexts, of one token or more, some the beginning of others, in any order."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(n):
        context, answer = words(rng.randint(1, longest), rng), words(rng.randint(2, 9), rng)
        pairs += [(context, f" {answer}"), (context, f" {answer} {words(2, rng)}")]
        pairs += [(context, f" {words(1, rng)}") for _ in range(3)]
    rest = words(7, rng)
    start = words(11, rng)
    pairs += [(f"{start} {word} {words(1, rng)}", f" {rest}") for word in ("ba", "ce")]  # the contexts differ
    pairs += [("", " " + words(5, rng)), ("", " ba"), pairs[3], pairs[0]]
    rng.shuffle(pairs)
    return pairs


def stock(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], **options: Any) -> Answers:
    """Return what the harness's own class answers."""
    lm = HFLM(model, tokenizer=tokenizer, device="cpu", batch_size=4, **options)
    answers: Answers = lm.loglikelihood(asked(pairs), disable_tqdm=True)
    return answers


def ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], **options: Any) -> Answers:
    return BranchingLM(model, tokenizer, progress=False, **options).loglikelihood(asked(pairs))


def assert_equal(got: Answers, wanted: Answers, atol: float = 1e-4, rtol: float = 0.0) -> None:
    assert_allclose([value for value, _ in got], [value for value, _ in wanted], rtol=rtol, atol=atol)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in wanted]


# --- trees of tokens --------------------------------------------------------------------------------------


def test_a_row_by_hand() -> None:
    row = Row([(5, 6), (5, 6, 7, 8), (5, 9), (3,)])
    # 5 - 6 - 7 - 8
    #   \ 9           and 3, a tree of its own
    assert row.tokens == [5, 6, 7, 8, 9, 3]
    assert row.positions == [0, 1, 2, 3, 1, 0]
    assert {tokens: path.tolist() for tokens, path in row.paths.items()} == {
        (5, 6): [0, 1],
        (5, 6, 7, 8): [0, 1, 2, 3],
        (5, 9): [0, 4],
        (3,): [5],
    }
    assert row.visible.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert (len(row), row.depth, row.is_plain) == (6, 4, False)
    assert Row([(5, 6), (5, 6, 7)]).is_plain


@pytest.mark.parametrize(
    ("first", "second", "n"), [((), (), 0), ((), (1,), 0), ((1, 2, 3), (1, 2, 4, 5), 2), ((1, 2), (1, 2, 3), 2)]
)
def test_what_two_sequences_share(first: tuple[int, ...], second: tuple[int, ...], n: int) -> None:
    assert n_shared(first, second) == n_shared(second, first) == n


def sequences(max_token: int, max_size: int) -> st.SearchStrategy[set[tuple[int, ...]]]:
    return st.sets(st.lists(st.integers(0, max_token), min_size=1, max_size=11).map(tuple), max_size=max_size)


@given(sequences(2, 13))
def test_rows_hold_every_sequence_once_and_see_only_what_came_before(given_sequences: set[tuple[int, ...]]) -> None:
    rows = plan_rows(given_sequences)
    assert sorted(tokens for row in rows for tokens in row.paths) == sorted(given_sequences)
    for row in rows:
        prefixes = {tokens[: n + 1] for tokens in row.paths for n in range(len(tokens))}
        assert len(row) == len(prefixes)  # each common start stands there once
        for tokens, path in row.paths.items():
            assert tuple(row.tokens[place] for place in path) == tokens
            assert [row.positions[place] for place in path] == list(range(len(tokens)))
            for n, place in enumerate(path):
                assert_array_equal(np.flatnonzero(row.visible[place]), path[: n + 1])


def time_of(sizes: Sequence[int]) -> float:
    return float(row_time(np.array(sizes)).sum())


def long_sequences(seed: int) -> set[tuple[int, ...]]:
    """Few long common starts, so that the time of a row matters beside what it saves."""
    rng = random.Random(seed)
    starts = [tuple(rng.choices(range(3), k=rng.choice([2, 30, 300]))) for _ in range(3)]
    return {rng.choice(starts) + tuple(rng.choices(range(97), k=rng.choice([1, 20, 200]))) for _ in range(11)}


@pytest.mark.parametrize("seed", range(5))
def test_no_other_way_to_cut_takes_less_time(seed: int) -> None:
    ordered = sorted(long_sequences(seed))

    @cache
    def least(n: int) -> float:
        return min((least(i) + time_of([len(Row(ordered[i:n]))]) for i in range(n)), default=0.0)

    assert time_of([len(row) for row in plan_rows(set(ordered))]) == pytest.approx(least(len(ordered)))


def test_a_row_has_its_longest() -> None:
    start = tuple(range(1500))
    many = {(*start, last, *range(100)) for last in range(11)}  # 1,500 + 5 x 101 = 2,005 tokens
    sizes = [len(row) for row in plan_rows(many)]
    assert sum(sizes) == 3 * 1500 + 11 * 101 and max(sizes) <= LONGEST_ROW
    assert [len(row) for row in plan_rows({(*range(LONGEST_ROW), 1), (5,)})] == [1, LONGEST_ROW + 1]


def test_time_grows_faster_than_a_row() -> None:
    each = row_time(np.arange(1, 5000)) / np.arange(1, 5000)
    assert (np.diff(each) > -1e-12).all()


@given(sequences(97, 29), st.integers(1, 40))
def test_batches_hold_every_row_once_and_no_more_tokens_than_asked(
    given_sequences: set[tuple[int, ...]], limit: int
) -> None:
    rows = plan_rows(given_sequences)
    found = list(batches(rows, limit))
    assert sorted(id(row) for batch in found for row in batch) == sorted(map(id, rows))
    assert all(len(batch) == 1 or max(map(len, batch)) * len(batch) <= limit for batch in found)
    assert [len(row) for batch in found for row in batch] == sorted(map(len, rows), reverse=True)


# --- the answers ------------------------------------------------------------------------------------------


@pytest.mark.tiny
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_stock(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = family_model(name)
    lm = BranchingLM(model, tokenizer, max_length=CONTEXT, progress=False)
    pairs = questions()
    assert_equal(lm.loglikelihood(asked(pairs)), stock(model, tokenizer, pairs, max_length=CONTEXT))
    assert bool(lm.fallback) == (name in WINDOWED | WITHOUT_POSITIONS)


@pytest.mark.tiny
@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_branches_serve_where_no_sequence_is_longer_than_a_window(
    name: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    model = family_model(name)
    lm = BranchingLM(model, tokenizer, max_length=CONTEXT, progress=False)
    short, long = ([(words(n, random.Random(0)), f" {word} ba") for word in ("ba", "be")] for n in (5, 30))
    lm.loglikelihood(asked(short))
    assert not lm.fallback
    assert_equal(lm.loglikelihood(asked(long)), stock(model, tokenizer, long, max_length=CONTEXT))
    assert "sequences of 31 tokens: logits differ by" in lm.fallback
    lm.loglikelihood(asked(long))  # known by now, and not said again
    logged = [record.getMessage() for record in caplog.records if record.name == "calib_study.branching"]
    assert logged == [f"sequences are scored one by one: {lm.fallback}"]


@pytest.mark.tiny
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), per_call=st.sampled_from([1, 17, 100, 5000]))
def test_random_requests_are_answered_as_by_stock(tiny_files: tuple[Path, Path], seed: int, per_call: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_files[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_files[0])
    pairs = questions(seed, n=5)
    assert_equal(ours(model, tokenizer, pairs, tokens_per_call=per_call), stock(model, tokenizer, pairs))


@pytest.mark.tiny
def test_contexts_longer_than_the_model_reads_lose_their_beginning(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = questions(n=7, longest=100)
    for options in ({}, {"max_length": 13}, {"max_length": 14}):
        assert_equal(ours(model, tokenizer, pairs, **options), stock(model, tokenizer, pairs, **options))
    assert BranchingLM(model, tokenizer).max_length == CONTEXT


@pytest.mark.tiny
def test_a_family_that_measures_distance_by_the_place_in_the_row(tokenizer: PreTrainedTokenizerFast) -> None:
    model = family_model("falcon", alibi=True)
    lm = BranchingLM(model, tokenizer, max_length=CONTEXT, progress=False)
    assert_equal(lm.loglikelihood(asked(questions())), stock(model, tokenizer, questions(), max_length=CONTEXT))
    assert "the model refuses a mask of its own" in lm.fallback


def brute_force(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> Answers:
    """One forward for each request, with all its logits."""
    answers = []
    for context, continuation in pairs:
        tokens = tokenizer.encode(context + continuation) if context else [0, *tokenizer.encode(continuation)]
        n = len(tokens) - len(tokenizer.encode(continuation))
        with torch.no_grad():
            log_p = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        value = sum(log_p[i - 1, tokens[i]].item() for i in range(n, len(tokens)))
        answers.append((value, all(log_p[i - 1].argmax() == tokens[i] for i in range(n, len(tokens)))))
    return answers


@pytest.mark.tiny
@pytest.mark.parametrize("per_call", [1, 50, None])
def test_float64_gives_what_one_forward_a_request_gives(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, per_call: int | None
) -> None:
    model = model.double()
    # The last two are one sequence, cut at two places: HFLM 0.4.13 gives the second the probabilities of other tokens.
    pairs = [*questions(1), ("ba be", " bi bo bu"), ("ba be bi", " bo bu")]
    lm = BranchingLM(model, tokenizer, tokens_per_call=per_call, progress=False)
    assert_equal(lm.loglikelihood(asked(pairs)), brute_force(model, tokenizer, pairs), atol=1e-10)
    assert not lm.fallback


@pytest.mark.tiny
def test_bfloat16_is_near_and_its_probabilities_are_float32(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = questions()
    exact = ours(model, tokenizer, pairs)
    model = model.bfloat16()
    lm = BranchingLM(model, tokenizer, progress=False)
    answers = lm.loglikelihood(asked(pairs))
    assert not lm.fallback
    beside = stock(model, tokenizer, pairs, softmax_dtype="float32")
    lengths = np.array([max(1, len(continuation.split())) for _, continuation in pairs])
    for other in (exact, beside):
        apart = np.abs([a - b for (a, _), (b, _) in zip(answers, other, strict=True)]) / lengths
        assert apart.max() < 0.5 and np.median(apart) < 0.1  # nats a token; bfloat16 keeps 8 bits


@pytest.mark.tiny
def test_the_longest_text_is_scored_in_stocks_windows(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = random.Random(0)
    texts = [Instance("loglikelihood_rolling", {}, (words(n, rng),), n) for n in (1, 63, 64, 65, 150)]
    texts += [Instance("loglikelihood_rolling", {}, ("",), 0), texts[2]]
    wanted = HFLM(model, tokenizer=tokenizer, device="cpu", batch_size=2).loglikelihood_rolling(
        texts, disable_tqdm=True
    )
    assert_allclose(BranchingLM(model, tokenizer, progress=False).loglikelihood_rolling(texts), wanted, atol=1e-3)


@pytest.mark.tiny
def test_texts_are_generated_by_stock(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [
        Instance("generate_until", {}, (f"ba be {w}", {"until": ["bo"], "max_gen_toks": 5}), 0) for w in WORDS[:3]
    ]
    wanted = HFLM(model, tokenizer=tokenizer, device="cpu").generate_until(requests, disable_tqdm=True)
    assert BranchingLM(model, tokenizer, progress=False).generate_until(requests) == wanted


@pytest.mark.tiny
def test_no_requests_no_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = BranchingLM(model, tokenizer, progress=False)
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == []


def test_a_tokenizer_that_begins_texts_with_a_token(tokenizer: PreTrainedTokenizerFast, tiny_model: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "bu"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="bu $A", special_tokens=[("bu", tokenizer.bos_token_id)]
    )
    pairs = [*questions(n=3), ("bu ba", " be"), ("", " bu be")]
    assert_equal(ours(tiny_model, tokenizer, pairs), stock(tiny_model, tokenizer, pairs))


# --- what is read, and what is left -----------------------------------------------------------------------


class Counting:
    """Counts the tokens of every forward of a model, and where its logits were computed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.n_logits = 0
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: self.calls.append(tuple(args[0].shape)))
        model.get_output_embeddings().register_forward_hook(self._count)

    def _count(self, _: nn.Module, args: Any, logits: Tensor) -> None:
        self.n_logits += logits.shape[:-1].numel()


@pytest.mark.tiny
def test_a_context_is_read_once(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = BranchingLM(model, tokenizer, progress=False)
    # Contexts of 20 tokens. Its last token and all of an answer but the last give logits, shared where answers begin
    # alike: 1 + 0 + 1 + 2 for "be", "bi bo", "bu bi bo", so 4, where 20 + 0 + 1 + 2 tokens are read.
    context = words(20, random.Random(0))
    pairs = [(context, " be"), (context, " bi bo"), (context, " bu bi bo")]
    lm.loglikelihood(asked(pairs))  # tries branches out
    counted = Counting(model)
    lm.loglikelihood(asked(pairs))
    assert (counted.calls, counted.n_logits) == ([(1, 23)], 4)


@pytest.mark.tiny
def test_answers_of_one_token_are_read_from_one_forward(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rng = random.Random(0)
    contexts = [f"{word} {words(11, rng)}" for word in WORDS[:3]]  # 3 of 12 tokens, with nothing in common
    pairs = [(context, f" {answer}") for context in contexts for answer in WORDS[:5]]
    lm = BranchingLM(model, tokenizer, tokens_per_call=24, progress=False)
    counted = Counting(model)
    answers = lm.loglikelihood(asked(pairs))
    assert (counted.calls, counted.n_logits) == ([(2, 12), (1, 12)], 3)
    assert_equal(answers, stock(model, tokenizer, pairs))


@pytest.mark.tiny
def test_contexts_that_differ_before_a_shared_answer_share_their_start(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    start = words(20, random.Random(0))
    pairs = [(f"{start} {word}", " bu bi bo") for word in ("ba", "be")]
    lm = BranchingLM(model, tokenizer, progress=False)
    answers = lm.loglikelihood(asked(pairs))
    counted = Counting(model)
    assert lm.loglikelihood(asked(pairs)) == answers
    assert (counted.calls, counted.n_logits) == ([(1, 20 + 2 * 3)], 2 * 3)
    assert_equal(answers, stock(model, tokenizer, pairs))


@pytest.mark.tiny
def test_logits_are_found_where_the_last_projection_is_no_module(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = stock(model, tokenizer, questions())
    monkeypatch.setattr(model, "get_output_embeddings", nn.Identity)
    assert_equal(ours(model, tokenizer, questions()), wanted)


@pytest.mark.tiny
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_after_success_and_failure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, training: bool
) -> None:
    model.train(training)
    wanted = stock(model, tokenizer, questions())
    model.train(training)
    head = model.get_output_embeddings()
    assert_equal(ours(model, tokenizer, questions()), wanted)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan
    with pytest.raises(NumericalError, match="a log-likelihood is not finite"):
        ours(model, tokenizer, questions())
    assert (model.training, len(head._forward_pre_hooks)) == (training, 0)
    assert torch.is_grad_enabled()


@pytest.mark.tiny
def test_nothing_outlives_a_change_of_the_weights(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    lm = BranchingLM(model, tokenizer, progress=False)
    before = lm.loglikelihood(asked(questions()))
    assert lm.loglikelihood(asked(questions())) == before
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[..., ::3] = 0
    after = lm.loglikelihood(asked(questions()))
    assert after != before
    assert_equal(after, stock(model, tokenizer, questions()))


@pytest.mark.tiny
def test_of_equal_tokens_the_first_is_the_greedy_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    pairs = [("ba be", " bi"), ("ba be", f" {tokenizer.eos_token}"), ("ba", " be bi")]
    answers = ours(model, tokenizer, pairs)
    assert_equal(answers, stock(model, tokenizer, pairs), atol=1e-6)
    assert [greedy for _, greedy in answers] == [False, True, False]  # token 0 is the end of a text
    assert answers[0][0] == pytest.approx(-np.log(92))


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, t: BranchingLM(m, t, max_length=0), "max_length is 0, but has to be a number of tokens, at least 1"),
        (lambda m, t: BranchingLM(m, t, tokens_per_call=-3), "tokens_per_call is -3, but has"),
        (lambda m, t: ours(m, t, [("ba", " be"), ("ba", "")]), "a request has an empty continuation"),
        (
            lambda m, t: ours(m, t, [("ba", " be"), ("ba", " bi bo bu")], max_length=2),
            r"request 1 has 1 tokens of context and 3 of continuation; .* 1 to 2 \(max_length\) of continuation",
        ),
        (lambda m, t: ours(m, t, [("  ", " be")]), "request 0 has 0 tokens of context and 1 of continuation"),
    ],
)
def test_bad_input(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ask: Callable[..., Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(model, tokenizer)


# --- the real model ---------------------------------------------------------------------------------------


# 40 items: short answers beside each other, answers after differing contexts, single words, sentences.
ITEMS = {"openbookqa": 14, "winogrande": 8, "lambada_openai": 4, "copa": 14}


@pytest.mark.real
def test_the_real_model_answers_real_questions_as_stock(smollm: Laboratory) -> None:
    select_float32_matmul()
    smollm.dense.restore()
    lm = BranchingLM(smollm.dense.model, smollm.dense.tokenizer, progress=False)
    pairs = [request.args for task, limit in ITEMS.items() for request in prepare(task, limit, 0, None).requests]
    answers = lm.loglikelihood(asked(pairs))
    assert_equal(answers, stock(smollm.dense.model, smollm.dense.tokenizer, pairs))
    assert not lm.fallback
    assert 0 < sum(greedy for _, greedy in answers) < len(answers)
