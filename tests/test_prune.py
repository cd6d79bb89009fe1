"""The walk: equal to a plain forward when nothing is pruned, and to a textbook walk when something is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from calib_study import masks, walk
from calib_study.criteria import Request
from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.layers import all_layers, block_layers, decoder_blocks
from calib_study.methods import METHODS, Pattern
from calib_study.moment_cache import MomentCache
from calib_study.offload import Placement
from calib_study.prune import achieved_sparsity, allocated, prune_
from calib_study.specs import Owl
from calib_study.walk import Walk

TOKENS = np.random.default_rng(0).integers(0, 97, (5, 11))


def request(method: str, sparsity: float = 0.5, pattern: str = "unstructured", seed: int = 0) -> Request:
    return Request(METHODS[method], sparsity, Pattern.parse(pattern), seed)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: layer.weight().clone() for name, layer in all_layers(model).items()}


def copy_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


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
    monkeypatch.setattr(walk, "TOKENS_PER_CALL", tokens_per_call)
    with torch.no_grad():
        states = Walk(tiny_model, TOKENS)
        for index in range(len(states.blocks)):
            states.advance(index)
        found = tiny_model.model.norm(torch.cat(states.hidden))
        wanted = tiny_model.model(torch.from_numpy(TOKENS)).last_hidden_state
    assert_close(found, wanted)


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
@torch.no_grad()
def test_wanda_is_the_textbook_walk(tiny_model: LlamaForCausalLM, sparsity: float) -> None:
    other = copy_of(tiny_model)
    textbook_wanda_(other, TOKENS, sparsity)
    prune_(tiny_model, request("wanda", sparsity), TOKENS, progress=False)
    for (name, mine), theirs in zip(weights(tiny_model).items(), weights(other).values(), strict=True):
        assert torch.equal(mine, theirs), name


@torch.no_grad()
def test_statistics_do_not_depend_on_the_batch(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for tokens_per_call in (1, 33, 1024):
        monkeypatch.setattr(walk, "TOKENS_PER_CALL", tokens_per_call)
        norms.append({name: m.norms() for name, m in Walk(tiny_model, TOKENS).moments(0, gram=False).items()})
    for other in norms[1:]:
        assert_close(other, norms[0], rtol=1e-6, atol=0)


@torch.no_grad()
def test_norms_are_those_of_the_tensors_that_enter_each_linear(tiny_model: LlamaForCausalLM) -> None:
    seen: dict[str, torch.Tensor] = {}
    block = tiny_model.model.layers[0]
    hooks = [
        layer.module.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].double()))
        for name, layer in block_layers(block).items()
    ]
    tiny_model(torch.from_numpy(TOKENS))
    for hook in hooks:
        hook.remove()
    moments = Walk(tiny_model, TOKENS).moments(0, gram=True)
    assert set(moments) == set(seen)
    for name, tensor in seen.items():
        flat = tensor.reshape(-1, tensor.shape[-1])
        assert_close(moments[name].norms(), flat.square().sum(0).sqrt().float(), rtol=1e-6, atol=0)
        assert_close(moments[name].mean(), flat.mean(0), rtol=1e-5, atol=1e-8)
        assert_close(moments[name].variance(), tensor.var(1, correction=0).mean(0), rtol=1e-5, atol=1e-8)
        assert_close(moments[name].gram, flat.T @ flat, rtol=1e-5, atol=1e-6)
    norms = {name: m.norms() for name, m in moments.items()}
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
    for name, weight in weights(tiny_model).items():
        zeros = weight == 0
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
        model = copy_of(tiny_model)
        prune_(model, request("random", seed=seed), progress=False)
        return torch.cat([weight.flatten() == 0 for weight in weights(model).values()])

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))


def test_everything_is_restored_after_success_and_failure(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.train()
    tiny_model.config.use_cache = True
    prune_(tiny_model, request("wanda"), TOKENS, progress=False)
    assert tiny_model.training and tiny_model.config.use_cache and n_hooks(tiny_model) == 0
    with torch.no_grad():
        tiny_model.model.embed_tokens.weight[TOKENS[0, 0]] = float("nan")
    with pytest.raises(NumericalError, match=r"model\.layers\.0\.self_attn\.q_proj: its calibration inputs"):
        prune_(tiny_model, request("wanda"), TOKENS, progress=False)
    assert tiny_model.training and tiny_model.config.use_cache and n_hooks(tiny_model) == 0


def test_a_pattern_that_does_not_fit_is_named_before_any_work(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=r"3:5 does not fit model\.layers\.\*\.self_attn\.q_proj: its 32 inputs"):
        prune_(tiny_model, request("wanda", 0.4, "3:5"), TOKENS, progress=False)


def test_calibration_that_is_needed_and_missing_is_an_error(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match="needs calibration windows"):
        prune_(tiny_model, request("wanda"), None, progress=False)


def test_blocks_are_found_and_what_is_no_decoder_is_refused(tiny_model: LlamaForCausalLM) -> None:
    assert decoder_blocks(tiny_model)[0] == "model.layers"
    with pytest.raises(StudyError, match=r"Looked for a torch\.nn\.ModuleList"):
        decoder_blocks(nn.Sequential(nn.Linear(3, 5)))


def reference_(model: LlamaForCausalLM, wanted: Request, stages: list[list[str]] | None) -> None:
    """Wanda with statistics gathered in as many passes as it takes: of the dense model (None), or stage by stage."""
    batch = torch.from_numpy(TOKENS)

    def norms_of(names: list[str]) -> dict[str, torch.Tensor]:
        seen: dict[str, torch.Tensor] = {}
        layers = all_layers(model)
        hooks = [
            layers[name].module.register_forward_pre_hook(
                lambda _, x, name=name: seen.__setitem__(name, x[0].double().square().sum((0, 1)).sqrt())
            )
            for name in names
        ]
        model(batch)
        for hook in hooks:
            hook.remove()
        return seen

    for names in stages or [list(all_layers(model))]:
        for name, norms in norms_of(names).items():
            layer = all_layers(model)[name]
            worth = layer.weight().abs().double() * norms
            layer.remove_(masks.removed_by(worth.float(), wanted.sparsity, wanted.pattern, "row"))


STAGES = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
STAGES += [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]


@pytest.mark.parametrize("tokens_per_call", [11, 22, 1024])
@torch.no_grad()
def test_sequential_prunes_each_group_on_what_the_pruned_ones_before_it_give(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, tokens_per_call: int
) -> None:
    monkeypatch.setattr(walk, "TOKENS_PER_CALL", tokens_per_call)
    other = copy_of(tiny_model)
    stages = [[f"model.layers.{b}.{name}" for name in names] for b in range(2) for names in STAGES]
    reference_(other, request("wanda"), stages)
    prune_(tiny_model, request("wanda"), TOKENS, schedule="sequential", progress=False)
    assert_close(weights(tiny_model), weights(other), rtol=0, atol=0)


@torch.no_grad()
def test_dense_takes_all_statistics_of_the_dense_model(tiny_model: LlamaForCausalLM) -> None:
    other = copy_of(tiny_model)
    reference_(other, request("wanda"), None)
    prune_(tiny_model, request("wanda"), TOKENS, schedule="dense", progress=False)
    assert_close(weights(tiny_model), weights(other), rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["block", "sequential", "dense"])
def test_a_failure_in_any_schedule_leaves_no_hook(tiny_model: LlamaForCausalLM, schedule: str) -> None:
    tiny_model.train()
    with torch.no_grad():
        tiny_model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.down_proj: its calibration inputs"):
        prune_(tiny_model, request("wanda"), TOKENS, schedule=schedule, progress=False)
    assert tiny_model.training and n_hooks(tiny_model) == 0


@pytest.mark.parametrize("schedule", ["block", "sequential", "dense"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "dsnot"])
def test_every_method_prunes_exactly_in_every_schedule(
    tiny_model: LlamaForCausalLM, method: str, pattern: str, schedule: str
) -> None:
    tokens = np.random.default_rng(1).integers(0, 97, (16, 16))  # more tokens than inputs: no singular Gram matrix
    prune_(tiny_model, request(method, 0.5, pattern), tokens, schedule=schedule, progress=False)
    for name, weight in weights(tiny_model).items():
        zeros = weight == 0
        if pattern != "unstructured":
            kept, group = map(int, pattern.split(":"))
            assert (~zeros).reshape(zeros.shape[0], -1, group).sum(2).eq(kept).all(), name
        assert zeros.sum() == zeros.numel() // 2, name


def test_sparsegpt_moves_what_it_keeps_and_hurts_less_than_its_mask_alone(tiny_model: LlamaForCausalLM) -> None:
    tokens = np.random.default_rng(1).integers(0, 97, (16, 16))
    dense, before = weights(tiny_model), tiny_model(torch.from_numpy(tokens)).logits.detach()
    prune_(tiny_model, request("sparsegpt"), tokens, progress=False)
    with_update = (tiny_model(torch.from_numpy(tokens)).logits - before).square().mean().item()
    moved = weights(tiny_model)
    assert all(not torch.equal(moved[name][moved[name] != 0], dense[name][moved[name] != 0]) for name in moved)
    for name, layer in all_layers(tiny_model).items():
        layer.set_weight_(dense[name].masked_fill(moved[name] == 0, 0))
    mask_only = (tiny_model(torch.from_numpy(tokens)).logits - before).square().mean().item()
    assert with_update < mask_only


def test_dsnot_leaves_the_skipped_role_as_it_was(tiny_model: LlamaForCausalLM) -> None:
    other = copy_of(tiny_model)
    exact = {"threshold": 0.0}
    prune_(tiny_model, Request(METHODS["dsnot"], 0.5, Pattern(), 0, exact), TOKENS, schedule="dense", progress=False)
    prune_(other, request("wanda"), TOKENS, schedule="dense", progress=False)
    mine, theirs = weights(tiny_model), weights(other)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if ".mlp." in name)
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine if ".self_attn." in name)


def test_owl_gives_blocks_different_shares_of_the_same_whole(tiny_model: LlamaForCausalLM) -> None:
    owl = Owl(lam=0.1, outlier_multiple=2.0)
    shares = allocated(tiny_model, request("wanda", 0.6), TOKENS, owl, progress=False)
    assert [share.sparsity for share in shares] == pytest.approx(
        [0.5, 0.7] if shares[0].sparsity < shares[1].sparsity else [0.7, 0.5]
    )
    prune_(tiny_model, shares, TOKENS, progress=False)
    _, per_layer = achieved_sparsity(tiny_model)
    for index, share in enumerate(shares):
        found = [value for name, value in per_layer.items() if f".layers.{index}." in name]
        assert found == pytest.approx([share.sparsity] * 7, abs=1 / 32)


@pytest.mark.parametrize("hidden", ["device", "cpu", "file"])
@pytest.mark.parametrize("schedule", ["block", "sequential", "dense"])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "dsnot"])
def test_blocks_pruned_away_from_home_are_those_pruned_at_home(
    tiny_model: LlamaForCausalLM, method: str, schedule: str, hidden: Placement
) -> None:
    other = copy_of(tiny_model)
    prune_(tiny_model, request(method), TOKENS, schedule=schedule, progress=False)
    prune_(other, request(method), TOKENS, schedule=schedule, device="cpu", hidden=hidden, progress=False)
    assert_close(weights(other), weights(tiny_model), rtol=0, atol=0)


def test_owl_and_kept_statistics_serve_a_model_whose_blocks_visit_the_device(
    tiny_model: LlamaForCausalLM, tmp_path: Path
) -> None:
    other, cache, owl = copy_of(tiny_model), MomentCache("tiny", tmp_path), Owl(lam=0.1, outlier_multiple=2.0)
    shares = allocated(tiny_model, request("wanda", 0.6), TOKENS, owl, progress=False)
    for _ in range(2):  # computed, then read
        found = allocated(other, request("wanda", 0.6), TOKENS, owl, cache=cache, device="cpu", progress=False)
        assert [share.sparsity for share in found] == [share.sparsity for share in shares]
    prune_(tiny_model, shares, TOKENS, schedule="dense", progress=False)
    prune_(other, shares, TOKENS, schedule="dense", cache=cache, device="cpu", progress=False)
    assert_close(weights(other), weights(tiny_model), rtol=0, atol=0)


def test_weights_that_are_not_in_memory_are_refused_before_any_work(tiny_model: LlamaForCausalLM) -> None:
    tiny_model.model.layers[1].to("meta")
    with pytest.raises(InputError, match=r"model\.layers\.1\.\S+ is not in memory"):
        prune_(tiny_model, request("magnitude"), progress=False)
