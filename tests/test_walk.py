"""The walk with blocks and hidden states elsewhere: the same bits, one block on the device at a time, nothing left.

The tests need no second device: a block that visits the CPU is a copy, at other addresses than its home.
"""

import errno
import gc
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from test_families import FAMILIES, family_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from calib_study import offload, walk
from calib_study.criteria import Request, prune_group_
from calib_study.errors import InputError, NumericalError, StudyError
from calib_study.layers import all_layers, block_layers, decoder_blocks
from calib_study.methods import METHODS, Pattern
from calib_study.moments import InputMoments
from calib_study.offload import FileStates, Placement, check_weights, moved, streamed
from calib_study.walk import Walk

pytestmark = pytest.mark.tiny

TOKENS = np.random.default_rng(0).integers(1, 97, (7, 11))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where blocks are moved to
EXACT = {"rtol": 0, "atol": 0} if DEVICE == "cpu" else {}  # another device computes rotary angles to other last bits
PLACEMENTS: list[Placement] = ["device", "cpu", "file"]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Batches of 3, 3 and 1 windows; no gradients; temporary files in an empty folder; one thread, which is faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(walk, "TOKENS_PER_CALL", 33)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def addresses(block: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*block.parameters(), *block.buffers())]


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight().cpu().clone() for name, layer in all_layers(model).items()}


def pruned_by(model: nn.Module, method: str, schedule: str, states: Walk) -> dict[str, Tensor]:
    """Prune half of every layer along a walk; return the weights."""
    request = Request(METHODS[method], 0.5, Pattern())
    gram = method == "sparsegpt"

    def prune_group(layers: dict[str, object], names: list[str], moments: InputMoments) -> None:
        prune_group_({name: layers[name] for name in names}, moments, request)

    for index, block in enumerate(states.blocks):
        prune = partial(prune_group, block_layers(block))
        with states.resident(index):
            if schedule == "sequential":
                states.advance_pruning(index, prune, gram=gram)
                continue
            moments = states.moments(index, gram=gram)
            for first, names in states.groups(index).items():
                prune(names, moments[first])
            states.advance(index)
    return weights(model)


# ------------------------------------------------------------------ the same results wherever things are


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_gives_the_same_wherever_blocks_and_hidden_states_are(family: str) -> None:
    model = family_model(family)
    plain = Walk(model.to(DEVICE), TOKENS)
    wanted = []
    for index in range(2):
        moments = plain.moments(index, gram=True, advance=True)
        wanted.append((moments, [states.cpu() for states in plain.hidden]))
    model = model.to("cpu")
    for placement in PLACEMENTS:
        states = Walk(model, TOKENS, DEVICE, placement)
        for index, (moments, hidden) in enumerate(wanted):
            found = states.moments(index, gram=True, advance=True)
            assert found.keys() == moments.keys()
            for name, inputs in moments.items():
                assert_close(found[name].squares, inputs.squares, **EXACT)
                assert_close(found[name].gram, inputs.gram, **EXACT)
            assert_close([batch.cpu() for batch in states.hidden], hidden, **EXACT)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("schedule", ["block", "sequential"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_masks_and_weights_are_equal_to_the_bit(
    method: str, schedule: str, placement: Placement, device: str | None
) -> None:
    tokens = np.random.default_rng(1).integers(1, 97, (16, 16))  # more tokens than inputs: no singular Gram matrix
    model, other = family_model("llama"), family_model("llama")
    wanted = pruned_by(model, method, schedule, Walk(model, tokens))
    assert all((weight == 0).sum() == weight.numel() // 2 for weight in wanted.values())
    assert_close(pruned_by(other, method, schedule, Walk(other, tokens, device, placement)), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sequential_results_do_not_depend_on_the_place_in_any_dtype(dtype: torch.dtype) -> None:
    found = []
    for placement in PLACEMENTS:
        model = family_model("gpt_neox").to(dtype)
        found.append(pruned_by(model, "wanda", "sequential", Walk(model, TOKENS, hidden=placement)))
    assert_close(found[1], found[0], rtol=0, atol=0)
    assert_close(found[2], found[0], rtol=0, atol=0)


def test_only_the_first_block_computes_before_the_walk_begins(tiny_model: LlamaForCausalLM) -> None:
    called = []
    for index, block in enumerate(tiny_model.model.layers):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: called.append(index))
    states = Walk(tiny_model, TOKENS)
    assert set(called) == {0}
    assert all("forward" not in vars(block) for block in states.blocks)
    assert len(states.arguments) == 2


# ------------------------------------------------------------------ one block at a time


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[int, set[int]]]]:
    """Yield a list of (block, blocks away from home) that grows whenever a layer of a block is called."""
    blocks = decoder_blocks(model)[1]
    homes = [addresses(block) for block in blocks]
    seen: list[tuple[int, set[int]]] = []

    def hook(index: int) -> Callable[..., None]:
        return lambda *_: seen.append((index, {i for i, home in enumerate(homes) if addresses(blocks[i]) != home}))

    handles = [
        layer.module.register_forward_pre_hook(hook(index))
        for index, block in enumerate(blocks)
        for layer in block_layers(block).values()
    ]
    yield seen
    for handle in handles:
        handle.remove()
    assert [addresses(block) for block in blocks] == homes


@pytest.mark.parametrize("schedule", ["block", "sequential"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_never_more_than_one_block_is_away(tiny_model: LlamaForCausalLM, placement: Placement, schedule: str) -> None:
    with watched(tiny_model) as seen:
        states = Walk(tiny_model, TOKENS, "cpu", placement)
        assert all(away == set() for _, away in seen)
        seen.clear()
        pruned_by(tiny_model, "wanda", schedule, states)
    assert {index for index, _ in seen} == {0, 1}
    assert all(away == {index} for index, away in seen)


def test_a_walk_alone_moves_the_blocks_it_needs(tiny_model: LlamaForCausalLM) -> None:
    with watched(tiny_model) as seen:
        states = Walk(tiny_model, TOKENS, "cpu")
        seen.clear()
        states.advance(0)
        states.moments(1, gram=False)
    assert all(away == {index} for index, away in seen)


def test_a_second_block_is_refused(tiny_model: LlamaForCausalLM) -> None:
    states = Walk(tiny_model, TOKENS, "cpu")
    with states.resident(0), pytest.raises(StudyError, match="block 1 was asked for while block 0 is on the device"):
        states.advance(1)


@pytest.mark.parametrize("schedule", ["block", "sequential"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_blocks_are_home_and_files_gone_after_a_failure(
    tiny_model: LlamaForCausalLM, placement: Placement, schedule: str, tmp_path: Path
) -> None:
    tiny_model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    homes = [addresses(block) for block in tiny_model.model.layers]
    states = Walk(tiny_model, TOKENS, "cpu", placement)
    file = states.hidden._file if isinstance(states.hidden, FileStates) else None
    with pytest.raises(NumericalError, match=r"mlp\.down_proj: its calibration inputs"):
        pruned_by(tiny_model, "wanda", schedule, states)
    assert [addresses(block) for block in tiny_model.model.layers] == homes
    assert n_hooks(tiny_model) == 0
    assert (tiny_model.model.layers[0].mlp.up_proj.weight == 0).sum() == 48 * 32 // 2  # pruned, and brought home
    del states
    if file is not None:
        gc.collect()  # the error held frames
        assert file.closed
    assert list(tmp_path.iterdir()) == []


def test_what_changed_is_copied_home_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.BatchNorm1d(3)  # weight, bias and buffers
    home = {name: tensor.data for name, tensor in module.state_dict(keep_vars=True).items()}
    written = []
    plain = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda tensor, new: (written.append(tensor.data_ptr()), plain(tensor, new))[1])
    with pytest.raises(ZeroDivisionError), moved(module, "cpu"):
        module.weight[1] = float("nan")
        module.running_mean[0], module.running_mean[2] = -0.0, 5.0
        assert home["weight"].tolist() == [1, 1, 1]  # a copy was changed
        1 / 0  # noqa: B018
    assert_close(home["weight"], torch.tensor([1, float("nan"), 1]), equal_nan=True)
    assert torch.signbit(home["running_mean"]).tolist() == [True, False, False]
    assert home["running_mean"].tolist() == [0, 0, 5]
    assert set(written) == {home["weight"].data_ptr(), home["running_mean"].data_ptr()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        assert tensor.data_ptr() == home[name].data_ptr()


def test_nothing_is_compared_or_copied_where_nothing_changes() -> None:
    module = nn.Linear(3, 5)
    before = module.weight.clone()
    with moved(module, "cpu", changes=False):
        module.weight.zero_()
    assert torch.equal(module.weight, before)
    with moved(module, None):
        module.weight.zero_()
    assert not module.weight.any()


def test_a_move_that_fails_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(3, 5)
    homes = addresses(module)
    plain = Tensor.to

    def full(tensor: Tensor, *arguments: object, **keywords: object) -> Tensor:
        if tensor.ndim == 1:
            raise torch.OutOfMemoryError("the device is full")
        return plain(tensor, *arguments, **keywords)

    monkeypatch.setattr(Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError), moved(module, "cpu"):
        pass
    assert addresses(module) == homes


# ------------------------------------------------------------------ hidden states in a file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_file_gives_back_what_it_was_given(dtype: torch.dtype, tmp_path: Path) -> None:
    batches = [torch.randn(n, 11, 29).to(dtype) for n in (3, 3, 1)]
    states = FileStates(iter(batches), n_tokens=77)
    assert len(states) == 3
    assert_close(list(states), batches, rtol=0, atol=0)
    states[1] = -batches[1].transpose(0, 1).contiguous().transpose(0, 1)  # in any layout
    assert torch.equal(states[1], -batches[1])
    assert torch.equal(states[0], batches[0]) and torch.equal(states[2], batches[2])
    old = states[2]
    file = states._file
    del states
    assert file.closed and list(tmp_path.iterdir()) == []
    assert torch.equal(old, batches[2])  # a batch in use outlives the file


def test_a_disk_without_room_is_seen_beforehand(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload.shutil, "disk_usage", lambda _: SimpleNamespace(free=9855))
    with pytest.raises(InputError, match=r"take 0\.00 GB, and .* has 0\.00 GB free\. Set TMPDIR"):
        Walk(tiny_model, TOKENS, hidden="file")  # 7 x 11 tokens x 32 numbers x 4 bytes = 9856 bytes
    monkeypatch.setattr(offload.shutil, "disk_usage", lambda _: SimpleNamespace(free=9856))
    Walk(tiny_model, TOKENS, hidden="file")


def test_a_disk_that_fills_up_meanwhile_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(InputError, match=r"do not fit into .*: No space left on device"):
        FileStates([torch.zeros(3, 11, 29)], n_tokens=33)


def test_an_unknown_place_is_refused_with_near_matches(tiny_model: LlamaForCausalLM) -> None:
    with pytest.raises(InputError, match=r"unknown place for hidden states 'files'\. Did you mean 'file'\?"):
        Walk(tiny_model, TOKENS, hidden="files")  # type: ignore[arg-type]


# ------------------------------------------------------------------ device_map


def device_map(**other: str) -> dict[str, str]:
    """Everything on the CPU but what is named otherwise."""
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    return {**places, "model.layers.0": "cpu", "model.layers.1": "cpu", **other}


@pytest.mark.parametrize("schedule", ["block", "sequential"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_model_spread_by_a_device_map_is_walked_by_its_own_hooks(
    tiny_model: LlamaForCausalLM, placement: Placement, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = weights(tiny_model)
    wanted = pruned_by(tiny_model, "wanda", schedule, Walk(tiny_model, TOKENS))
    for name, layer in all_layers(tiny_model).items():
        layer.set_weight_(dense[name])
    spread = accelerate.dispatch_model(tiny_model, device_map(), force_hooks=True)
    entered = []
    plain = accelerate.hooks.AlignDevicesHook.pre_forward
    monkeypatch.setattr(
        accelerate.hooks.AlignDevicesHook,
        "pre_forward",
        lambda hook, module, *a, **k: (entered.append(module), plain(hook, module, *a, **k))[1],
    )
    forwards = [block.forward for block in spread.model.layers]
    assert_close(pruned_by(spread, "wanda", schedule, Walk(spread, TOKENS, hidden=placement)), wanted, rtol=0, atol=0)
    assert set(spread.model.layers) <= set(entered)
    assert [block.forward for block in spread.model.layers] == forwards


def test_weights_that_a_device_map_left_on_disk_are_refused(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    places = device_map(**{"model.layers.1": "disk"})
    spread = accelerate.dispatch_model(tiny_model, places, offload_dir=tmp_path / "weights")
    with pytest.raises(InputError, match=r"model\.layers\.1\.\S+ is not in memory: a device_map .* --offload on the"):
        Walk(spread, TOKENS)


class OnDevices(nn.Module):
    """A model of blocks whose parameters say they are on devices that this machine need not have."""

    def __init__(self, *blocks: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in block)) for block in blocks)
        for block, names in zip(self.layers, blocks, strict=True):
            parameters = [SimpleNamespace(device=torch.device(name)) for name in names]
            block.parameters = lambda parameters=parameters: iter(parameters)

    def parameters(self, recurse: bool = True) -> Iterator[SimpleNamespace]:
        return (parameter for block in self.layers for parameter in block.parameters())


def test_blocks_may_be_on_different_devices_but_each_on_one() -> None:
    whole = OnDevices(("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"))
    check_weights(whole, None)
    with pytest.raises(InputError, match="spread over several devices by a device_map, so its blocks cannot be moved"):
        check_weights(whole, "cuda:0")
    with pytest.raises(InputError, match=r"layers\.1 is spread over cuda:0, cuda:1\. Use a device_map that keeps"):
        check_weights(OnDevices(("cuda:0", "cuda:0"), ("cuda:1", "cuda:0")), None)


# ------------------------------------------------------------------ evaluation, block by block


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma3_text", "opt"])
def test_a_streamed_forward_is_the_plain_one_with_one_block_away(family: str) -> None:
    model = family_model(family)
    ids = torch.from_numpy(TOKENS)
    wanted = model(ids, use_cache=False).logits
    with watched(model) as seen, streamed(model, DEVICE):
        assert_close(model(ids, use_cache=False).logits, wanted, **EXACT)
        assert_close(model(ids, use_cache=False).logits, wanted, **EXACT)
    assert seen and all(away == {index} for index, away in seen)
    with streamed(model, None):
        assert torch.equal(model(ids, use_cache=False).logits, wanted)
    assert n_hooks(model) == 0


def test_a_streamed_forward_that_fails_leaves_the_block_at_home(tiny_model: LlamaForCausalLM) -> None:
    homes = [addresses(block) for block in tiny_model.model.layers]

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    handle = tiny_model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError), streamed(tiny_model, "cpu"):
        tiny_model(torch.from_numpy(TOKENS))
    handle.remove()
    assert [addresses(block) for block in tiny_model.model.layers] == homes
    assert n_hooks(tiny_model) == 0
