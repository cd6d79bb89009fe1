"""The walk: equal to a plain forward when nothing is pruned, and to a textbook walk when something is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from calib_study import masks, prune, scores
from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.methods import METHODS, Pattern
from calib_study.models import all_linears, block_linears, decoder_blocks
from calib_study.prune import Request, achieved_sparsity, check_pattern, prune_

TOKENS = np.random.default_rng(0).integers(0, 97, (5, 11))


def request(method: str, sparsity: float = 0.5, pattern: str = "unstructured", seed: int = 0) -> Request:
    return Request(METHODS[method], sparsity, Pattern.parse(pattern), seed)


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def textbook_wanda_(model: LlamaForCausalLM, tokens: np.ndarray, sparsity: float) -> None:
    """Wanda one window at a time with a full stable sort, float64 norms: slow, and written without the engine."""
    layers = model.model.layers
    hidden = [model.model.embed_tokens(torch.from_numpy(window)[None]) for window in tokens]
    rotary = model.model.rotary_emb(hidden[0], torch.arange(tokens.shape[1])[None])
    for layer in layers:
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        squares = {name: torch.zeros(m.in_features, dtype=torch.float64) for name, m in linears.items()}

        def add(name: str, squares: dict[str, torch.Tensor] = squares):  # type: ignore[no-untyped-def]
            def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                squares[name] += inputs[0][0].double().square().sum(0)

            return hook

        handles = [m.register_forward_pre_hook(add(name)) for name, m in linears.items()]
        for window in hidden:
            layer(window, position_embeddings=rotary)
        for handle in handles:
            handle.remove()
        for name, m in linears.items():
            order = (m.weight.abs().double() * squares[name].sqrt()).argsort(dim=1, stable=True)
            m.weight.scatter_(1, order[:, : int(m.in_features * sparsity)], 0)
        hidden = [layer(window, position_embeddings=rotary) for window in hidden]


@pytest.mark.parametrize("tokens_per_call", [1, 22, 1024])
def test_hidden_states_of_the_walk_are_those_of_a_plain_forward(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, tokens_per_call: int
) -> None:
    monkeypatch.setattr(prune, "TOKENS_PER_CALL", tokens_per_call)
    with torch.no_grad():
        walk = prune._Walk(tiny_model, TOKENS)
        for index in range(len(walk.blocks)):
            walk.advance(index)
        found = tiny_model.model.norm(torch.cat(walk.hidden))
        wanted = tiny_model.model(torch.from_numpy(TOKENS)).last_hidden_state
    assert_close(found, wanted)


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
@torch.no_grad()
def test_wanda_is_the_textbook_walk(tiny_model: LlamaForCausalLM, sparsity: float) -> None:
    other = LlamaForCausalLM(tiny_model.config).eval()
    other.load_state_dict(tiny_model.state_dict())
    textbook_wanda_(other, TOKENS, sparsity)
    prune_(tiny_model, request("wanda", sparsity), TOKENS, progress=False)
    for (name, mine), theirs in zip(all_linears(tiny_model).items(), all_linears(other).values(), strict=True):
        assert torch.equal(mine.weight == 0, theirs.weight == 0), name
        assert mine.weight[theirs.weight != 0].equal(theirs.weight[theirs.weight != 0])


@torch.no_grad()
def test_statistics_do_not_depend_on_the_batch(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for tokens_per_call in (1, 33, 1024):
        monkeypatch.setattr(prune, "TOKENS_PER_CALL", tokens_per_call)
        norms.append(prune._Walk(tiny_model, TOKENS).input_norms(0))
    for other in norms[1:]:
        assert_close(other, norms[0], rtol=1e-6, atol=0)


@torch.no_grad()
def test_norms_are_those_of_the_tensors_that_enter_each_linear(tiny_model: LlamaForCausalLM) -> None:
    seen: dict[str, torch.Tensor] = {}
    block = tiny_model.model.layers[0]
    hooks = [
        m.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].double()))
        for name, m in block_linears(block).items()
    ]
    tiny_model(torch.from_numpy(TOKENS))
    for hook in hooks:
        hook.remove()
    norms = prune._Walk(tiny_model, TOKENS).input_norms(0)
    assert set(norms) == set(seen)
    for name, tensor in seen.items():
        assert_close(norms[name], tensor.square().sum((0, 1)).sqrt().float(), rtol=1e-6, atol=0)
    assert torch.equal(norms["self_attn.q_proj"], norms["self_attn.v_proj"])
    assert not torch.equal(norms["self_attn.q_proj"][:5], norms["mlp.up_proj"][:5])


@pytest.mark.parametrize("method", ["random", "magnitude", "magnitude_row", "wanda"])
@pytest.mark.parametrize(("sparsity", "pattern"), [(0.4, "unstructured"), (0.5, "2:4"), (0.5, "4:8"), (0.75, "1:4")])
def test_counts_are_exact_in_every_pattern(
    tiny_model: LlamaForCausalLM, method: str, sparsity: float, pattern: str
) -> None:
    embedding, head = tiny_model.model.embed_tokens.weight.clone(), tiny_model.lm_head.weight.clone()
    prune_(tiny_model, request(method, sparsity, pattern), TOKENS, progress=False)
    overall, per_layer = achieved_sparsity(tiny_model)
    assert len(per_layer) == 14
    for name, linear in all_linears(tiny_model).items():
        zeros = linear.weight == 0
        if pattern != "unstructured":
            kept, group = map(int, pattern.split(":"))
            assert (~zeros).reshape(zeros.shape[0], -1, group).sum(2).eq(kept).all(), name
        elif method == "magnitude":
            assert zeros.sum() == masks.n_removed(zeros.numel(), sparsity), name
        else:
            assert zeros.sum(1).eq(masks.n_removed(zeros.shape[1], sparsity)).all(), name
        assert per_layer[name] == zeros.sum().item() / zeros.numel()
    assert overall == pytest.approx(sparsity, abs=1 / 32)  # whole weights: 12 of 32 for 0.4
    assert torch.equal(embedding, tiny_model.model.embed_tokens.weight)
    assert torch.equal(head, tiny_model.lm_head.weight)


def test_sparsity_zero_changes_nothing(tiny_model: LlamaForCausalLM) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    prune_(tiny_model, request("wanda", 0.0), TOKENS, progress=False)
    assert_close(dict(tiny_model.state_dict()), before, rtol=0, atol=0)


def test_random_masks_follow_the_seed(tiny_model: LlamaForCausalLM) -> None:
    def mask(seed: int) -> torch.Tensor:
        model = LlamaForCausalLM(tiny_model.config)
        model.load_state_dict(tiny_model.state_dict())
        prune_(model, request("random", seed=seed), progress=False)
        return torch.cat([linear.weight.flatten() == 0 for linear in all_linears(model).values()])

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))


def test_everything_is_restored_after_success_and_failure(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.train()
    tiny_model.config.use_cache = True
    prune_(tiny_model, request("wanda"), TOKENS, progress=False)
    assert tiny_model.training and tiny_model.config.use_cache and n_hooks(tiny_model) == 0
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[TOKENS[0, 0]] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.0\.self_attn\.q_proj: the norms"):
        prune_(tiny_model, request("wanda"), TOKENS, progress=False)
    assert tiny_model.training and tiny_model.config.use_cache and n_hooks(tiny_model) == 0


def test_a_pattern_that_does_not_fit_is_named_before_any_work(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=r"3:5 does not fit model\.layers\.0\.self_attn\.q_proj: its 32 inputs"):
        check_pattern(tiny_model, Pattern(3, 5))


def test_calibration_that_is_needed_and_missing_is_an_error(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="needs calibration windows"):
        prune_(tiny_model, request("wanda"), None, progress=False)


def test_blocks_are_found_and_what_is_no_decoder_is_refused(tiny_model: LlamaForCausalLM) -> None:
    assert decoder_blocks(tiny_model)[0] == "model.layers"
    with pytest.raises(StudyError, match=r"Looked for a torch\.nn\.ModuleList"):
        decoder_blocks(nn.Sequential(nn.Linear(3, 5)))


def test_scores_of_a_registered_name_only(tiny_model: LlamaForCausalLM) -> None:
    weight = next(iter(all_linears(tiny_model).values())).weight
    with pytest.raises(InputError, match="unknown pruning criterion 'wanda'"):
        prune._removed(weight, None, "layer", request("wanda"))
    assert scores.magnitude(weight).shape == weight.shape
