"""Sampling: each rule by hand, all of them beside transformers' own, and the draw against its distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.testing import assert_close
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from calib_study.sampling import Sampling, candidates, inverse_cdf, next_tokens, nucleus, penalised

NONE = torch.tensor([], dtype=torch.long)
INF = torch.inf


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- by hand ----------------------------------------------------------------------------------------------


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones_once() -> None:
    logits = rows([2.0, -2.0, 3.0, 0.0, 6.0])
    seen = torch.tensor([[0, 1, 1, 4, 4, 3]])
    # 2 / 1.25 = 1.6; -2 * 1.25 = -2.5, though seen twice; 0 stays; 6 is exempt
    assert_close(penalised(logits, seen, 1.25, torch.tensor([4])), rows([1.6, -2.5, 3.0, 0.0, 6.0]))
    assert_close(logits, rows([2.0, -2.0, 3.0, 0.0, 6.0]))  # the argument is left alone
    assert_close(penalised(logits, seen, 1.0, NONE), logits)
    assert_close(penalised(logits, NONE[None], 1.25, NONE), logits)


def test_top_k_orders_by_score_then_by_id_and_keeps_all_that_equal_the_last() -> None:
    scores = rows([1.0, 4.0, 2.0, 4.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0])
    values, ids = candidates(scores, 3)
    # Row 0: 4 (ids 1, 3), then 2 twice (ids 2, 4), the last of three and its equal. Row 1: three, and no fourth.
    assert_close(values, rows([4, 4, 2, 2], [5, 4, 3, -INF]))
    assert ids[0].tolist() == [1, 3, 2, 4] and ids[1, :3].tolist() == [0, 1, 2]
    values, ids = candidates(scores, 2)
    assert_close(values, rows([4, 4, -INF], [5, 4, -INF]))


@pytest.mark.parametrize("top_k", [0, 5, 6, 99])
def test_top_k_beyond_the_vocabulary_is_all_of_it(top_k: int) -> None:
    values, ids = candidates(rows([1.0, 4.0, 2.0, 4.0, 2.0]), top_k)
    assert_close(values, rows([4, 4, 2, 2, 1]))
    assert ids.tolist() == [[1, 3, 2, 4, 0]]


def test_top_p_keeps_the_token_that_reaches_p_and_no_other() -> None:
    # Sums before each: 0, 0.5, 0.75, 0.875; kept where below p.
    probabilities = rows([0.5, 0.25, 0.125, 0.125])
    for top_p, n_kept in ((0.01, 1), (0.5, 1), (0.5001, 2), (0.75, 2), (0.8, 3), (0.9, 4), (1.0, 4)):
        kept, _ = nucleus(probabilities, top_p)
        assert kept.tolist() == [[True] * n_kept + [False] * (4 - n_kept)], top_p
    # Border after 0.125, which equals the next: the two could change places.
    assert nucleus(probabilities, 0.8)[1].tolist() == [0.0]
    # Border after 0.5: the sum 0.5 is 0.1 from p, 0.75 is 0.15; the step from 0.5 to 0.25 is longer.
    assert_close(nucleus(probabilities, 0.4)[1], torch.tensor([0.1], dtype=torch.float64))
    # Border after 0.41: the sums 0.41 and 0.81 are 0.11 and 0.51 from p = 0.3; the step to 0.40 is 0.01.
    assert_close(nucleus(rows([0.41, 0.4, 0.19]), 0.3)[1], torch.tensor([0.01], dtype=torch.float64))
    assert nucleus(rows([1.0]), 0.5)[1].tolist() == [1.0]


def test_the_draw_is_the_first_place_whose_cumulated_share_exceeds_the_number() -> None:
    # Shares 0, 0.25, 0.5, 0, 0.25, 0: edges at 0.25 and 0.75; what has no weight is never drawn.
    weights = rows([0.0, 1.0, 2.0, 0.0, 1.0, 0.0]).expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2, 0.25, 0.7, 0.75, 1 - 2**-53], dtype=torch.float64)
    place, distance = inverse_cdf(weights, uniforms)
    assert place.tolist() == [1, 1, 2, 2, 4, 4]
    assert_close(distance, torch.tensor([0.25, 0.05, 0.0, 0.05, 0.0, 0.25], dtype=torch.float64))
    place, distance = inverse_cdf(rows([3.0, 0.0]), torch.tensor([0.9999], dtype=torch.float64))
    assert (place.tolist(), distance.tolist()) == ([0], [1.0])  # no other could be drawn


def test_all_rules_in_a_row_by_hand() -> None:
    # Token 0 was seen: 4 / 2 = 2. Token 4 is banned. By temperature 0.5: 4, 2, 0, 6. The three highest are ids 3, 0, 1
    # with weights e^6, e^4, e^2: shares 0.867, 0.117, 0.016. Below p = 0.95 the first two are kept, 0.881 and 0.119;
    # the draw goes by rising id.
    logits = rows([4.0, 1.0, 0.0, 3.0, 9.0])
    rules = Sampling(temperature=0.5, top_k=3, top_p=0.95, repetition_penalty=2.0)
    given = {"exempt": torch.tensor([4]), "banned": torch.tensor([4])}
    for number, token in ((0.0, 0), (0.119, 0), (0.12, 3), (0.999, 3)):
        uniforms = torch.tensor([number], dtype=torch.float64)
        assert next_tokens(logits, torch.tensor([[0, 4]]), uniforms, rules, **given)[0].tolist() == [token]


# --- beside transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        Sampling(),
        Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0),
        Sampling(temperature=2.5, top_k=7, top_p=0.6),
        Sampling(temperature=0.9, top_k=0, top_p=0.8, repetition_penalty=1.5),
        Sampling(temperature=0.3, top_k=40, top_p=1.0, repetition_penalty=0.8),
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers_processors(rules: Sampling) -> None:
    """In the order in which `generate` puts them. One draw for each of many numbers finds every token's share."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 97, generator=generator, dtype=torch.float64) * 3
    seen = torch.randint(97, (5, 11), generator=generator)
    processors: list[LogitsProcessor] = [RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)]
    processors += [TemperatureLogitsWarper(rules.temperature)]
    processors += [TopKLogitsWarper(rules.top_k)] if rules.top_k else []
    processors += [TopPLogitsWarper(rules.top_p)] if rules.top_p < 1 else []
    expected = LogitsProcessorList(processors)(seen, logits.clone()).softmax(1)
    n = 20_000
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for row in range(5):
        tokens, _ = next_tokens(
            logits[row].expand(n, -1), seen[row].expand(n, -1), middles, rules, exempt=NONE, banned=NONE
        )
        found = tokens.bincount(minlength=97).double() / n
        assert set(tokens.tolist()) <= set(expected[row].nonzero()[:, 0].tolist())
        assert_close(found, expected[row], rtol=0, atol=1.01 / n)


# --- random ----------------------------------------------------------------------------------------------


def test_draws_have_their_probabilities() -> None:
    """Chi-square over 20,000 draws of 6 tokens; seeded, so it either always passes or never."""
    logits = torch.tensor([[0.5, 2.0, -1.0, 1.0, 0.0, 1.5]])
    rules = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    tokens, _ = next_tokens(logits.expand(20_000, -1), NONE[None], uniforms, rules, exempt=NONE, banned=NONE)
    expected = logits[0].double().softmax(0) * 20_000
    assert chisquare(tokens.bincount(minlength=6), expected).pvalue > 0.01


def test_the_margin_is_how_far_sums_can_move_without_another_draw() -> None:
    """Logits are changed at random; as long as every sum moves by less than the margin, tokens stay the same."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2_000, 29, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(2_000, generator=generator, dtype=torch.float64)
    rules = Sampling(temperature=1.0, top_k=0, top_p=0.9, repetition_penalty=1.0)
    given = {"exempt": NONE, "banned": NONE}
    tokens, margins = next_tokens(logits, NONE[None], uniforms, rules, **given)
    noise = 1e-3
    near, _ = next_tokens(
        logits + noise * torch.randn(logits.shape, generator=generator, dtype=torch.float64),
        NONE[None],
        uniforms,
        rules,
        **given,
    )
    changed = tokens != near
    assert 0 < changed.sum() < 20  # a few numbers lie so near to an edge
    assert margins[changed].max() < 2 * noise
    assert (margins >= 0).all() and margins.max() > 2 * noise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_do_not_depend_on_each_other(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(7, 53, generator=generator, dtype=dtype).round(decimals=1)  # with equal ones
    seen, uniforms = torch.randint(53, (7, 5), generator=generator), torch.rand(7, generator=generator).double()
    given = {"exempt": torch.tensor([3]), "banned": torch.tensor([3])}
    together = next_tokens(logits, seen, uniforms, Sampling(top_k=13), **given)
    for row in range(7):
        one = slice(row, row + 1)
        alone = next_tokens(logits[one], seen[one], uniforms[one], Sampling(top_k=13), **given)
        assert alone[0] == together[0][one]
        assert_close(alone[1], together[1][one], rtol=0, atol=1e-15)
