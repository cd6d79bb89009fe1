"""Membership scores: by hand, by a triple loop in float64, and where one token has nearly all probability."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from calib_study import membership as module
from calib_study.errors import InputError, NumericalError
from calib_study.membership import SMALLEST_SD, lowest_mean, membership_scores, min_k, min_k_plus_plus
from calib_study.perplexity import perplexity


class Bigram(nn.Module):
    """The next token depends on the last one alone, by a table (d_vocab, d_vocab) of logits."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.device = torch.device("cpu")
        self.calls: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        self.calls.append(tuple(tokens.shape))
        return SimpleNamespace(logits=self.table[tokens])


def triple_loop(logits: Tensor, ids: Tensor, k: float) -> list[tuple[float, float, float]]:
    """Return (nll, min-k, min-k++) of each window, from the definitions."""
    found = []
    for window in range(len(ids)):
        log_ps, ratios = [], []
        for position in range(ids.shape[1] - 1):
            row = [float(value) for value in logits[window, position]]
            normaliser = math.log(sum(math.exp(value) for value in row))
            mu = square = 0.0
            for value in row:
                mu += math.exp(value - normaliser) * (value - normaliser)
                square += math.exp(value - normaliser) * (value - normaliser) ** 2
            log_p = row[int(ids[window, position + 1])] - normaliser
            log_ps.append(log_p)
            ratios.append((log_p - mu) / math.sqrt(square - mu**2))
        count = max(1, int(k * len(log_ps)))
        lowest = [sum(sorted(values)[:count]) / count for values in (log_ps, ratios)]
        found.append((-sum(log_ps) / len(log_ps), *lowest))
    return found


def random_case(seed: int, *, n: int = 3, seq_len: int = 12, d_vocab: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, seq_len, d_vocab, generator=generator)
    return logits, torch.randint(0, d_vocab, (n, seq_len), generator=generator)


# --- scores of logits -------------------------------------------------------------------------------------


def test_one_position_by_hand() -> None:
    # p = (1/4, 3/4). mu = 1/4 ln 1/4 + 3/4 ln 3/4. The two values ln 1/4 and ln 3/4 lie ln 3 apart, and so
    # sigma = sqrt(1/4 * 3/4) ln 3. Token 1 is 1/4 ln 3 above mu, token 0 3/4 ln 3 below it: sigma = sqrt(3)/4 ln 3, so
    # the ratios are 1 / sqrt(3) and -sqrt(3).
    logits = torch.tensor([[[math.log(1) + 5, math.log(3) + 5], [0.0, 0.0]]]).expand(2, -1, -1)
    ids = torch.tensor([[0, 1], [0, 0]])
    assert_close(min_k_plus_plus(logits, ids), torch.tensor([1 / 3**0.5, -(3**0.5)]).double(), rtol=1e-6, atol=0)
    assert_close(min_k(logits, ids), torch.tensor([3 / 4, 1 / 4]).double().log(), rtol=1e-6, atol=0)


def test_a_window_by_hand() -> None:
    # After 0: (1/4, 3/4) as above; after 1: (1/2, 1/2), where sigma is 0 and the ratio 0.
    table = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    tokens = np.array([[0, 0, 1, 1, 0]])
    # ln p: ln 1/4, ln 3/4, ln 1/2, ln 1/2, lowest half: ln 1/4 and ln 1/2. Ratios: -sqrt 3, 1 / sqrt 3, 0, 0,
    # lowest half: -sqrt 3 and 0.
    found = membership_scores(Bigram(table), tokens)
    assert found.nll == pytest.approx((math.log(4) + math.log(4 / 3) + 2 * math.log(2)) / 4, rel=1e-6)
    assert found.min_k == pytest.approx(-(math.log(4) + math.log(2)) / 2, rel=1e-6)
    assert found.min_k_plus_plus == pytest.approx(-(3**0.5) / 2, rel=1e-6)


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_it_is_what_a_triple_loop_gives(k: float) -> None:
    logits, ids = random_case(0)
    _, lowest, plus_plus = zip(*triple_loop(logits, ids, k), strict=True)
    assert_close(min_k(logits, ids, k), torch.tensor(lowest).double(), rtol=1e-5, atol=1e-5)
    assert_close(min_k_plus_plus(logits, ids, k), torch.tensor(plus_plus).double(), rtol=1e-5, atol=1e-5)


def test_a_window_alone_scores_as_in_its_batch() -> None:
    logits, ids = random_case(1)
    assert_close(min_k_plus_plus(logits[1], ids[1]), min_k_plus_plus(logits, ids)[1])
    assert_close(min_k_plus_plus(logits[None], ids[None]), min_k_plus_plus(logits, ids)[None])


@given(st.integers(0, 99), st.floats(-50, 50), st.sampled_from([0.1, 0.3, 0.5, 0.9]))
def test_a_constant_on_all_logits_is_nothing_and_a_larger_share_scores_higher(
    seed: int, constant: float, k: float
) -> None:
    logits, ids = random_case(seed)
    for score in (min_k, min_k_plus_plus):
        assert_close(score(logits + constant, ids, k), score(logits, ids, k), rtol=1e-4, atol=1e-4)
        assert (score(logits, ids, 1.0) >= score(logits, ids, k) - 1e-9).all()


def test_the_mean_of_a_position_under_the_model_is_0_and_its_variance_1() -> None:
    logits = random_case(2, n=1, seq_len=2, d_vocab=11)[0]
    p = logits[0, 0].double().softmax(-1)
    ratios = torch.stack([min_k_plus_plus(logits, torch.tensor([[0, token]]))[0] for token in range(11)])
    assert_close((p * ratios).sum(), torch.tensor(0.0).double(), rtol=0, atol=1e-6)
    assert_close((p * ratios.square()).sum(), torch.tensor(1.0).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gap", [5.0, 10.0, 15.0, 17.0])
def test_a_peaked_distribution_loses_no_digits(gap: float) -> None:
    """One token ahead of 96: at 17 nats the others share 4e-6, whose square against 1 float32 does not see."""
    logits = torch.zeros(1, 2, 97)
    logits[..., 5] = gap
    exact = logits.double()
    for token in (5, 6):
        ids = torch.tensor([[0, token]])
        expected = triple_loop(exact, ids, 1.0)[0][2]
        # float64 leaves 1e-16 / sigma^2 of the difference of squares in the loop
        assert_close(min_k_plus_plus(logits, ids), torch.tensor([expected]).double(), rtol=2e-6, atol=1e-9)


def test_where_sigma_vanishes_the_ratio_is_held() -> None:
    logits = torch.zeros(1, 2, 7)
    assert min_k_plus_plus(logits, torch.tensor([[0, 3]])).item() == 0  # all alike
    logits[..., 5] = 60.0
    # The others have e^-60 each: mu = -60 * 6 e^-60 is nothing, sigma is held at 0.001.
    assert abs(min_k_plus_plus(logits, torch.tensor([[0, 5]])).item()) < 1e-9
    found = min_k_plus_plus(logits, torch.tensor([[0, 3]])).item()
    assert found == pytest.approx(-60 / SMALLEST_SD, rel=1e-6) and SMALLEST_SD == 1e-3
    logits[..., 5] = 500.0  # where the others underflow to 0
    assert min_k_plus_plus(logits, torch.tensor([[0, 5]])).item() == 0
    assert min_k(logits, torch.tensor([[0, 3]])).item() == -500


def test_tokens_that_are_ruled_out_change_nothing() -> None:
    logits, ids = random_case(3)
    wider = torch.cat([logits, torch.full((*ids.shape, 2), -math.inf)], dim=-1)
    assert_close(min_k_plus_plus(wider, ids), min_k_plus_plus(logits, ids))
    assert_close(min_k(wider, ids), min_k(logits, ids))


def test_half_precision_is_computed_in_float32() -> None:
    logits, ids = random_case(4)
    half = logits.bfloat16()
    assert_close(min_k_plus_plus(half, ids), min_k_plus_plus(half.float(), ids), rtol=0, atol=0)


def test_the_lowest_share_by_hand() -> None:
    values = torch.tensor([3.0, -1.0, 2.0, 0.0, 7.0])
    assert lowest_mean(values, 0.5).item() == -0.5  # floor(2.5) = 2 of five
    assert lowest_mean(values, 0.01).item() == -1  # at least one
    assert lowest_mean(values, 1.0).item() == pytest.approx(11 / 5)
    assert lowest_mean(torch.arange(100.0), 0.29).item() == 14  # 0 to 28, though 0.29 * 100 < 29 in floats


# --- scores of windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_batches_and_pieces_change_nothing(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = 3 * torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    tokens = np.random.default_rng(0).integers(0, 7, (5, 13))
    monkeypatch.setattr(module, "POSITIONS_PER_CALL", 5)
    model = Bigram(table)
    found = membership_scores(model, tokens, k=0.3, batch_size=batch_size)
    ids = torch.from_numpy(tokens)
    nll, lowest, plus_plus = zip(*triple_loop(table[ids], ids, 0.3), strict=True)
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.min_k == pytest.approx(lowest, rel=1e-5)
    assert found.min_k_plus_plus == pytest.approx(plus_plus, rel=1e-5)
    sizes = [min(batch_size, 5 - start) for start in range(0, 5, batch_size)]
    assert model.calls == [(size, 13) for size in sizes]
    assert found.nll.dtype == found.min_k.dtype == found.min_k_plus_plus.dtype == np.float64


@pytest.mark.tiny
def test_a_models_scores_are_those_of_its_logits(tiny_model: LlamaForCausalLM) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (3, 31))
    found = membership_scores(tiny_model, tokens, batch_size=2)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = tiny_model(ids).logits
    assert found.nll == pytest.approx(perplexity(tiny_model, tokens).by_window, rel=1e-6)
    assert found.min_k == pytest.approx(min_k(logits, ids).numpy(), rel=1e-5)
    assert found.min_k_plus_plus == pytest.approx(min_k_plus_plus(logits, ids).numpy(), rel=1e-4)


@pytest.mark.tiny
def test_a_text_that_was_learnt_scores_higher(tiny_model: LlamaForCausalLM) -> None:
    """Forty steps on three windows, then those beside three others."""
    tokens = np.random.default_rng(1).integers(0, 97, (6, 17))
    seen = torch.from_numpy(tokens[:3])
    optimiser = torch.optim.Adam(tiny_model.parameters(), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        tiny_model(seen, labels=seen).loss.backward()
        optimiser.step()
    found = membership_scores(tiny_model, tokens)
    for scores in (-found.nll, found.min_k, found.min_k_plus_plus):
        assert scores[:3].min() > scores[3:].max()


def test_what_cannot_be_scored() -> None:
    logits, ids = random_case(0)
    for k in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(InputError, match=r"share of a window's tokens in \(0, 1\]"):
            min_k_plus_plus(logits, ids, k)
    with pytest.raises(InputError, match=r"got \(3, 12, 7\) and \(3, 11\)"):
        min_k(logits, ids[:, 1:])
    with pytest.raises(InputError, match="seq_len 2 or more"):
        min_k(logits[:, :1], ids[:, :1])
    model = Bigram(torch.zeros(7, 7))
    for shape, batch_size in (((3, 1), 8), ((0, 5), 8), ((5,), 8), ((3, 5), 0)):
        with pytest.raises(InputError, match="takes windows"):
            membership_scores(model, np.zeros(shape, np.int64), batch_size=batch_size)
    with pytest.raises(InputError, match="in \\(0, 1\\]"):
        membership_scores(model, np.zeros((2, 3), np.int64), k=2.0)
    assert model.calls == []


def test_a_damaged_model_is_named() -> None:
    table = torch.zeros(3, 3)
    table[2, 1] = math.nan
    with pytest.raises(NumericalError, match="window 1: a token's log-likelihood is not finite"):
        membership_scores(Bigram(table), np.array([[0, 1, 0], [0, 2, 1]]))
