"""Writing: what a text depends on, beside plain forwards and transformers' `generate`, in many families."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from test_families import FAMILIES, family_model
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaForCausalLM, PreTrainedModel

from calib_study import generation
from calib_study.column_cache import ColumnLayer
from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.generation import Text, check_written, rows_that_fit, write
from calib_study.prompts import Ends, Prompt
from calib_study.sampling import Sampling, next_tokens

pytestmark = pytest.mark.tiny

START, END = 0, 5
BAN, STOP = Ends((END,), "ban"), Ends((END,), "stop")
BROAD = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
NONE = torch.tensor([], dtype=torch.long)


def prompt(index: int, *, n_prefix: int = 3, n_new: int = 13, seed: int = 0) -> Prompt:
    rng = np.random.default_rng((seed, index))
    return Prompt(index, (START, *rng.integers(1, 97, n_prefix).tolist()), 1, rng.random(n_new))


def ragged(n: int = 7) -> list[Prompt]:
    """Prompts and texts of unequal length, so that rows begin and end at different steps."""
    return [prompt(i, n_prefix=i % 4, n_new=5 + 3 * (i % 5)) for i in range(n)]


def texts(
    model: PreTrainedModel,
    prompts: list[Prompt],
    *,
    sampling: Sampling = BROAD,
    ends: Ends = BAN,
    batch_size: int | None = None,
) -> dict[int, Text]:
    steps = write(model, prompts, sampling=sampling, ends=ends, batch_size=batch_size)
    found = [text for finished in steps for text in finished]
    assert len(found) == len(prompts)
    return {text.prompt.index: text for text in found}


def tokens(found: dict[int, Text]) -> list[list[int]]:
    return [found[index].tokens for index in sorted(found)]


@pytest.fixture
def exact(tiny_model: LlamaForCausalLM) -> LlamaForCausalLM:
    return tiny_model.double()


# --- one text, step by step -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [BROAD, Sampling(), Sampling(top_k=7, repetition_penalty=2.0)], ids=str)
def test_a_text_is_what_plain_forwards_give(exact: LlamaForCausalLM, sampling: Sampling) -> None:
    """Brute force: read the whole text again for every token, without a cache."""
    one = prompt(0)
    ids, nll, end = list(one.tokens), 0.0, torch.tensor([END])
    with torch.no_grad():
        for number in one.uniforms:
            logits = exact(torch.tensor([ids]), use_cache=False).logits[:, -1]
            uniforms = torch.tensor([number], dtype=torch.float64)
            exempt = torch.tensor([START, END])
            token, _ = next_tokens(logits, torch.tensor([ids]), uniforms, sampling, exempt=exempt, banned=end)
            ids.append(int(token))
        log_p = exact(torch.tensor([ids]), use_cache=False).logits[0, :-1].log_softmax(-1)
        nll = -log_p.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    text = texts(exact, [one], sampling=sampling)[0]
    assert text.tokens == ids and text.own == ids[1:]
    assert text.n_scored == len(ids) - 1 == 3 + 13
    assert text.nll == pytest.approx(nll, rel=1e-10)
    assert 0 < text.margin < 0.5


def test_greedy_limits_agree_with_transformers_generate(exact: LlamaForCausalLM) -> None:
    """With one candidate there is no randomness: `generate`, with its own cache and penalty, writes the same."""
    prompts = [prompt(i, n_new=17) for i in range(5)]
    ids = torch.tensor([one.tokens[1:] for one in prompts])
    expected = exact.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        repetition_penalty=1.3,
        max_new_tokens=17,
        eos_token_id=None,
        pad_token_id=0,
    )
    bare = [Prompt(one.index, one.tokens[1:], 0, one.uniforms) for one in prompts]
    unused = min(set(range(97)) - set(expected.flatten().tolist()))  # the penalty would spare an end of text
    ours = texts(exact, bare, sampling=Sampling(top_k=1, repetition_penalty=1.3), ends=Ends((unused,), "continue"))
    assert tokens(ours) == expected.tolist()


# --- what it does not depend on ---------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [BAN, STOP, Ends((END,), "continue")], ids=["ban", "stop", "continue"])
def test_in_float64_texts_depend_on_neither_batch_nor_order(exact: LlamaForCausalLM, ends: Ends) -> None:
    prompts = ragged(11)
    alone = tokens(texts(exact, prompts, ends=ends, batch_size=1))
    for batch_size in (2, 3, 7, 11, 50, None):
        assert tokens(texts(exact, prompts, ends=ends, batch_size=batch_size)) == alone
    assert tokens(texts(exact, prompts[::-1], ends=ends, batch_size=4)) == alone
    assert tokens(texts(exact, prompts[3:8], ends=ends, batch_size=4)) == alone[3:8]


def test_in_float32_texts_change_with_the_batch_only_where_their_margin_says_so(tiny_model: LlamaForCausalLM) -> None:
    prompts = [prompt(i, n_new=29) for i in range(40)]
    alone = texts(tiny_model, prompts, batch_size=1)
    for batch_size in (7, 32):
        batch = texts(tiny_model, prompts, batch_size=batch_size)
        for index, text in batch.items():
            assert text.tokens == alone[index].tokens or min(text.margin, alone[index].margin) < 1e-5
            assert text.nll == pytest.approx(alone[index].nll, rel=1e-5) or text.tokens != alone[index].tokens
    assert sum(text.margin > 1e-5 for text in alone.values()) > 5  # so something was said


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_writes_as_it_reads(name: str) -> None:
    """Rows of unequal length, replaced as they finish; blocks with sliding windows have one of 8 tokens."""
    model = family_model(name).double()
    prompts = ragged()
    alone = texts(model, prompts, ends=STOP, batch_size=1)
    batch = texts(model, prompts, ends=STOP, batch_size=3)
    assert tokens(batch) == tokens(alone)
    for text in batch.values():
        check_written(model, text)  # to 1e-8 in float64


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_columns_are_moved_without_a_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "SPARE_COLUMNS", 1)
    model = family_model(name).double()
    prompts = ragged(13)
    assert tokens(texts(model, prompts, batch_size=2)) == tokens(texts(model, prompts, batch_size=13))


def test_seeds(exact: LlamaForCausalLM) -> None:
    def written(seed: int) -> list[list[int]]:
        return tokens(texts(exact, [prompt(i, seed=seed, n_prefix=0) for i in range(5)]))

    assert written(0) == written(0)
    assert all(a != b for a, b in zip(written(0), written(1), strict=True))
    assert len({tuple(row) for row in written(0)}) == 5  # the same prompt, other numbers


# --- end of text ------------------------------------------------------------------------------------------


def test_policies_for_the_end_of_text(exact: LlamaForCausalLM) -> None:
    """All end ids are alike; they are likely enough here to be drawn in some texts and not in others."""
    ids = tuple(range(5, 15))
    prompts = [prompt(i) for i in range(20)]
    ban, stop, go_on = (
        texts(exact, prompts, ends=Ends(ids, policy), batch_size=6) for policy in ("ban", "stop", "continue")
    )
    ended = [i for i in range(20) if stop[i].ends]
    assert 0 < len(ended) < 20
    for i in range(20):
        drawn = {name: found[i].tokens[4:] for name, found in (("ban", ban), ("stop", stop), ("continue", go_on))}
        assert len(drawn["ban"]) == 13 and not set(drawn["ban"]) & set(ids) and ban[i].ends == 0
        assert len(drawn["continue"]) == 13 and go_on[i].ends == sum(token in ids for token in drawn["continue"])
        assert stop[i].ends == (i in ended) and not set(drawn["stop"]) & set(ids)
        # Until the first end, both are the same.
        assert drawn["continue"][: len(drawn["stop"])] == drawn["stop"]
        first = [n for n, token in enumerate(drawn["continue"]) if token in ids][:1]
        assert [len(drawn["stop"])] == (first or [13])
        assert stop[i].n_scored == len(stop[i].tokens) - 1


def test_no_penalty_touches_the_end_of_text_or_the_start(exact: LlamaForCausalLM) -> None:
    """With a penalty that forbids whatever was seen, a text of one word repeated is still possible for them only."""
    word = 41
    one = Prompt(0, (START, word), 1, np.zeros(9))
    everything_but = Ends((END, *range(6, 41), *range(42, 97)), "ban")  # leaves 0 to 4, and the word
    text = texts(exact, [one], sampling=Sampling(repetition_penalty=1e9, top_k=0, top_p=1), ends=everything_but)[0]
    drawn = text.tokens[2:]
    assert drawn.count(START) > 1  # seen, and drawn again: numbers of 0 take the lowest id with a share
    assert word not in drawn[1:]


# --- refusals and restoring -------------------------------------------------------------------------------


def test_training_mode_is_put_back_and_gradients_are_not_recorded(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.train()
    tiny_model.config.use_cache = True
    steps: Iterator[list[Text]] = write(tiny_model, [prompt(0)], sampling=BROAD, ends=BAN)
    next(steps)
    assert torch.is_grad_enabled()  # between two steps the caller's setting holds
    steps.close()
    assert tiny_model.training and tiny_model.config.use_cache


def test_progress_counts_tokens_that_were_read(tiny_model: LlamaForCausalLM) -> None:
    counts: list[int] = []
    list(write(tiny_model, ragged(5), sampling=BROAD, ends=BAN, batch_size=2, on_step=counts.append))
    assert sum(counts) == sum(len(one.tokens) + len(one.uniforms) - 1 for one in ragged(5))


def test_nothing_is_written_without_prompts_or_rows(tiny_model: LlamaForCausalLM) -> None:
    assert list(write(tiny_model, [], sampling=BROAD, ends=BAN)) == []
    with pytest.raises(InputError, match="batch size 0: at least 1 text"):
        next(write(tiny_model, ragged(), sampling=BROAD, ends=BAN, batch_size=0))


def test_damaged_weights_are_found(tiny_model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight[3] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        next(write(tiny_model, ragged(), sampling=BROAD, ends=BAN))


def test_a_cache_that_does_not_work_is_found(exact: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ColumnLayer.update

    def forgetful(layer: ColumnLayer, *states: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = whole(layer, *states)
        return keys, values * (torch.arange(values.shape[2]) % 2)[:, None]

    monkeypatch.setattr(ColumnLayer, "update", forgetful)
    text = texts(exact, [prompt(0)])[0]
    with pytest.raises(StudyError, match=r"LlamaForCausalLM does not read as it writes: text 0 has \d"):
        check_written(exact, text)


def test_rows_that_fit_in_memory(exact: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 blocks x (keys and values) x 2 heads x width 8 x 8 bytes = 512 bytes a token.
    monkeypatch.setattr(generation, "CACHE_BYTES", 512 * 100 * 3.5)
    assert rows_that_fit(exact, 100) == 3
    assert rows_that_fit(exact, 100_000) == 1
    assert rows_that_fit(exact, 1) == generation.MOST_ROWS
    assert_close(torch.tensor(texts(exact, ragged())[0].tokens), torch.tensor(tokens(texts(exact, ragged()))[0]))
