"""Prompts: which tokens of which documents, which random numbers, and how ids become text again."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_windows import SEPARATOR_ID, word_tokenizer
from tiny_study import END_OF_TEXT, tiny_source
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from calib_study.errors import InputError
from calib_study.manifests import Synthesis, checked_request
from calib_study.prompts import Ends, decoded, ends_of, prompts_of, start_id, uniforms
from calib_study.sources import load_documents

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_source(tmp_path_factory.mktemp("text") / "tiny.txt"))


def request(source: str | None, **changes: Any) -> Synthesis:
    fields = {"model": "m", "prefix_source": source, "n_texts": 9, "new_tokens": 11, **changes}
    return checked_request(Synthesis, **fields)


@pytest.mark.parametrize("prefix_len", [1, 2, 4, 16])
@pytest.mark.parametrize("start_token", [True, False])
def test_prefixes_begin_calibration_documents_each_of_another(source: str, prefix_len: int, start_token: bool) -> None:
    tokenizer = word_tokenizer()
    prompts = prompts_of(request(source, prefix_len=prefix_len, start_token=start_token), tokenizer)
    documents = load_documents(source, "calibration")
    begins = [tuple(tokenizer.convert_tokens_to_ids(text.split()[:prefix_len])) for text in documents]
    held_out = [
        tuple(tokenizer.convert_tokens_to_ids(t.split()[:prefix_len])) for t in load_documents(source, "held_out")
    ]
    assert [prompt.index for prompt in prompts] == list(range(9))
    found = [prompt.tokens[prompt.n_start :] for prompt in prompts]
    assert all(prompt.tokens[: prompt.n_start] == (SEPARATOR_ID,) * start_token for prompt in prompts)
    assert set(found) <= set(begins)
    if prefix_len > 2:  # so long that each is of one document
        assert len(set(found)) == 9 and not set(found) & set(held_out)


def test_no_prefix_is_the_start_token_alone() -> None:
    prompts = prompts_of(request(None, prefix_len=0), word_tokenizer())
    assert {prompt.tokens for prompt in prompts} == {(SEPARATOR_ID,)} and len(prompts) == 9
    assert len({tuple(prompt.uniforms) for prompt in prompts}) == 9


def test_more_texts_change_none_and_another_seed_changes_all(source: str) -> None:
    def made(**changes: Any) -> list[tuple[tuple[int, ...], list[float]]]:
        prompts = prompts_of(request(source, prefix_len=4, **changes), word_tokenizer())
        return [(prompt.tokens, prompt.uniforms.tolist()) for prompt in prompts]

    assert made() == made()
    assert made(n_texts=20)[:9] == made()
    assert all(a[1] != b[1] for a, b in zip(made(), made(seed=1), strict=True))
    assert [a[0] for a in made()] != [b[0] for b in made(seed=1)]


def test_random_numbers_follow_seed_and_index() -> None:
    assert np.array_equal(uniforms(3, 5, 7), uniforms(3, 5, 9)[:7])
    assert len({tuple(uniforms(seed, index, 4)) for seed in range(5) for index in range(5)}) == 25
    # So that a change of numpy's streams, which would change every text, is noticed.
    assert uniforms(0, 0, 2).tolist() == pytest.approx([0.9429375528828794, 0.3163371523854981])


def test_too_few_documents_are_counted(source: str) -> None:
    n = len(load_documents(source, "calibration"))
    with pytest.raises(
        InputError, match=rf"has {n} calibration documents of 2 tokens or more.*{n + 1} texts were asked"
    ):
        prompts_of(request(source, n_texts=n + 1), word_tokenizer())
    with pytest.raises(InputError, match="has 0 calibration documents of 64 tokens or more"):
        prompts_of(request(source, prefix_len=64), word_tokenizer())


def test_a_text_begins_after_what_the_tokenizer_puts_before_it() -> None:
    tokenizer = word_tokenizer()
    assert start_id(tokenizer) == SEPARATOR_ID
    template = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)])
    tokenizer.backend_tokenizer.post_processor = template  # as Llama's does with <s>
    assert start_id(tokenizer) == 0
    assert start_id(word_tokenizer(end_of_text=False)) == 1  # <|im_end|>


@pytest.mark.parametrize(
    ("stops", "ids"), [(None, (7, 1)), (7, (7, 1)), ([1, 50, 7], (7, 1, 50))], ids=["none", "one", "several"]
)
def test_every_id_that_ends_a_text_is_known(stops: Any, ids: tuple[int, ...]) -> None:
    model: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=stops))
    ends = ends_of(model, word_tokenizer(), request(None, prefix_len=0, end_of_text="ban"))
    assert ends == Ends(ids, "ban")
    model.generation_config = None
    assert ends_of(model, word_tokenizer(), request(None, prefix_len=0)) == Ends((7, 1), "stop")


def test_ids_become_text_with_the_separator_of_documents_written_out() -> None:
    tokenizer, ends = word_tokenizer(), Ends((7, 1), "continue")
    words = [str(tokenizer.convert_ids_to_tokens(index)) for index in (20, 21, 22)]
    assert decoded([20, 21], tokenizer, ends) == " ".join(words[:2])
    text = decoded([20, 7, 21, 1, 22], tokenizer, ends)
    assert text == END_OF_TEXT.join(words)
    # Tokenised again, both ends are the separator.
    tokenizer.add_special_tokens({"additional_special_tokens": [END_OF_TEXT]})
    assert tokenizer(text)["input_ids"] == [20, 7, 21, 7, 22]


def test_half_a_character_at_the_end_is_left_out() -> None:
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": END_OF_TEXT})
    ids = tokenizer("aé")["input_ids"]
    assert len(ids) == 3
    ends = Ends((tokenizer.eos_token_id,))
    assert decoded(ids, tokenizer, ends) == "aé"
    assert decoded(ids[:2], tokenizer, ends) == "a"
    assert decoded([*ids[:2], *ids[:1]], tokenizer, ends) == "a\ufffda"  # in the middle it shows
