"""Profiles of layers and swaps of blocks on a tiny Llama, against whole passes and direct computation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from tiny_mechanism import N_WINDOWS, SEQ_LEN, profile, swap
from torch import Tensor, nn

from calib_study import measurement_runs, mechanism
from calib_study.errors import InputError, NumericalError
from calib_study.layers import all_layers, block_layers, decoder_blocks
from calib_study.mask_samples import MaskSample, sample_mask
from calib_study.measurement_runs import compared, measure
from calib_study.measurements import BlockSwap, Measurement, MeasurementStore
from calib_study.mechanism import Masks, Profiler, block_swap, measure_mechanism, output_energy, relative_error
from calib_study.model_files import resolve_model
from calib_study.models import next_token_logits
from calib_study.owl import outlier_share
from calib_study.perplexity import perplexity
from calib_study.scores import wanda
from calib_study.study import Laboratory

Files = tuple[Path, Path]
pytestmark = pytest.mark.tiny


@pytest.fixture
def lab(tiny_files: Files, own_cache: Path) -> Laboratory:
    return Laboratory(resolve_model(str(tiny_files[0])), dtype="float32", device="cpu")


def inputs_of(model: Any, tokens: np.ndarray[Any, Any]) -> dict[str, Tensor]:
    """Return what each layer of the model as it is gets, (n_tokens, d_in), by full name."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: found.__setitem__(name, args[0].reshape(-1, args[0].shape[-1]).double())

    handles = [layer.module.register_forward_pre_hook(hook(name)) for name, layer in all_layers(model).items()]
    with torch.no_grad():
        next_token_logits(model, torch.from_numpy(tokens))
    for handle in handles:
        handle.remove()
    return found


# --- errors of outputs ------------------------------------------------------------------------------------


def test_energy_by_hand() -> None:
    # X = [[1, 2], [0, 1]], W = [[1, 1], [2, 0]]: X W^T = [[3, 2], [1, 0]], squares 9 + 4 + 1 + 0
    x, weight = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    assert output_energy(weight, x.T @ x) == 14


def test_energy_from_products_is_that_of_the_output() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(17, 7, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    assert_allclose(output_energy(weight, x.T @ x), float((x @ weight.T).square().sum()), rtol=1e-12)


def test_an_output_without_energy_is_an_error_with_the_layers_name() -> None:
    with pytest.raises(NumericalError, match="layer 3"):
        relative_error(0.0, 0.0, "layer 3")
    with pytest.raises(NumericalError, match="layer 3"):
        relative_error(float("nan"), 1.0, "layer 3")
    assert relative_error(-1e-12, 1.0, "rounding") == 0


# --- profiles ---------------------------------------------------------------------------------------------


def test_a_profile_is_what_direct_computation_gives(lab: Laboratory, tiny_files: Files) -> None:
    request = profile(*tiny_files, n_positions=64)
    found = Profiler(progress=False)(lab, request).arrays
    model, spec = lab.dense.model, request.spec(request.draw)
    lab.prune(spec)
    pruned = {name: layer.weight().double() for name, layer in all_layers(model).items()}
    again = sample_mask(model, 64)
    lab.dense.restore()
    windows = lab.calibration_windows(spec)
    assert windows is not None
    seen = inputs_of(model, windows.tokens)
    held_out = inputs_of(model, lab.held_out(str(tiny_files[1]), N_WINDOWS, SEQ_LEN).tokens)
    assert found["layers"].tolist() == list(pruned)
    assert_array_equal(MaskSample.of_arrays(found).zero, again.zero)
    starts = np.concatenate([[0], np.cumsum(found["widths"])])
    for row, (name, layer) in enumerate(all_layers(model).items()):
        x, dense = held_out[name], layer.weight().double()
        direct = (x @ (dense - pruned[name]).T).square().sum() / (x @ dense.T).square().sum()
        assert_allclose(found["errors"][row, 0], float(direct), rtol=1e-4)
        norms = found["norms"][starts[found["inputs"][row]] : starts[found["inputs"][row] + 1]]
        assert_allclose(norms, seen[name].square().mean(0).sqrt(), rtol=2**-12)
    for index in range(len(decoder_blocks(model)[1])):
        names = [name for name, block in zip(pruned, found["blocks"], strict=True) if block == index]
        worth = [wanda(all_layers(model)[name].weight(), seen[name].square().sum(0).sqrt().float()) for name in names]
        assert_allclose(found["outliers"][index], outlier_share(worth, 5.0), atol=0.05)
    assert found["kinds"].tolist()[:7] == list(block_layers(decoder_blocks(model)[1][0]))


def test_a_profile_is_the_same_from_the_cache_and_with_sparsegpt_too(lab: Laboratory, tiny_files: Files) -> None:
    for method in ("wanda", "sparsegpt"):
        request = profile(*tiny_files, method=method)
        first, again = (Profiler(progress=False)(lab, request).arrays for _ in range(2))
        assert all(row[-1] for row in compared(first, again))
        assert 0 < np.nanmin(first["errors"]) < np.nanmax(first["errors"]) < 1


def test_blocks_left_out_have_no_errors(lab: Laboratory, tiny_files: Files) -> None:
    found = Profiler(progress=False)(lab, profile(*tiny_files, stride=2))
    assert_array_equal(np.isnan(found.arrays["errors"][:, 0]), found.arrays["blocks"] == 1)
    assert np.isfinite(found.metrics[0].value)


def test_another_draw_gives_another_profile(lab: Laboratory, tiny_files: Files) -> None:
    one, other = (Profiler(progress=False)(lab, profile(*tiny_files, seed)).arrays for seed in (0, 1))
    assert not np.array_equal(one["norms"], other["norms"])
    assert not np.array_equal(one["mask_bits"], other["mask_bits"])


def test_rounding_keeps_what_it_says() -> None:
    values = torch.tensor([0.0, 1e-8, 0.3, 1.0, 12345.678], dtype=torch.float64)
    rounded = mechanism._rounded(values)
    assert_allclose(rounded, values, rtol=2**-12)
    assert not (rounded.view(np.uint32) & 0x7FF).any()  # the lowest 11 of float32's 24 bits are zero


# --- swaps ------------------------------------------------------------------------------------------------


def full_passes(lab: Laboratory, request: BlockSwap) -> np.ndarray[Any, Any]:
    """Return the loss of each window with each block swapped, by whole passes of models put together by hand."""
    (source,) = request.evaluation.sources
    tokens = lab.held_out(source, N_WINDOWS, SEQ_LEN).tokens
    rows = []
    for index in range(len(decoder_blocks(lab.dense.model)[1])):
        lab.prune(request.spec(request.other))
        layers = block_layers(decoder_blocks(lab.dense.model)[1][index])
        kept = {name: layer.weight().clone() for name, layer in layers.items()}
        lab.prune(request.spec(request.base))
        with torch.no_grad():
            for name, layer in layers.items():
                layer.set_weight_(kept[name])
        rows.append(perplexity(lab.dense.model, tokens).by_window)
    return np.array(rows)


@pytest.mark.parametrize(("base", "other"), [(None, 0), (0, None), (0, 1)], ids=["alone", "but one", "swap"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_swap_is_what_whole_passes_give(
    base: int | None, other: int | None, method: str, lab: Laboratory, tiny_files: Files
) -> None:
    request = swap(*tiny_files, base, other, method=method)
    found = block_swap(lab, request, progress=False).arrays
    assert_allclose(found["nll"], full_passes(lab, request), rtol=1e-5)
    lab.prune(request.spec(request.base))
    tokens = lab.held_out(str(tiny_files[1]), N_WINDOWS, SEQ_LEN).tokens
    assert_allclose(found["base_nll"], perplexity(lab.dense.model, tokens).by_window, rtol=1e-5)
    assert (found["divergence"] > 0).all()
    assert np.abs(found["nll"] - found["base_nll"]).max() > 1e-3


def test_divergence_is_that_from_the_base(lab: Laboratory, tiny_files: Files) -> None:
    found = block_swap(lab, swap(*tiny_files, None, 0), progress=False).arrays
    tokens = torch.from_numpy(lab.held_out(str(tiny_files[1]), N_WINDOWS, SEQ_LEN).tokens)
    with torch.no_grad():
        lab.dense.restore()
        p = next_token_logits(lab.dense.model, tokens)[:, :-1].double().log_softmax(-1)
        masks = Masks()
        masks.prune(lab, swap(*tiny_files, None, 0).spec(swap(*tiny_files, None, 0).other))
        kept = {name: layer.weight().clone() for name, layer in all_layers(lab.dense.model).items()}
        lab.dense.restore()
        for name, layer in all_layers(lab.dense.model).items():
            if ".1." in name:
                layer.set_weight_(kept[name])
        q = next_token_logits(lab.dense.model, tokens)[:, :-1].double().log_softmax(-1)
    assert_allclose(found["divergence"][1], (p.exp() * (p - q)).sum(-1).mean(-1), rtol=1e-3)


def test_a_swap_with_itself_changes_nothing(lab: Laboratory, tiny_files: Files) -> None:
    found = block_swap(lab, swap(*tiny_files, 0, 0), progress=False).arrays
    assert_array_equal(found["nll"], np.broadcast_to(found["base_nll"], found["nll"].shape))
    assert_array_equal(found["divergence"], np.zeros_like(found["divergence"]))


def test_windows_in_several_batches_give_the_same(
    lab: Laboratory, tiny_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = block_swap(lab, swap(*tiny_files, 0, 1), progress=False).arrays
    monkeypatch.setattr(mechanism, "TOKENS_PER_CALL", 2 * SEQ_LEN)
    parts = block_swap(lab, swap(*tiny_files, 0, 1), progress=False).arrays
    for name in ("nll", "base_nll", "divergence"):
        assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_every_so_many_blocks(lab: Laboratory, tiny_files: Files) -> None:
    found = block_swap(lab, swap(*tiny_files, 0, 1, stride=2), progress=False).arrays
    whole = block_swap(lab, swap(*tiny_files, 0, 1), progress=False).arrays
    assert found["blocks"].tolist() == [0]
    assert_array_equal(found["nll"], whole["nll"][:1])


def test_remembered_masks_prune_as_the_method_does(lab: Laboratory, tiny_files: Files) -> None:
    spec = profile(*tiny_files).specs()[0]
    masks = Masks()
    masks.prune(lab, spec)
    first = {name: layer.weight().clone() for name, layer in all_layers(lab.dense.model).items()}
    lab.dense.restore()
    masks.prune(lab, spec)  # from memory
    for name, layer in all_layers(lab.dense.model).items():
        torch.testing.assert_close(layer.weight(), first[name], rtol=0, atol=0)
    masks.prune(lab, spec, only=[1])
    zeros = {name: bool((layer.weight() == 0).any()) for name, layer in all_layers(lab.dense.model).items()}
    assert {name for name, some in zeros.items() if some} == {name for name in zeros if ".1." in name}


def test_predictions_that_are_not_finite_are_an_error_with_the_block(lab: Laboratory, tiny_files: Files) -> None:
    request = swap(*tiny_files, None, 0)
    masks = Masks()
    masks.prune(lab, request.spec(request.other))  # remembered, while the model is whole
    weight = next(iter(lab.dense._dense.values()))
    weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="block 0"):
        block_swap(lab, request, masks=masks, progress=False)


# --- measurements -----------------------------------------------------------------------------------------


def test_measurements_are_resumed_where_they_were_cut_off(
    tiny_files: Files, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [profile(*tiny_files), swap(*tiny_files, None, 0), swap(*tiny_files, 0, 1)]
    store, computed = MeasurementStore(tmp_path / "store"), []
    one = measurement_runs.measure

    def cut_off(lab: Laboratory, request: Any, measurers: Any) -> tuple[Measurement, Any]:
        computed.append(request.kind)
        if len(computed) == 2:
            raise KeyboardInterrupt
        return one(lab, request, measurers)

    monkeypatch.setattr(measurement_runs, "measure", cut_off)
    ask: dict[str, Any] = {"model": str(tiny_files[0]), "store": store, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        measure_mechanism(requests, **ask)
    assert len(store.scan()[0]) == 1
    found = measure_mechanism(requests, **ask)
    assert [one.request for one in found] == requests
    assert computed == ["layer_profile", "block_swap", "block_swap", "block_swap"]
    monkeypatch.setattr(measurement_runs, "Laboratory", lambda *_, **__: pytest.fail("a model was loaded"))
    assert measure_mechanism(requests, **ask) == found


def test_requests_are_checked_before_a_model_is_loaded(tiny_files: Files, tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    request = profile(*tiny_files)
    with pytest.raises(InputError, match="Has the model changed"):
        measure_mechanism([request.model_copy(update={"model_hash": "0" * 64})], model=str(tiny_files[0]), store=store)
    with pytest.raises(InputError, match="one model and dtype"):
        measure_mechanism([request, request.model_copy(update={"dtype": "bfloat16"})], store=store)
    with pytest.raises(InputError, match="unknown kind of measurement 'layer_profile'"):
        measurement_runs.run_measurements([request], {}, store=store)


def test_what_is_measured_again_agrees(
    tiny_files: Files, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement_runs.paths, "published_measurements_dir", lambda: tmp_path)
    requests = [profile(*tiny_files), swap(*tiny_files, 0, 1)]
    ask: dict[str, Any] = {"model": str(tiny_files[0])}
    found = measure_mechanism(requests, store=MeasurementStore(tmp_path), progress=False, **ask)
    answers = mechanism.measurers(progress=False)
    table, _ = measurement_runs.spot_check(found, 2, answers, **ask)
    assert table["agrees"].all() and set(table["run"]) == {one.title for one in requests}
    assert len(measurement_runs.spot_check(found, 0, answers, **ask)[0]) == 0


def test_arrays_that_differ_are_told() -> None:
    old = {
        "nll": np.array([1.0, 2.0]),
        "divergence": np.array([1.0]),
        "names": np.array(["a"]),
        "bits": np.uint8([255]),
    }
    new = {"nll": np.array([1.0, 2.2]), "divergence": np.array([1.1]), "names": np.array(["b"]), "bits": np.uint8([0])}
    # means: 1.5 and 1.6, 6.7 % apart; 10 % of a divergence is allowed; no position of the mask agrees
    assert {name: agrees for name, *_, agrees in compared(old, new)} == {
        "nll": False, "divergence": True, "names": False, "bits": False,
    }  # fmt: skip
    assert not compared(old, {})[0][-1]


def test_one_measurement_is_of_the_model_that_is_loaded(lab: Laboratory, tiny_files: Files) -> None:
    found, arrays = measure(lab, swap(*tiny_files, None, 0), mechanism.measurers(progress=False))
    assert found.model_sha256 == lab.weights_sha256
    assert [metric.name for metric in found.metrics] == ["base_nll"]
    assert_allclose(found.metrics[0].value, arrays["base_nll"].mean())
