"""Forwards that begin in the middle give what whole forwards give, and leave the model as it was."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from calib_study.layers import block_layers, decoder_blocks
from calib_study.models import next_token_logits
from calib_study.suffix import block_outputs, logits_after, weights_in, weights_of


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=3, n_head=2, vocab_size=89, n_positions=32)).eval()


def tokens(model: PreTrainedModel) -> Tensor:
    return torch.randint(model.config.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.tiny
@pytest.mark.parametrize("family", ["tiny_model", "gpt2"])
def test_a_forward_from_any_block_is_the_whole_forward(family: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(family)
    ids = tokens(model)
    with torch.no_grad():
        whole = next_token_logits(model, ids)
    outputs, logits = block_outputs(model, ids)
    torch.testing.assert_close(logits, whole, rtol=0, atol=0)
    assert len(outputs) == len(decoder_blocks(model)[1])
    for index in range(-1, len(outputs)):
        again = logits_after(model, ids, index, outputs[index])
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert not any("forward" in vars(block) for block in decoder_blocks(model)[1])


@pytest.mark.tiny
def test_a_changed_block_counts_and_those_before_do_not_compute(tiny_model: LlamaForCausalLM) -> None:
    ids, blocks = tokens(tiny_model), decoder_blocks(tiny_model)[1]
    outputs, before = block_outputs(tiny_model, ids)
    other = {name: weight / 2 for name, weight in weights_of(blocks[1]).items()}
    with weights_in(blocks[1], other):
        with torch.no_grad():
            whole = next_token_logits(tiny_model, ids)
        with weights_in(blocks[0], {name: weight * 0 for name, weight in weights_of(blocks[0]).items()}):
            torch.testing.assert_close(logits_after(tiny_model, ids, 0, outputs[0]), whole, rtol=0, atol=0)
    assert (whole - before).abs().max() > 1e-4
    torch.testing.assert_close(block_outputs(tiny_model, ids)[1], before, rtol=0, atol=0)


@pytest.mark.tiny
def test_weights_come_back_after_an_error(tiny_model: LlamaForCausalLM) -> None:
    block = decoder_blocks(tiny_model)[1][0]
    own = weights_of(block)
    with pytest.raises(KeyboardInterrupt), weights_in(block, {name: weight + 1 for name, weight in own.items()}):
        raise KeyboardInterrupt
    for name, layer in block_layers(block).items():
        torch.testing.assert_close(layer.weight(), own[name], rtol=0, atol=0)
