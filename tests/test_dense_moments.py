"""Statistics of the dense model: the same from a pass and from the cache, and no pass for windows seen before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from calib_study import dense_moments as module
from calib_study.criteria import Request
from calib_study.dense_moments import dense_moments
from calib_study.layers import all_layers
from calib_study.methods import METHODS, Pattern
from calib_study.moment_cache import MomentCache
from calib_study.moments import InputMoments
from calib_study.prune import allocated, prune_
from calib_study.specs import Owl
from calib_study.walk import Walk


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def cache(tmp_path: Path) -> MomentCache:
    return MomentCache("tiny", tmp_path)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows each walk that is begun will pass through the model."""
    counts: list[int] = []

    class Counting(Walk):
        def __init__(self, model: torch.nn.Module, tokens: np.ndarray, *place: Any) -> None:
            counts.append(len(tokens))
            super().__init__(model, tokens, *place)

    monkeypatch.setattr(module, "Walk", Counting)
    return counts


def windows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 97, (n, 11))


def flat(found: Iterator[list[tuple[list[str], InputMoments]]]) -> list[torch.Tensor]:
    """Return all numbers of all inputs, in order."""
    tensors = []
    for block in found:
        for _, moments in block:
            tensors += [moments.sums, moments.squares] + ([] if moments.gram is None else [moments.gram])
    return tensors


def pruned(model: LlamaForCausalLM, method: str, tokens: np.ndarray, cache: MomentCache | None) -> list[torch.Tensor]:
    """Return the pruned weights, and put the dense ones back."""
    dense = {name: weight.clone() for name, weight in model.state_dict().items()}
    request = Request(METHODS[method], 0.5, Pattern())
    prune_(model, request, tokens, schedule="dense", cache=cache, progress=False)
    found = [layer.weight().clone() for layer in all_layers(model).values()]
    model.load_state_dict(dense)
    return found


@pytest.mark.parametrize("gram", [False, True])
def test_the_cache_gives_what_a_pass_gives_to_the_last_bit(
    tiny_model: LlamaForCausalLM, cache: MomentCache, passed: list[int], gram: bool
) -> None:
    tokens = windows(5)
    without = flat(dense_moments(tiny_model, tokens, gram=gram))
    first = flat(dense_moments(tiny_model, tokens, gram=gram, cache=cache))
    again = flat(dense_moments(tiny_model, tokens, gram=gram, cache=cache))
    assert passed == [5, 5]  # the third passed none
    torch.testing.assert_close(first, without, rtol=0, atol=0)
    torch.testing.assert_close(again, without, rtol=0, atol=0)


def test_moments_are_those_of_the_walk_rounded_to_float32(tiny_model: LlamaForCausalLM) -> None:
    tokens = windows(3)
    walk = Walk(tiny_model, tokens)
    for index, block in enumerate(dense_moments(tiny_model, tokens, gram=True)):
        seen = walk.moments(index, gram=True, advance=True)
        for names, moments in block:
            for name in names:
                torch.testing.assert_close(moments.squares, seen[name].squares.float().double(), rtol=0, atol=0)
                torch.testing.assert_close(moments.sums, seen[name].sums.float().double(), rtol=0, atol=0)
                torch.testing.assert_close(moments.gram, seen[name].gram.float().double(), rtol=0, atol=0)


def test_only_new_windows_are_passed(tiny_model: LlamaForCausalLM, cache: MomentCache, passed: list[int]) -> None:
    tokens = windows(7)
    flat(dense_moments(tiny_model, tokens[:4], gram=False, cache=cache))
    mixed = tokens[[6, 0, 5, 2]]
    found = flat(dense_moments(tiny_model, mixed, gram=False, cache=cache))
    assert passed == [4, 2]
    # a batch of other windows moves the last bits of a float32 product
    torch.testing.assert_close(found, flat(dense_moments(tiny_model, mixed, gram=False)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["wanda", "dsnot", "sparsegpt", "wanda_variant"])
def test_pruning_from_the_cache_gives_the_same_weights_and_no_pass(
    tiny_model: LlamaForCausalLM, cache: MomentCache, passed: list[int], method: str
) -> None:
    tokens = windows(6)
    without = pruned(tiny_model, method, tokens, None)
    first, again = (pruned(tiny_model, method, tokens, cache) for _ in range(2))
    assert passed == [6, 6]
    torch.testing.assert_close(first, without, rtol=0, atol=0)
    torch.testing.assert_close(again, without, rtol=0, atol=0)


def test_owl_takes_its_outliers_from_the_cache(
    tiny_model: LlamaForCausalLM, cache: MomentCache, passed: list[int]
) -> None:
    tokens, request = windows(6), Request(METHODS["wanda"], 0.5, Pattern())
    first, again = (
        [wanted.sparsity for wanted in allocated(tiny_model, request, tokens, Owl(), cache=cache, progress=False)]
        for _ in range(2)
    )
    assert first == again
    assert passed == [6]


def test_gram_matrices_of_a_new_set_need_a_pass_of_all_its_windows(
    tiny_model: LlamaForCausalLM, cache: MomentCache, passed: list[int]
) -> None:
    tokens = windows(6)
    flat(dense_moments(tiny_model, tokens[:4], gram=True, cache=cache))
    flat(dense_moments(tiny_model, tokens[:4], gram=False, cache=cache))
    flat(dense_moments(tiny_model, tokens, gram=True, cache=cache))
    assert passed == [4, 6]


def test_a_pass_that_is_broken_off_keeps_nothing(tiny_model: LlamaForCausalLM, cache: MomentCache) -> None:
    found = dense_moments(tiny_model, windows(3), gram=True, cache=cache)
    next(found)
    found.close()
    assert not [file for file in cache.folder.rglob("*") if file.is_file()]
