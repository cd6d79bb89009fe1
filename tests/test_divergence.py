"""Divergence: known values by hand, float64 brute force, then one model beside another."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import family_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM, PreTrainedModel

from calib_study import divergence as module
from calib_study import perplexity as perplexity_module
from calib_study.divergence import (
    DenseOutputs,
    Divergence,
    check_vocabularies,
    divergence_between,
    jensen_shannon,
    kl,
    score,
)
from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.layers import all_layers
from calib_study.methods import METHODS, Pattern
from calib_study.perplexity import mean_over_windows, padded, perplexity
from calib_study.prune import Request, prune_
from calib_study.study import Laboratory
from calib_study.windows import draw_windows

TOKENS = np.random.default_rng(0).integers(1, 97, (5, 11))
LN_2 = math.log(2)


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


# ------------------------------------------------------------------ distributions


def test_two_tokens_by_hand() -> None:
    p, q = logs(1 / 2, 1 / 2), logs(1 / 4, 3 / 4)
    # KL(p || q) = 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3
    assert kl(p, q).item() == pytest.approx(math.log(4 / 3) / 2, rel=1e-6)
    # KL(q || p) = 1/4 ln 1/2 + 3/4 ln 3/2
    assert kl(q, p).item() == pytest.approx(math.log(1 / 2) / 4 + 3 / 4 * math.log(3 / 2), rel=1e-6)
    # m = (3/8, 5/8). KL(p || m) = 1/2 ln 4/3 + 1/2 ln 4/5; KL(q || m) = 1/4 ln 2/3 + 3/4 ln 6/5.
    to_m = math.log(4 / 3) / 2 + math.log(4 / 5) / 2, math.log(2 / 3) / 4 + 3 / 4 * math.log(6 / 5)
    assert jensen_shannon(p, q).item() == pytest.approx(sum(to_m) / 2, rel=1e-6)


def test_equal_distributions_are_at_zero_and_disjoint_ones_at_ln_2() -> None:
    p, q = logs(0.3, 0.7, 0, 0, 0), logs(0, 0, 0.2, 0.2, 0.6)
    assert jensen_shannon(p, p).item() == 0
    assert kl(p, p).item() == 0
    assert jensen_shannon(p, q).item() == pytest.approx(LN_2, rel=1e-6)
    assert kl(p, q).item() == kl(q, p).item() == math.inf


def test_what_one_excludes_counts_nothing_there() -> None:
    """0 ln 0 = 0: only where the second excludes what the first has is KL infinite."""
    certain, even = logs(1, 0, 0), logs(1 / 2, 1 / 2, 0)
    assert kl(certain, even).item() == pytest.approx(LN_2, rel=1e-6)
    assert kl(even, certain).item() == math.inf
    # m = (3/4, 1/4): 1/2 (ln 4/3) + 1/2 (1/2 ln 2/3 + 1/2 ln 2)
    wanted = math.log(4 / 3) / 2 + (math.log(2 / 3) + math.log(2)) / 4
    assert jensen_shannon(certain, even).item() == pytest.approx(wanted, rel=1e-6)
    both = kl(torch.stack([certain, even]), torch.stack([even, even]))  # rows do not affect each other
    assert_close(both, torch.tensor([LN_2, 0.0]))


def test_a_probability_too_small_for_a_float_counts_nothing() -> None:
    p, q = torch.tensor([0.0, -1000.0]), torch.tensor([-1000.0, 0.0])
    assert jensen_shannon(p, q).item() == pytest.approx(LN_2, rel=1e-6)
    assert kl(p, q).item() == pytest.approx(1000, rel=1e-6)
    assert kl(p, torch.tensor([0.0, -math.inf])).item() == 0


def test_what_is_not_a_number_stays_so() -> None:
    spoilt = torch.tensor([math.nan, -1.0])
    for found in (kl(spoilt, logs(0.5, 0.5)), kl(logs(0.5, 0.5), spoilt), jensen_shannon(spoilt, logs(0, 1))):
        assert found.isnan()


def pair(seed: int, scale: float, shape: tuple[int, ...] = (3, 5, 97)) -> tuple[Tensor, Tensor]:
    """Return logits of two models, float32."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(2, *shape, generator=generator))  # type: ignore[return-value]


def brute_force(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """Return JS and KL both ways of two vectors of logits, summed one entry after the other in float64."""
    p, q = (row.double().softmax(0).tolist() for row in (one, other))
    js, forward, backward = 0.0, 0.0, 0.0
    for a, b in zip(p, q, strict=True):
        forward += a * math.log(a / b)
        backward += b * math.log(b / a)
        js += a / 2 * math.log(2 * a / (a + b)) + b / 2 * math.log(2 * b / (a + b))
    return js, forward, backward


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_float64_brute_force(scale: float) -> None:
    one, other = pair(0, scale)
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    found = torch.stack([jensen_shannon(log_p, log_q), kl(log_p, log_q), kl(log_q, log_p)], -1)
    wanted = [brute_force(a, b) for a, b in zip(one.reshape(-1, 97), other.reshape(-1, 97), strict=True)]
    assert found.shape == (3, 5, 3) and found.dtype == torch.float32
    # Sums of float32 logarithms: a few units of 1e-7 each, whatever the size of the result.
    assert_close(found.reshape(-1, 3).double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), scale=st.floats(0, 300), d_vocab=st.integers(1, 31))
def test_bounded_and_symmetric(seed: int, scale: float, d_vocab: int) -> None:
    one, other = pair(seed, scale, (4, d_vocab))
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    found = jensen_shannon(log_p, log_q)
    assert ((found >= 0) & (found <= torch.tensor(LN_2))).all()
    assert_close(found, jensen_shannon(log_q, log_p), rtol=1e-6, atol=1e-7)
    assert (kl(log_p, log_q) >= 0).all()
    # KL is convex, so KL(p || m) <= (KL(p || p) + KL(p || q)) / 2.
    assert (found <= (kl(log_p, log_q) + kl(log_q, log_p)) / 4 + 1e-6).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), shifts=st.tuples(st.floats(-50, 50), st.floats(-50, 50)))
def test_a_constant_added_to_all_logits_changes_nothing(seed: int, shifts: tuple[float, float]) -> None:
    one, other = pair(seed, 2.0)
    moved = [(x.double() + shift).log_softmax(-1) for x, shift in zip((one, other), shifts, strict=True)]
    still = [x.double().log_softmax(-1) for x in (one, other)]
    assert_close(jensen_shannon(*moved), jensen_shannon(*still), rtol=1e-9, atol=1e-12)
    assert_close(kl(*moved), kl(*still), rtol=1e-9, atol=1e-12)


def test_the_root_is_a_metric() -> None:
    p, q, r = (x.log_softmax(-1) for x in (*pair(0, 2.0), pair(1, 2.0)[0]))
    assert (jensen_shannon(p, r).sqrt() <= jensen_shannon(p, q).sqrt() + jensen_shannon(q, r).sqrt()).all()


# ------------------------------------------------------------------ one model beside another


@torch.no_grad()
def prune_at_random(model: PreTrainedModel, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in all_layers(model).values():
        layer.remove_(torch.rand(layer.d_out, layer.d_in, generator=generator) < 0.5)


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokens: np.ndarray = TOKENS) -> Tensor:
    logits: Tensor = model(torch.from_numpy(tokens), use_cache=False).logits
    return logits


def wanted_means(dense: Tensor, pruned: Tensor, index: int, length: int) -> list[float]:
    """Return a window's JS, KL both ways and agreement over its first `length` - 1 positions, by brute force."""
    rows = [(dense[index, t], pruned[index, t]) for t in range(length - 1)]
    values = [(*brute_force(a, b), float(a.argmax() == b.argmax())) for a, b in rows]
    return [float(value) for value in np.mean(values, axis=0)]


def by_window(found: Divergence) -> np.ndarray:
    means = (found.jensen_shannon, found.kl_dense_pruned, found.kl_pruned_dense, found.agreement)
    return np.array([mean.by_window for mean in means]).T


@pytest.fixture
def large(tiny_model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The tiny model with weights five times as large, so that its distributions are far from uniform."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return tiny_model


@pytest.mark.tiny
def test_a_model_pruned_in_place_beside_its_dense_outputs(large: LlamaForCausalLM) -> None:
    dense_logits = logits_of(large)
    dense = DenseOutputs(large, TOKENS)
    for seed in (0, 1):  # one after the other: the second is compared with the dense one too
        prune_at_random(large, seed)
        found = score(large, TOKENS, dense)[1]
        assert found is not None
        pruned_logits = logits_of(large)
        wanted = np.array([wanted_means(dense_logits, pruned_logits, i, 11) for i in range(5)])
        np.testing.assert_allclose(by_window(found), wanted, rtol=2e-5, atol=1e-6)
        assert found.n_tokens == 5 * 10
        assert found.jensen_shannon == mean_over_windows(by_window(found)[:, 0], [10] * 5)
        assert 0.01 < found.jensen_shannon.value < LN_2 and found.jensen_shannon.stderr > 0


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("mpt", {}),
        ("opt", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 0.5}),
    ],
)
def test_families_that_scale_or_cap_after_the_head(family: str, changes: dict[str, Any]) -> None:
    model = family_model(family, **changes, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # so that a cap is felt
    dense_logits = logits_of(model)
    dense = DenseOutputs(model, TOKENS)
    same = score(model, TOKENS, dense)[1]
    prune_at_random(model)
    found = score(model, TOKENS, dense)[1]
    assert same is not None and found is not None
    assert same.jensen_shannon.value < 1e-7 and same.agreement.value == 1
    wanted = np.array([wanted_means(dense_logits, logits_of(model), i, 11) for i in range(5)])
    np.testing.assert_allclose(by_window(found), wanted, rtol=1e-3, atol=1e-6)
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.tiny
def test_a_dense_model_beside_itself_is_at_zero(large: LlamaForCausalLM) -> None:
    found = score(large, TOKENS, DenseOutputs(large, TOKENS))[1]
    assert found is not None
    # Not exactly 0: the head is given other numbers of rows, which may be summed in another order (measured 4e-9).
    np.testing.assert_allclose(by_window(found), [[0, 0, 0, 1]] * 5, rtol=0, atol=1e-7)
    assert found.agreement.stderr == 0


@pytest.mark.tiny
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perplexity_is_the_same_bit_by_bit_with_and_without_divergence(
    large: LlamaForCausalLM, dtype: torch.dtype
) -> None:
    model = large.to(dtype)
    dense = DenseOutputs(model, TOKENS)
    prune_at_random(model)
    alone = perplexity(model, TOKENS)
    assert score(model, TOKENS) == (alone, None)
    assert score(model, TOKENS, dense)[0] == alone


@pytest.mark.tiny
def test_a_bfloat16_model_is_compared_in_float32(large: LlamaForCausalLM) -> None:
    model = large.bfloat16()
    dense_logits = logits_of(model)
    dense = DenseOutputs(model, TOKENS)
    prune_at_random(model)
    found = score(model, TOKENS, dense)[1]
    assert found is not None and dense_logits.dtype == torch.bfloat16
    wanted = np.array([wanted_means(dense_logits, logits_of(model), i, 11) for i in range(5)])
    np.testing.assert_allclose(by_window(found)[:, :3], wanted[:, :3], rtol=1e-4, atol=1e-6)


@pytest.mark.tiny
def test_one_forward_of_the_pruned_model_and_none_of_the_dense(large: LlamaForCausalLM) -> None:
    dense = DenseOutputs(large, TOKENS)
    seen: list[int] = []
    hook = large.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    score(large, TOKENS, dense)
    hook.remove()
    assert seen == [5]


@pytest.mark.tiny
@pytest.mark.parametrize("family", ["llama", "cohere"])  # by the head, and by a replay of what follows it
def test_the_size_of_calls_and_chunks_does_not_matter(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pruned = family_model(family), family_model(family)
    prune_at_random(pruned)
    wanted = by_window(divergence_between(model, pruned, TOKENS))
    for per_call, positions, entries in [(1, 3, 1), (22, 7, 200), (33, 1, 2**18)]:
        monkeypatch.setattr(perplexity_module, "TOKENS_PER_CALL", per_call)
        monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
        monkeypatch.setattr(module, "POSITIONS_PER_CALL", positions)
        monkeypatch.setattr(module, "ENTRIES_PER_CHUNK", entries)
        np.testing.assert_allclose(by_window(divergence_between(model, pruned, TOKENS)), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.tiny
def test_logits_of_a_few_positions_are_made_at_a_time(large: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = DenseOutputs(large, TOKENS)
    monkeypatch.setattr(dense, "_per_call", 3)
    rows: list[int] = []
    hook = large.get_output_embeddings().register_forward_hook(lambda _, inputs, out: rows.append(out[..., 0].numel()))
    score(large, TOKENS, dense)
    hook.remove()
    assert rows == [55] + [3, 3, 3, 1] * 5  # the pruned model's own, then each window's ten positions


@pytest.mark.tiny
def test_two_models_held_at_once(large: LlamaForCausalLM) -> None:
    dense_logits, dense = logits_of(large), DenseOutputs(large, TOKENS)
    original = family_model("llama", tie_word_embeddings=False)
    original.load_state_dict(large.state_dict(), strict=False)
    prune_at_random(large)
    found = divergence_between(original, large, TOKENS)
    assert_close(logits_of(original), dense_logits)
    beside = score(large, TOKENS, dense)[1]
    assert beside is not None
    np.testing.assert_allclose(by_window(found), by_window(beside), rtol=1e-5, atol=1e-7)
    back = divergence_between(large, original, TOKENS)
    assert back.jensen_shannon.value == pytest.approx(found.jensen_shannon.value, rel=1e-5)
    assert back.kl_dense_pruned.value == pytest.approx(found.kl_pruned_dense.value, rel=1e-5)
    assert back.agreement == found.agreement


@pytest.mark.tiny
def test_masked_positions_are_left_out(large: LlamaForCausalLM) -> None:
    documents = [TOKENS[i, :length] for i, length in enumerate((11, 3, 7))]
    tokens, scored = padded(documents, seq_len=64)
    scored[0, :5] = False  # a prompt
    dense = DenseOutputs(large, tokens, scored)
    dense_logits = logits_of(large, tokens)
    prune_at_random(large)
    found, pruned_logits = score(large, tokens, dense, scored)[1], logits_of(large, tokens)
    assert found is not None
    for index, length in enumerate((11, 3, 7)):
        first = 4 if index == 0 else 0  # the position that predicts token 5
        wanted = wanted_means(dense_logits[:, first:], pruned_logits[:, first:], index, length - first)
        np.testing.assert_allclose(by_window(found)[index], wanted, rtol=2e-5, atol=1e-6)
    assert found.n_tokens == 6 + 2 + 6
    assert found.jensen_shannon.value == pytest.approx(by_window(found)[:, 0] @ [6, 2, 6] / 14)
    assert score(large, tokens, dense, scored)[0] == perplexity(large, tokens, scored)


# ------------------------------------------------------------------ what cannot be compared


def refuse_forward(*_: object, **__: object) -> None:
    raise AssertionError("a forward before the check")


@pytest.mark.tiny
def test_another_vocabulary_is_an_error_before_any_work(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, other = DenseOutputs(tiny_model, TOKENS), family_model("llama", vocab_size=101)
    tiny_model.config.name_or_path = "tiny-a"
    monkeypatch.setattr(module, "forwards", refuse_forward)
    wanted = r"the dense model \(.*\) has a vocabulary of 97 tokens, the other \(LlamaForCausalLM\) one of 101"
    for attempt in (
        lambda: score(other, TOKENS, dense),
        lambda: divergence_between(tiny_model, other, TOKENS),
        lambda: check_vocabularies(tiny_model, other),
    ):
        with pytest.raises(InputError, match=wanted):
            attempt()


@pytest.mark.tiny
def test_other_windows_or_another_mask_are_an_error(large: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = DenseOutputs(large, TOKENS)
    fewer = np.ones(TOKENS.shape, bool)
    score(large, TOKENS, dense, fewer)
    fewer[2, 5] = False
    monkeypatch.setattr(module, "forwards", refuse_forward)
    for tokens, scored in [(TOKENS[:4], None), (TOKENS[::-1].copy(), None), (TOKENS, fewer)]:
        with pytest.raises(InputError, match="dense outputs are of other windows"):
            score(large, tokens, dense, scored)


class Hidden(nn.Module):
    """A model whose logits are not made by the head it names: the head's, moved along by the position in the batch."""

    def __init__(self, head: nn.Module | None) -> None:
        super().__init__()
        self.head, self.device = head, torch.device("cpu")
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=7))
        self.name_or_path = ""

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head

    def forward(self, tokens: Tensor, use_cache: bool) -> SimpleNamespace:
        assert self.head is not None
        return SimpleNamespace(logits=self.head(torch.eye(7)[tokens]) + tokens[..., None] * torch.arange(7))


def test_a_model_without_an_output_head_or_with_more_than_it_is_refused() -> None:
    tokens = np.array([[1, 2, 3]])
    with pytest.raises(StudyError, match="Hidden has no output head"):
        DenseOutputs(Hidden(None), tokens)
    model = Hidden(nn.Linear(7, 7))
    with pytest.raises(StudyError, match="Hidden: its logits do not follow"):
        DenseOutputs(model, tokens)
    assert not model.head._forward_pre_hooks


@pytest.mark.tiny
def test_what_is_not_a_number_is_an_error(large: LlamaForCausalLM) -> None:
    dense = DenseOutputs(large, TOKENS)
    weight = large.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="log-likelihoods are not finite"):
        score(large, TOKENS, dense)
    with pytest.raises(NumericalError, match="the dense model's logits are not numbers"):
        DenseOutputs(large, TOKENS)
    assert not large.get_output_embeddings()._forward_pre_hooks
    with torch.no_grad():
        weight.copy_(kept)
    found = score(large, TOKENS, dense)[1]
    assert found is not None and found.jensen_shannon.value < 1e-7


@pytest.mark.tiny
def test_an_infinite_divergence_is_an_error(large: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = DenseOutputs(large, TOKENS)

    def excluding(model: PreTrainedModel, tokens: np.ndarray, scored: None) -> Any:
        for batch, logits in perplexity_module.forwards(model, tokens, scored):
            logits[..., 0] = -math.inf  # id 0 is in no window
            yield batch, logits

    monkeypatch.setattr(module, "forwards", excluding)
    with pytest.raises(NumericalError, match="excludes a token"):
        score(large, TOKENS, dense)


# ------------------------------------------------------------------ the default model


@pytest.mark.real
def test_wanda_stays_nearer_to_the_dense_model_than_magnitude(smollm: Laboratory) -> None:
    lab = smollm.dense
    tokens = draw_windows("c4", lab.tokenizer, n_samples=2, seq_len=64, seed=0, part="held_out").tokens
    calibration = draw_windows("c4", lab.tokenizer, n_samples=4, seq_len=64, seed=0).tokens
    lab.restore()
    dense = DenseOutputs(lab.model, tokens)
    itself = score(lab.model, tokens, dense)[1]
    assert itself is not None and itself.agreement.value == 1
    assert max(itself.jensen_shannon.value, itself.kl_dense_pruned.value, itself.kl_pruned_dense.value) < 1e-6
    found: dict[str, Divergence] = {}
    for method in ("wanda", "magnitude"):
        lab.restore()
        request = Request(METHODS[method], 0.5, Pattern.parse("unstructured"), 0)
        prune_(lab.model, request, calibration, schedule="dense", progress=False)
        beside = score(lab.model, tokens, dense)
        assert beside[0] == perplexity(lab.model, tokens)
        assert beside[1] is not None
        found[method] = beside[1]
    wanda, magnitude = found["wanda"], found["magnitude"]
    assert 0.02 < wanda.jensen_shannon.value < magnitude.jensen_shannon.value < LN_2
    assert wanda.kl_dense_pruned.value < magnitude.kl_dense_pruned.value
    assert 1 > wanda.agreement.value > magnitude.agreement.value > 0.05
