"""Layers of decoder blocks: reading, writing and masking their weights, fused modules, and what is refused."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from calib_study.errors import StudyError
from calib_study.layers import Layer, all_layers, block_layers, decoder_blocks


def whole(module: nn.Module) -> Layer:
    """The layer of a module that stands alone in a block."""
    (layer,) = block_layers(nn.ModuleDict({"proj": module})).values()
    return layer


class GPT2Attention(nn.Module):
    """Two heads of width 1: the class and the names are what the layout goes by."""

    def __init__(self, n_rows: int) -> None:
        super().__init__()
        self.c_attn = Conv1D(n_rows, 3)  # weight (3 inputs, n_rows outputs)
        self.c_proj = Conv1D(3, 2)  # 2 inputs: so there are 2 rows of queries


class GPTNeoXAttention(nn.Module):
    def __init__(self, n_rows: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.query_key_value = nn.Linear(3, n_rows)
        self.dense = nn.Linear(4, 3)


# ------------------------------------------------------------------ one layer


def test_a_linear_is_one_layer_and_its_weight_a_view() -> None:
    linear = nn.Linear(3, 2)
    layer = whole(linear)
    assert (layer.name, layer.role, layer.rows, layer.transposed) == ("proj", "mlp", None, False)
    assert (layer.d_out, layer.d_in) == (2, 3) and layer.module is linear
    assert layer.weight().data_ptr() == linear.weight.data_ptr() and not layer.weight().requires_grad


def test_a_transposed_layer_is_read_written_and_masked_the_right_way_round() -> None:
    conv = Conv1D(2, 3)  # 2 outputs, 3 inputs
    layer = whole(conv)
    assert (layer.d_out, layer.d_in, layer.transposed) == (2, 3, True)
    layer.set_weight_(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert conv.weight.tolist() == [[1, 4], [2, 5], [3, 6]]
    layer.remove_(torch.tensor([[False, True, False], [False, False, True]]))
    assert conv.weight.tolist() == [[1, 4], [0, 5], [3, 0]]
    assert layer.weight().tolist() == [[1, 0, 3], [4, 5, 0]]
    x = torch.tensor([[1.0, 10, 100]])
    assert_close(conv(x) - conv.bias, x @ layer.weight().T)


def test_parts_are_read_written_and_masked_apart() -> None:
    attention = GPTNeoXAttention(12, head_size=2)  # 2 heads: q q k k v v | q q k k v v
    layers = block_layers(nn.ModuleDict({"attention": attention}))
    names = [f"attention.query_key_value.{part}" for part in "qkv"]
    assert list(layers) == [*names, "attention.dense"]
    rows = {name: layers[name].rows for name in names}
    assert {name: r.tolist() for name, r in rows.items() if r is not None} == dict(
        zip(names, ([0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]), strict=True)
    )
    before = attention.query_key_value.weight.detach().clone()
    key = layers[names[1]]
    assert (key.d_out, key.d_in, key.role) == (4, 3, "attention")
    copy = key.weight()
    copy.zero_()  # a copy: the module does not change
    assert_close(attention.query_key_value.weight.detach(), before, rtol=0, atol=0)
    key.set_weight_(torch.arange(12.0).reshape(4, 3).double())
    removed = torch.zeros(4, 3, dtype=torch.bool)
    removed[3, 0] = True  # the last key row is the module's row 9
    key.remove_(removed)
    expected = before.clone()
    expected[[2, 3, 8, 9]] = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 10, 11]])
    assert_close(attention.query_key_value.weight.detach(), expected, rtol=0, atol=0)


def test_parts_of_a_transposed_module() -> None:
    attention = GPT2Attention(4)  # q q k v
    layers = block_layers(nn.ModuleDict({"attn": attention}))
    assert [(name.rpartition(".")[2], layer.d_out, layer.d_in) for name, layer in layers.items()] == [
        ("q", 2, 3),
        ("k", 1, 3),
        ("v", 1, 3),
        ("c_proj", 3, 2),
    ]
    layers["attn.c_attn.v"].remove_(torch.tensor([[True, False, True]]))
    zeros = (attention.c_attn.weight == 0).nonzero().tolist()
    assert zeros == [[0, 3], [2, 3]]  # inputs 0 and 2 of output 3


@pytest.mark.parametrize("shape", [(3, 2), (1, 3), (3,)])
def test_a_mask_or_weight_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    layer = whole(nn.Linear(3, 2))
    with pytest.raises(StudyError, match=r"proj: a mask of shape \(\d.*\), not \(2, 3\)"):
        layer.remove_(torch.ones(shape, dtype=torch.bool))
    with pytest.raises(StudyError, match="proj: a weight of shape"):
        layer.set_weight_(torch.ones(shape))


def test_writing_keeps_the_dtype_and_the_parameter() -> None:
    linear = nn.Linear(3, 2, dtype=torch.bfloat16)
    parameter = linear.weight
    whole(linear).set_weight_(torch.full((2, 3), 0.1))
    assert linear.weight is parameter and parameter.dtype == torch.bfloat16 and parameter.requires_grad
    assert_close(parameter.detach().float(), torch.full((2, 3), 0.1), rtol=2**-8, atol=0)  # 8 significant bits


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "attention",
    [GPT2Attention(5), GPT2Attention(2), GPTNeoXAttention(9, 2), GPTNeoXAttention(14, 2), GPTNeoXAttention(16, 4)],
)
def test_a_known_name_with_an_unknown_shape_is_an_error(attention: nn.Module) -> None:
    with pytest.raises(StudyError, match=r"Attention: its \d+ fused output rows are not q, k, v in \d equal groups"):
        block_layers(nn.ModuleDict({"attn": attention}))


def test_a_fused_module_that_is_not_known_is_one_layer() -> None:
    attention = nn.ModuleDict({"qkv_proj": nn.Linear(4, 12), "o_proj": nn.Linear(4, 4)})
    layers = block_layers(nn.ModuleDict({"self_attn": attention}))
    assert [(name, layer.rows) for name, layer in layers.items()] == [
        ("self_attn.qkv_proj", None),
        ("self_attn.o_proj", None),
    ]


def test_packed_weights_are_refused() -> None:
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(StudyError, match=r"proj: its weights are stored as torch\.uint8"):
        block_layers(nn.ModuleDict({"proj": linear}))


TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "olmoe"])
def test_mixtures_of_experts_are_refused(family: str) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TINY))
    assert decoder_blocks(model)[0] == "model.layers"
    with pytest.raises(StudyError, match=r"DecoderLayer is a mixture of experts \(.*\(4, \d+, \d+\)"):
        all_layers(model)


def test_experts_in_a_list_are_refused_too() -> None:
    experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(5))
    blocks = nn.ModuleList(nn.ModuleDict({"gate": nn.Linear(3, 5), "experts": experts}) for _ in range(2))
    model = nn.ModuleDict({"layers": blocks})
    assert decoder_blocks(model)[0] == "layers"  # although the list of experts is longer
    with pytest.raises(StudyError, match="mixture of experts"):
        all_layers(model)


def test_short_convolutions_are_neither_experts_nor_layers() -> None:
    block = nn.ModuleDict({"mixer": nn.ModuleDict({"conv1d": nn.Conv1d(3, 3, 2), "in_proj": nn.Linear(3, 6)})})
    assert list(block_layers(block)) == ["mixer.in_proj"]


# ------------------------------------------------------------------ where the blocks are


def test_what_has_no_decoder_blocks_is_refused() -> None:
    for model in (nn.Sequential(nn.Linear(3, 5)), nn.ModuleDict({"empty": nn.ModuleList()})):
        with pytest.raises(StudyError, match=rf"{type(model).__name__}: no list of decoder blocks found\. Looked for"):
            decoder_blocks(model)


def test_the_longest_list_is_the_decoder() -> None:
    def blocks(n: int) -> nn.ModuleList:
        return nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(3, 5)}) for _ in range(n))

    model = nn.ModuleDict(
        {
            "vision": blocks(2),
            "text": blocks(3),
            "activations": nn.ModuleList([nn.ReLU()] * 7),
            "heads": nn.ModuleList(nn.Linear(3, 5) for _ in range(7)),
        }
    )
    name, found = decoder_blocks(model)
    assert (name, found) == ("text", model["text"])
    assert list(all_layers(model)) == ["text.0.proj", "text.1.proj", "text.2.proj"]


def test_lists_inside_blocks_are_part_of_them() -> None:
    def block() -> nn.ModuleDict:
        return nn.ModuleDict({"stack": nn.ModuleList(nn.Sequential(nn.Linear(3, 3)) for _ in range(5))})

    model = nn.ModuleDict({"h": nn.ModuleList(block() for _ in range(2))})
    assert decoder_blocks(model)[0] == "h"
    assert list(block_layers(model["h"][0])) == [f"stack.{index}.0" for index in range(5)]


def test_the_role_goes_by_the_path() -> None:
    def linear() -> nn.Module:
        return nn.Linear(2, 2)

    block = nn.ModuleDict(
        {
            "self_attn": nn.ModuleDict({"o": linear()}),
            "SelfAttention": nn.ModuleDict({"o": linear()}),
            "mlp": nn.ModuleDict({"o": linear()}),
            "fc1": linear(),
        }
    )
    assert {name: layer.role for name, layer in block_layers(block).items()} == {
        "self_attn.o": "attention",
        "SelfAttention.o": "attention",
        "mlp.o": "mlp",
        "fc1": "mlp",
    }
