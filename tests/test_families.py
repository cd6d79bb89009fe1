"""Families of models: tiny random ones, made here from their configurations, in which every layer is found and pruned.

Windows of 11 tokens and, in the families with sliding windows, a window of 8: so those blocks have masks of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calib_study.errors import InputError, NumericalError
from calib_study.layers import FUSED, all_layers, block_layers, decoder_blocks
from calib_study.methods import METHODS, Pattern
from calib_study.prune import Request, achieved_sparsity, prune_
from calib_study.walk import Walk

pytestmark = pytest.mark.tiny

COMMON = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
SLIDING = {**GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}

# Layers of a block as "name outputs x inputs"; 2 key-value heads of width 8 are 16 rows.
SEPARATE = "q_proj 32x32, k_proj 16x32, v_proj 16x32, o_proj 32x32"
GATED = "gate_proj 48x32, up_proj 48x32, down_proj 32x48"
FUSED_GATED = "gate_up_proj.gate 48x32, gate_up_proj.up 48x32, down_proj 32x48"


def parts(name: str, n_key: int = 32) -> str:
    return f"{name}.q 32x32, {name}.k {n_key}x32, {name}.v {n_key}x32"


@dataclass(frozen=True)
class Family:
    """A configuration and what is to be found: attention and mlp by their prefix in a block, then their layers."""

    config: dict[str, object]
    attention: tuple[str, str] = ("self_attn.", SEPARATE)
    mlp: tuple[str, str] = ("mlp.", GATED)
    blocks: str = "model.layers"
    model_type: str = ""  # if it is not the name in the table


UNGROUPED = "q_proj 32x32, k_proj 32x32, v_proj 32x32"
NEOX_MLP = ("mlp.", "dense_h_to_4h 48x32, dense_4h_to_h 32x48")
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48, "alibi": False}
GPT_MLP = ("mlp.", "c_fc 48x32, c_proj 32x48")


def falcon(attention: str, **config: object) -> Family:
    layers = f"{attention}, dense 32x32"
    return Family({**FALCON, **config}, ("self_attention.", layers), NEOX_MLP, "transformer.h", "falcon")


FAMILIES = {
    "llama": Family(GROUPED),
    "mistral": Family({**GROUPED, "sliding_window": 8}),
    "qwen2": Family(GROUPED),
    "qwen3": Family(GROUPED),
    "smollm3": Family(GROUPED),
    "granite": Family(GROUPED),
    "olmo": Family(GROUPED),
    "olmo2": Family(GROUPED),
    "cohere": Family({**GROUPED, "use_qk_norm": True}),
    "gemma2": Family(SLIDING),
    "gemma3_text": Family(SLIDING),
    "stablelm": Family(GROUPED),
    "phi": Family(
        {**SIZES, "num_key_value_heads": 2},
        ("self_attn.", "q_proj 32x32, k_proj 16x32, v_proj 16x32, dense 32x32"),
        ("mlp.", "fc1 48x32, fc2 32x48"),
    ),
    "phi3": Family(GROUPED, ("self_attn.", parts("qkv_proj", 16) + ", o_proj 32x32"), ("mlp.", FUSED_GATED)),
    "glm": Family(GROUPED, mlp=("mlp.", FUSED_GATED)),
    "glm4": Family(GROUPED, mlp=("mlp.", FUSED_GATED)),
    "opt": Family(
        {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
        ("self_attn.", UNGROUPED + ", out_proj 32x32"),
        ("", "fc1 48x32, fc2 32x48"),
        "model.decoder.layers",
    ),
    "gpt_neox": Family(SIZES, ("attention.", parts("query_key_value") + ", dense 32x32"), NEOX_MLP, "gpt_neox.layers"),
    "persimmon": Family(SIZES, ("self_attn.", parts("query_key_value") + ", dense 32x32"), NEOX_MLP),
    "gpt2": Family(GPT2, ("attn.", parts("c_attn") + ", c_proj 32x32"), GPT_MLP, "transformer.h"),
    "gptj": Family(
        {**GPT2, "rotary_dim": 4},
        ("attn.", UNGROUPED + ", out_proj 32x32"),
        ("mlp.", "fc_in 48x32, fc_out 32x48"),
        "transformer.h",
    ),
    "codegen": Family(
        {**GPT2, "rotary_dim": 4},
        ("attn.", parts("qkv_proj") + ", out_proj 32x32"),
        ("mlp.", "fc_in 48x32, fc_out 32x48"),
        "transformer.h",
    ),
    "gpt_bigcode": Family(
        {**GPT2, "multi_query": False}, ("attn.", parts("c_attn") + ", c_proj 32x32"), GPT_MLP, "transformer.h"
    ),
    "gpt_bigcode, one key-value head": Family(
        {**GPT2, "multi_query": True},
        ("attn.", parts("c_attn", 8) + ", c_proj 32x32"),
        GPT_MLP,
        "transformer.h",
        "gpt_bigcode",
    ),
    "mpt": Family(
        {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64},
        ("attn.", parts("Wqkv") + ", out_proj 32x32"),
        ("ffn.", "up_proj 128x32, down_proj 32x128"),
        "transformer.blocks",
    ),
    "bloom": Family(
        {"hidden_size": 32, "n_layer": 2, "n_head": 4},
        ("self_attention.", parts("query_key_value") + ", dense 32x32"),
        ("mlp.", "dense_h_to_4h 128x32, dense_4h_to_h 32x128"),
        "transformer.h",
    ),
    "falcon": falcon(parts("query_key_value"), multi_query=False),
    "falcon, one key-value head": falcon(parts("query_key_value", 8), multi_query=True),
    "falcon, grouped heads": falcon(parts("query_key_value", 16), new_decoder_architecture=True, num_kv_heads=2),
}
WINDOWS = np.random.default_rng(0).integers(1, 97, (5, 11))


def family_model(name: str, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    family = FAMILIES[name]
    config = AutoConfig.for_model(family.model_type or name, **{**COMMON, **family.config, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Models this small run three times faster on one thread than on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def expected(name: str) -> dict[str, tuple[str, int, int]]:
    """Return what is to be found in each block: {layer: (role, d_out, d_in)}."""
    found = {}
    for role, (prefix, layers) in (("attention", FAMILIES[name].attention), ("mlp", FAMILIES[name].mlp)):
        for layer in layers.split(", "):
            own, _, shape = layer.partition(" ")
            d_out, d_in = map(int, shape.split("x"))
            found[prefix + own] = (role, d_out, d_in)
    return found


# ------------------------------------------------------------------ what is found


def test_the_layers_of_a_family(family: str) -> None:
    model = family_model(family)
    prefix, blocks = decoder_blocks(model)
    assert (prefix, len(blocks)) == (FAMILIES[family].blocks, 2)
    for block in blocks:
        found = {name: (layer.role, layer.d_out, layer.d_in) for name, layer in block_layers(block).items()}
        assert found == expected(family)
    layers = all_layers(model)
    assert list(layers) == [f"{prefix}.{index}.{name}" for index in range(2) for name in block_layers(blocks[index])]
    head = model.get_output_embeddings().weight
    assert all(layer.module.weight is not head for layer in layers.values())


def test_every_matrix_of_a_block_is_covered_exactly_once(family: str) -> None:
    for block in decoder_blocks(family_model(family))[1]:
        covered: dict[nn.Module, Tensor] = {}
        for layer in block_layers(block).values():
            count = covered.setdefault(layer.module, torch.zeros(layer.module.weight.shape))
            rows = count.t() if layer.transposed else count
            rows[slice(None) if layer.rows is None else layer.rows] += 1
            assert layer.weight().shape == (layer.d_out, layer.d_in)
        assert all((count == 1).all() for count in covered.values())
        # Cohere's norms of queries and keys have one weight for each head and feature; they are no linear maps.
        matrices = [p for name, p in block.named_parameters() if p.ndim > 1 and "norm" not in name]
        assert {id(module.weight) for module in covered} == {id(parameter) for parameter in matrices}


def test_masks_give_zeros_where_they_say_and_nowhere_else(family: str) -> None:
    model = family_model(family)
    layers = all_layers(model)
    with torch.no_grad():
        for layer in layers.values():
            layer.module.weight.fill_(1)
    others = {name: t.clone() for name, t in model.state_dict().items()}
    masks = {name: torch.rand(layer.d_out, layer.d_in) < 0.3 for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.remove_(masks[name])
    for name, layer in layers.items():
        assert torch.equal(layer.weight() == 0, masks[name]), name
    n_zero = sum(int((layer.module.weight == 0).sum()) for layer in {x.module: x for x in layers.values()}.values())
    assert n_zero == sum(int(mask.sum()) for mask in masks.values())
    pruned = {id(layer.module.weight) for layer in layers.values()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in pruned:
            assert torch.equal(parameter, others[name]), name


# ------------------------------------------------------------------ fused modules, checked by what they compute


def fused_attention(model: PreTrainedModel) -> str | None:
    """Return the name of the fused attention module in the first block, if there is one."""
    names = [name for name in block_layers(decoder_blocks(model)[1][0]) if name.endswith(".k")]
    return names[0].removesuffix(".k") if names else None


WITH_FUSED_ATTENTION = [name for name, family in FAMILIES.items() if ".k " in family.attention[1]]
WITH_FUSED_MLP = [name for name, family in FAMILIES.items() if ".gate " in family.mlp[1]]


@torch.no_grad()
def keys_and_values(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Return what the first block's attention keeps in its cache: (n, heads, seq_len, head_dim) of each."""
    cache = model(torch.from_numpy(WINDOWS), use_cache=True).past_key_values
    return cache.layers[0].keys, cache.layers[0].values


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    yield seen
    hook.remove()


@pytest.mark.parametrize("family", WITH_FUSED_ATTENTION)
def test_a_part_that_is_zero_is_that_part_of_the_attention(family: str) -> None:
    model = family_model(family)
    module = fused_attention(model)
    layers = {part: block_layers(decoder_blocks(model)[1][0])[f"{module}.{part}"] for part in "qkv"}
    with torch.no_grad():
        for layer in layers.values():
            if layer.module.bias is not None:
                layer.module.bias.zero_()
    keys, values = keys_and_values(model)
    assert keys.count_nonzero() == keys.numel() and values.count_nonzero() == values.numel()
    for part, layer in layers.items():
        dense = layer.weight().clone()
        layer.remove_(torch.ones_like(dense, dtype=torch.bool))
        new_keys, new_values = keys_and_values(model)
        assert_close(new_keys, torch.zeros_like(keys) if part == "k" else keys)
        assert_close(new_values, torch.zeros_like(values) if part == "v" else values)
        layer.set_weight_(dense)
    assert_close(keys_and_values(model), (keys, values), rtol=0, atol=0)


@pytest.mark.parametrize("family", WITH_FUSED_ATTENTION)
def test_the_rows_of_keys_and_values_are_in_the_order_of_heads(family: str) -> None:
    model = family_model(family)
    module = fused_attention(model)
    layers = {part: block_layers(decoder_blocks(model)[1][0])[f"{module}.{part}"] for part in "kv"}
    with inputs_of(layers["k"].module) as seen:
        found = dict(zip("kv", keys_and_values(model), strict=True))
    if family == "persimmon":  # its keys are normalised before they are kept
        del found["k"]
    for part, kept in found.items():
        layer = layers[part]
        out = seen[0] @ layer.weight().T
        if layer.module.bias is not None:
            out = out + layer.module.bias.detach()[layer.rows]
        heads = out.unflatten(-1, (-1, kept.shape[-1])).transpose(1, 2)
        heads = heads.repeat_interleave(kept.shape[1] // heads.shape[1], dim=1)  # Falcon keeps one for each query
        # Rotary embeddings turn keys by an angle that grows with the position; the first is as it was.
        positions = slice(0, 1) if part == "k" else slice(None)
        assert_close(kept[:, :, positions], heads[:, :, positions])


@pytest.mark.parametrize("family", WITH_FUSED_MLP)
@torch.no_grad()
def test_gate_and_up_are_what_they_are_called(family: str) -> None:
    model = family_model(family)
    block = decoder_blocks(model)[1][0]
    layers = block_layers(block)
    gate, up, down = (layers[f"mlp.{name}"] for name in ("gate_up_proj.gate", "gate_up_proj.up", "down_proj"))
    with inputs_of(gate.module) as entering, inputs_of(down.module) as leaving:
        model(torch.from_numpy(WINDOWS))
    silu = nn.functional.silu
    assert_close(leaving[0], silu(entering[0] @ gate.weight().T) * (entering[0] @ up.weight().T))


def test_every_known_layout_is_tested() -> None:
    owners = set()
    for name in FAMILIES:
        for block in decoder_blocks(family_model(name))[1]:
            for path, module in block.named_modules():
                for own, _ in module.named_children():
                    owners.add((f"{type(module).__name__}.{own}", path != ""))
    assert set(FUSED) <= {owner for owner, inside in owners if inside}


@pytest.mark.parametrize("method", ["wanda", "magnitude", "magnitude_row"])
@torch.no_grad()
def test_fused_layers_are_pruned_as_the_separate_ones(method: str) -> None:
    """Phi-3 is Llama with fused projections: with equal weights the masks are equal, whatever competes with what."""
    fused, separate = family_model("phi3").double(), family_model("llama", rms_norm_eps=1e-5).double()
    twins = {}  # fused layer -> separate layer
    for name in all_layers(fused):
        path, _, part = name.replace("qkv_proj.", "").replace("gate_up_proj.", "").rpartition(".")
        twins[name] = f"{path}.{part.removesuffix('_proj')}_proj"
    separate.load_state_dict({k: v for k, v in fused.state_dict().items() if "_proj" not in k}, strict=False)
    for name, layer in all_layers(fused).items():
        all_layers(separate)[twins[name]].set_weight_(layer.weight())
    ids = torch.from_numpy(WINDOWS)
    assert_close(separate(ids).logits, fused(ids).logits)
    for model in (separate, fused):
        prune_(model, Request(METHODS[method], 0.4, Pattern()), WINDOWS, progress=False)
    for name, layer in all_layers(fused).items():
        assert torch.equal(layer.weight(), all_layers(separate)[twins[name]].weight()), name


# ------------------------------------------------------------------ the walk and pruning


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("tokens_per_call", [11, 33])  # one window at a time; 3 and then 2
@torch.no_grad()
def test_the_walk_follows_the_forward(family: str, tokens_per_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib_study.walk.TOKENS_PER_CALL", tokens_per_call)
    model = family_model(family)
    blocks = decoder_blocks(model)[1]
    outputs: list[list[Tensor]] = [[] for _ in blocks]
    hooks = [
        block.register_forward_hook(
            lambda _, __, out, i=i: outputs[i].append(out[0] if isinstance(out, tuple) else out)
        )
        for i, block in enumerate(blocks)
    ]
    model(torch.from_numpy(WINDOWS), use_cache=False)
    for hook in hooks:
        hook.remove()
    walk = Walk(model, WINDOWS)
    for index, (output,) in enumerate(outputs):
        walk.advance(index)
        assert_close(torch.cat(walk.hidden), output)
    assert n_hooks(model) == 0


@pytest.mark.parametrize(
    ("method", "schedule"), [("wanda", "block"), ("wanda", "sequential"), ("wanda", "dense"), ("magnitude", "block")]
)
def test_half_of_everything_is_removed_exactly(family: str, method: str, schedule: str) -> None:
    model = family_model(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    prune_(model, Request(METHODS[method], 0.5, Pattern()), WINDOWS, schedule=schedule, progress=False)
    assert achieved_sparsity(model)[0] == 0.5
    for name, layer in all_layers(model).items():
        zeros = layer.weight() == 0
        assert zeros.sum() == layer.d_out * layer.d_in // 2, name
        assert method == "magnitude" or zeros.sum(1).eq(layer.d_in // 2).all(), name
    pruned = {id(layer.module.weight) for layer in all_layers(model).values()}
    for name, parameter in model.named_parameters():
        kept = parameter != 0 if id(parameter) in pruned else torch.ones_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter[kept], before[name][kept]), name


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_every_method_prunes_every_family(family: str, pattern: str) -> None:
    model = family_model(family)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, method in METHODS.items():
        model.load_state_dict(dense)
        request = Request(method, 0.5, Pattern.parse(pattern))
        if name == "wanda_variant" and pattern != "unstructured":
            with pytest.raises(InputError, match="has no N:M form"):
                prune_(model, request, WINDOWS, progress=False)
            continue
        prune_(model, request, WINDOWS, progress=False)
        if name == "wanda_variant":  # each row loses the same share of its scores, not of its weights
            assert 0.4 < achieved_sparsity(model)[0] < 0.7
            continue
        assert achieved_sparsity(model)[0] == (0.0 if name == "dense" else 0.5), name
        if pattern != "unstructured" and name != "dense":
            kept, group = map(int, pattern.split(":"))
            for layer in all_layers(model).values():
                assert (layer.weight() != 0).unflatten(1, (-1, group)).sum(2).eq(kept).all(), (name, layer.name)


@pytest.mark.parametrize(("training", "schedule"), [(True, "block"), (False, "sequential")])
def test_the_model_is_left_as_it_was_after_success_and_failure(family: str, training: bool, schedule: str) -> None:
    model = family_model(family)
    model.train(training)
    model.config.use_cache = training
    request = Request(METHODS["wanda"], 0.5, Pattern())
    prune_(model, request, WINDOWS, schedule=schedule, progress=False)
    assert (model.training, model.config.use_cache, n_hooks(model)) == (training, training, 0)
    with torch.no_grad():
        model.get_input_embeddings().weight[WINDOWS[0, 0]] = torch.nan
    with pytest.raises(NumericalError, match=rf"^{FAMILIES[family].blocks}\.0\."):
        prune_(model, request, WINDOWS, schedule=schedule, progress=False)
    assert (model.training, model.config.use_cache, n_hooks(model)) == (training, training, 0)
    assert torch.is_grad_enabled()


def test_sparsity_zero_changes_nothing(family: str) -> None:
    model = family_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prune_(model, Request(METHODS["wanda"], 0.0, Pattern()), WINDOWS, progress=False)
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
