"""Samples of masks: their positions are fixed, and they estimate what whole masks would give."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from calib_study.errors import StudyError
from calib_study.layers import all_layers
from calib_study.mask_samples import POSITIONS, MaskSample, disagreement, jaccard, positions, sample_mask


def sample(zero: list[list[int]], sizes: list[int]) -> MaskSample:
    """Return a sample whose rows repeat the given bits up to the full number of positions."""
    rows = [np.resize(np.array(row, dtype=bool), POSITIONS) for row in zero]
    return MaskSample(tuple(f"layer{i}" for i in range(len(rows))), np.array(sizes), np.stack(rows))


def test_positions_depend_on_name_and_size_alone_and_are_distinct() -> None:
    first, again = positions("a", 5003), positions("a", 5003)
    np.testing.assert_array_equal(first, again)
    assert len(set(first.tolist())) == POSITIONS
    assert first.max() < 5003
    assert not np.array_equal(first, positions("b", 5003))


def test_a_small_layer_is_looked_at_with_repetition() -> None:
    assert set(positions("a", 7).tolist()) <= set(range(7))


def test_the_sample_is_of_the_weights_at_its_positions(tiny_model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        for layer in all_layers(tiny_model).values():
            layer.remove_(torch.rand(layer.d_out, layer.d_in) < 0.5)
    found = sample_mask(tiny_model)
    for i, (name, layer) in enumerate(all_layers(tiny_model).items()):
        flat = layer.weight().reshape(-1)
        assert found.layers[i] == name
        assert found.sizes[i] == layer.d_out * layer.d_in
        assert [bool(flat[p] == 0) for p in positions(name, len(flat))] == found.zero[i].tolist()
    assert 0.4 < found.zero.mean() < 0.6


def test_disagreement_weighs_layers_by_size() -> None:
    # layer 0 differs in 1 of 2 positions, layer 1 in none: (300 * 0.5 + 100 * 0) / 400 = 0.375
    one, other = sample([[1, 0], [1, 0]], [300, 100]), sample([[1, 1], [1, 0]], [300, 100])
    assert disagreement(one, other) == pytest.approx(0.375)
    assert disagreement(one, one) == 0


def test_jaccard_is_that_of_the_removed_weights() -> None:
    # removed: {0, 1} and {1, 2} of each 4: 1 in both, 3 in either
    one, other = sample([[1, 1, 0, 0], [0]], [100, 100]), sample([[0, 1, 1, 0], [0]], [100, 100])
    np.testing.assert_allclose(jaccard(one, other), [1 / 3, 1])


def test_arrays_bring_the_sample_back(tiny_model: LlamaForCausalLM) -> None:
    found = sample_mask(tiny_model)
    again = MaskSample.of_arrays(found.arrays())
    assert again.layers == found.layers
    np.testing.assert_array_equal(again.sizes, found.sizes)
    np.testing.assert_array_equal(again.zero, found.zero)
    with pytest.raises(StudyError, match="mask_layers"):
        MaskSample.of_arrays({})


def test_models_of_other_shape_cannot_be_compared() -> None:
    with pytest.raises(StudyError, match="architecture"):
        disagreement(sample([[1]], [100]), sample([[1]], [200]))
    with pytest.raises(StudyError, match="architecture"):
        jaccard(sample([[1]], [100]), sample([[1], [0]], [100, 100]))


def test_a_larger_sample_comes_back_too(tiny_model: LlamaForCausalLM) -> None:
    found = sample_mask(tiny_model, 1024)
    assert found.zero.shape == (len(all_layers(tiny_model)), 1024)
    np.testing.assert_array_equal(MaskSample.of_arrays(found.arrays()).zero, found.zero)
