"""Perplexity: by hand on models whose probabilities are known, then the properties that any model must have."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from calib_study import perplexity as module
from calib_study.errors import NumericalError
from calib_study.perplexity import perplexity


class Bigram(nn.Module):
    """The next token depends on the last one alone, by a table (d_vocab, d_vocab) of logits."""

    def __init__(self, table: list[list[float]] | torch.Tensor) -> None:
        super().__init__()
        self.table = torch.as_tensor(table)
        self.device = torch.device("cpu")
        self.calls: list[tuple[int, ...]] = []

    def forward(self, tokens: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.calls.append(tuple(tokens.shape))
        return SimpleNamespace(logits=self.table[tokens])


@pytest.mark.parametrize("d_vocab", [2, 7, 97])
def test_a_uniform_model_has_the_size_of_its_vocabulary(d_vocab: int) -> None:
    tokens = np.random.default_rng(0).integers(0, d_vocab, (3, 11))
    score = perplexity(Bigram(torch.full((d_vocab, d_vocab), 1.7)), tokens)
    assert score.value == pytest.approx(d_vocab, rel=1e-6)
    assert score.nll == pytest.approx(math.log(d_vocab), rel=1e-6)
    assert score.nll_stderr == pytest.approx(0, abs=1e-6)


def test_a_bigram_model_by_hand() -> None:
    # After 0: 0 with 1/4, 1 with 3/4. After 1: 0 with 1/2, 1 with 1/2. Logits are their logarithms, plus any constant.
    model = Bigram([[math.log(1) + 5, math.log(3) + 5], [math.log(2) - 3, math.log(2) - 3]])
    # Window 0 1 1 0: the first 0 has no context; then 3/4, 1/2, 1/2: mean -ln = (ln 4/3 + 2 ln 2) / 3.
    # Window 1 0 0 0: 1/2, 1/4, 1/4: mean -ln = (ln 2 + 2 ln 4) / 3 = 5/3 ln 2.
    first, second = (math.log(4 / 3) + 2 * math.log(2)) / 3, 5 / 3 * math.log(2)
    score = perplexity(model, np.array([[0, 1, 1, 0], [1, 0, 0, 0]]))
    assert score.by_window == pytest.approx((first, second), rel=1e-6)
    assert score.nll == pytest.approx((first + second) / 2, rel=1e-6)
    # The geometric mean of the six inverse probabilities: (4/3 * 2 * 2 * 2 * 4 * 4) ** (1 / 6)
    assert score.value == pytest.approx((4 / 3 * 128) ** (1 / 6), rel=1e-6)
    # Two values a and b: their standard deviation (n - 1) is |a - b| / sqrt(2), that of the mean |a - b| / 2.
    assert score.nll_stderr == pytest.approx(abs(first - second) / 2, rel=1e-6)
    assert score.n_tokens == 6


def test_the_first_token_is_not_scored_and_the_last_predicts_nothing() -> None:
    """Token 4 is impossible after anything, so a window may begin with it; and 3 leads to a certain 0, if anywhere."""
    table = torch.zeros(5, 5)
    table[:, 4] = -1e4
    table[3, 1:] = -1e4
    score = perplexity(Bigram(table), np.array([[4, 0, 1, 3]]))
    assert score.value == pytest.approx(4, rel=1e-6)
    assert score.n_tokens == 3


def test_the_standard_error_is_over_windows() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 7, (5, 3))
    score = perplexity(Bigram(torch.from_numpy(rng.normal(size=(7, 7)))), tokens)
    mean = sum(score.by_window) / 5
    variance = sum((value - mean) ** 2 for value in score.by_window) / (5 - 1)
    assert score.nll == pytest.approx(mean)
    assert score.nll_stderr == pytest.approx(math.sqrt(variance / 5))
    assert perplexity(Bigram(torch.eye(7)), tokens[:1]).nll_stderr == 0


@settings(deadline=None, max_examples=20)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_a_constant_added_to_all_logits_changes_nothing(shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, tokens = torch.from_numpy(rng.normal(size=(7, 7))).float(), rng.integers(0, 7, (3, 5))
    assert perplexity(Bigram(table + shift), tokens).nll == pytest.approx(
        perplexity(Bigram(table), tokens).nll, rel=1e-4
    )


@pytest.mark.tiny
def test_windows_are_scored_each_by_itself_whatever_the_batch(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (5, 11))
    with torch.no_grad():
        log_p = tiny_model(torch.from_numpy(tokens)).logits[:, :-1].double().log_softmax(-1)
    wanted = -log_p.gather(2, torch.from_numpy(tokens)[:, 1:, None]).squeeze(2).mean(1)
    for per_call in (1, 22, 33, 1024):
        monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
        score = perplexity(tiny_model, tokens)
        assert_close(torch.tensor(score.by_window, dtype=torch.float64), wanted, rtol=1e-5, atol=0)
        assert score.n_tokens == 5 * 10
    assert perplexity(tiny_model, tokens[3:]).by_window == pytest.approx(score.by_window[3:], rel=1e-5)


@pytest.mark.parametrize(("per_call", "calls"), [(1, [1] * 5), (11, [1] * 5), (22, [2, 2, 1]), (1024, [5])])
def test_a_call_holds_as_many_windows_as_fit(monkeypatch: pytest.MonkeyPatch, per_call: int, calls: list[int]) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_CALL", per_call)
    model = Bigram(torch.eye(7))
    perplexity(model, np.zeros((5, 11), np.int64))
    assert model.calls == [(n, 11) for n in calls]


def test_log_probabilities_are_float32_for_a_bfloat16_model() -> None:
    """bfloat16 has 8 bits: ln 97 = 4.57 lies between its 4.5625 and 4.59375, which are 0.2 % and 0.4 % away."""
    table = torch.zeros(97, 97, dtype=torch.bfloat16)
    tokens = np.arange(11)[None]
    assert abs(functional.cross_entropy(table[:10], torch.arange(10)).item() / math.log(97) - 1) > 1e-3
    assert perplexity(Bigram(table), tokens).nll == pytest.approx(math.log(97), rel=1e-6)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_what_is_not_a_number_is_an_error(spoilt: float) -> None:
    table = torch.zeros(7, 7)
    table[3, 2] = spoilt
    tokens = np.array([[0, 1, 2, 0], [0, 3, 1, 0]])
    with pytest.raises(NumericalError, match="log-likelihoods are not finite"):
        perplexity(Bigram(table), tokens)
    assert perplexity(Bigram(table), tokens[:1]).value == pytest.approx(7)


def test_a_perplexity_too_large_for_a_float_is_an_error() -> None:
    table = torch.zeros(7, 7)
    table[:, 0] = 800.0  # the others have probability exp(-800), and 1 / that is no float
    with pytest.raises(NumericalError, match="below -700"):
        perplexity(Bigram(table), np.ones((2, 5), np.int64))


def test_no_gradient_is_kept_and_windows_are_not_changed(tiny_model: LlamaForCausalLM) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (2, 5))
    before = tokens.copy()
    perplexity(tiny_model, tokens)
    assert np.array_equal(tokens, before)
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
