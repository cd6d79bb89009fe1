"""Recipes of glass-box models, and where the models lie."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from calib_study import glassbox
from calib_study.errors import DataError, InputError
from calib_study.glassbox import CORPORA, RECIPES, REPORT, Recipe, check_recipe, glassbox_folder, glassbox_recipe
from calib_study.model_files import resolve_model


def test_the_projects_recipes_differ_in_their_text_alone() -> None:
    assert list(RECIPES) == [*(f"glassbox-{name}" for name in CORPORA), "glassbox-mixture"]
    assert len({recipe.model_copy(update={"sources": CORPORA}) for recipe in RECIPES.values()}) == 1
    assert RECIPES["glassbox-mixture"].sources == CORPORA == RECIPES["glassbox-chat"].tokenizer_sources
    assert RECIPES["glassbox-chat"].n_tokens == 2000 * 4 * 256


def test_the_number_of_parameters_is_that_of_the_model() -> None:
    recipe = Recipe(sources=("chat",), hidden_size=24, intermediate_size=20, n_layers=3, n_heads=6, n_kv_heads=2)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    total = sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())
    assert recipe.n_parameters == total - 11 * 24
    assert 3e6 < RECIPES["glassbox-chat"].n_parameters < 8e6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 250}, "n_heads must divide hidden_size"),
        ({"n_kv_heads": 3}, "n_kv_heads must divide n_heads"),
        ({"seq_len": 513}, "seq_len 513 is longer than context_length 512"),
        ({"sources": CORPORA, "batch_size": 6}, "batch_size 6 does not give each of 4 sources as much"),
        ({"sources": ()}, "at least 1 item"),
        ({"vocab_size": 256}, "greater than or equal to 257"),
    ],
)
def test_impossible_recipes(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate({"sources": ("chat",), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": ("chatt",)}, "unknown source 'chatt'. Did you mean 'chat'"),
        ({"sources": ("chat",), "tokenizer_sources": ("c5",)}, "unknown source 'c5'. Did you mean 'c4'"),
        ({"sources": ("chat",), "stepss": 3}, "stepss = 3"),
        ({"sources": ("random",)}, "source 'random@seen': only real text has a part"),
    ],
)
def test_a_recipe_of_the_users_own_is_checked(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_recipe(**changes)
    assert said in str(caught.value)


def test_an_unknown_name_has_near_matches() -> None:
    with pytest.raises(InputError, match=r"unknown glass-box model 'glassbox-chatt'\. Did you mean 'glassbox-chat'"):
        glassbox_recipe("glassbox-chatt")


def test_a_model_lies_where_it_is_finished_and_a_published_one_goes_first(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glassbox, "published_glassbox", lambda: tmp_path / "published")
    with pytest.raises(DataError, match="To train it: calib-study train-glassbox glassbox-chat"):
        resolve_model("glassbox-chat")
    for home in (own_cache / "glassbox", tmp_path / "published"):
        folder = home / "glassbox-chat"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"vocab_size": 4096, "max_position_embeddings": 512}')
        (folder / "model.safetensors").write_bytes(b"")
        assert glassbox_folder("glassbox-chat") != folder  # not finished
        (folder / REPORT).write_text("{}")
        assert glassbox_folder("glassbox-chat") == folder
        ref = resolve_model("glassbox-chat")
        assert (ref.name, ref.location, ref.context_length) == ("glassbox-chat", str(folder), 512)
        assert ref.content_hash() is not None
    assert glassbox_folder("smollm2-135m") is None
