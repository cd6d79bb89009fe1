"""Models in memory: loading, conversion, and restoring what was pruned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import TOKENS, tiny_tensors, write_tiny_gguf
from tiny_study import tiny_model_directory
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from calib_study import models
from calib_study.errors import InputError
from calib_study.methods import METHODS, Pattern
from calib_study.model_files import converted_dir, is_converted, resolve_model
from calib_study.models import (
    DenseModel,
    check_device,
    choose_dtype,
    convert_packaged,
    load_model,
    load_tokenizer,
)
from calib_study.prune import Request, prune_

pytestmark = pytest.mark.tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model_directory(tmp_path / "tiny")


def load(path: Path) -> DenseModel:
    return load_model(resolve_model(str(path)))


def rewrite_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of a saved model; None removes one."""
    weights = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------ loading


def test_a_directory_is_loaded_as_it_is(folder: Path) -> None:
    dense = load(folder)
    assert not dense.model.training
    assert dense.tokenizer.get_vocab() == load_tokenizer(dense.ref).get_vocab()
    stored = load_file(folder / "model.safetensors")
    found = dense.model.state_dict()
    assert stored.keys() == found.keys()
    for name, tensor in stored.items():
        assert_close(found[name], tensor, rtol=0, atol=0)


def test_the_dtype_is_the_one_asked_for(folder: Path) -> None:
    dense = load_model(resolve_model(str(folder)), dtype="bfloat16")
    assert {tensor.dtype for tensor in dense.model.parameters()} == {torch.bfloat16}


def test_a_gguf_file_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    dense = load(write_tiny_gguf(tmp_path / "tiny.gguf"))
    stored = tiny_tensors()
    block = dense.model.model.layers[1]
    # Queries and keys are stored with their rows in another order; the rest is as it is in the file.
    assert np.array_equal(block.self_attn.v_proj.weight.detach(), stored["blk.1.attn_v.weight"])
    assert np.array_equal(block.mlp.down_proj.weight.detach(), stored["blk.1.ffn_down.weight"])
    assert np.array_equal(dense.model.lm_head.weight.detach(), stored["token_embd.weight"])
    # "ab" is one token by the only merge; "a" and "b" are characters 97 and 98, of which 33 is the second token.
    assert dense.tokenizer("abba")["input_ids"] == [len(TOKENS) - 1, 98 - 32, 97 - 32]
    assert_close(dense.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all(), torch.tensor(True))


@pytest.mark.parametrize("value", [None, torch.zeros(3, 5)])
def test_weights_that_transformers_would_invent_are_refused(folder: Path, value: torch.Tensor | None) -> None:
    rewrite_weights(folder, **{"model.layers.1.mlp.up_proj.weight": value})
    with pytest.raises(
        InputError, match=r"tiny: its files lack, .* the weights model\.layers\.1\.mlp\.up_proj\.weight\."
    ):
        load(folder)


def test_a_gguf_file_without_all_weights_is_refused(tmp_path: Path) -> None:
    without = tuple(name for name in tiny_tensors() if "blk.1.ffn" in name)
    assert len(without) == 4
    file = write_tiny_gguf(tmp_path / "tiny.gguf", without=without)
    with pytest.raises(InputError, match=r"its files lack, .* and 1 more\."):
        load(file)


@pytest.mark.parametrize("damage", ["half the weights", "no weights", "unknown family", "odd heads", "no tokenizer"])
def test_what_does_not_make_a_model_is_one_clear_error(folder: Path, damage: str) -> None:
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    match damage:
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "no weights":
            weights.rename(folder / "adapter.safetensors")
        case "unknown family":
            (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
        case "odd heads":
            (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="model tiny: transformers cannot load it"):
        load(folder)


def test_devices() -> None:
    assert check_device("cpu") == torch.device("cpu")
    for name in ("nonsense", "", "cuda:97", "meta"):
        with pytest.raises(InputError, match=rf"device '{name}' is not on this machine\. It has: cpu"):
            check_device(name)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def no_cuda(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", no_cuda)
    with pytest.raises(InputError, match=r"device 'cuda' is not on this machine\. It has: cpu\.$"):
        check_device("cuda")


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("float32", "bfloat16"):
        assert choose_dtype(name, "cpu") == name
    assert choose_dtype("auto", "cpu") in ("float32", "bfloat16")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose_dtype("auto", "cpu") == "float32"
    with pytest.raises(InputError, match="dtype 'float16': allowed are float32, bfloat16 and auto"):
        choose_dtype("float16", "cpu")


# ------------------------------------------------------------------ pruned and dense weights


def test_restoring_gives_the_dense_weights_back_exactly(folder: Path) -> None:
    dense = load(folder)
    before = {name: tensor.clone() for name, tensor in dense.model.state_dict().items()}
    sha = dense.weights_sha256()
    prune_(dense.model, Request(METHODS["magnitude"], 0.7, Pattern()), progress=False)
    assert dense.weights_sha256() != sha
    dense.restore()
    assert dense.weights_sha256() == sha
    assert_close(dict(dense.model.state_dict()), before, rtol=0, atol=0)


def test_restoring_gives_fused_and_transposed_weights_back(folder: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    ref = resolve_model(str(folder))
    dense = DenseModel(model, load_tokenizer(ref), ref)
    sha = dense.weights_sha256()
    prune_(model, Request(METHODS["magnitude"], 0.7, Pattern()), progress=False)
    assert dense.weights_sha256() != sha
    dense.restore()
    assert dense.weights_sha256() == sha


def test_the_hash_of_weights_does_not_know_the_files(folder: Path, tmp_path: Path) -> None:
    dense = load(folder)
    dense.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    dense.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load(tmp_path / "shards").weights_sha256() == dense.weights_sha256()


def test_the_hash_of_weights_follows_each_of_them(folder: Path) -> None:
    dense = load(folder)
    seen = {dense.weights_sha256()}
    with torch.no_grad():
        for parameter in dense.model.parameters():
            value = parameter.view(-1)[-1].clone()
            parameter.view(-1)[-1] = torch.nextafter(value, torch.tensor(torch.inf))
            seen.add(dense.weights_sha256())
            parameter.view(-1)[-1] = value
    assert len(seen) == 1 + len(list(dense.model.parameters()))
    assert load_model(dense.ref, dtype="bfloat16").weights_sha256() not in seen


# ------------------------------------------------------------------ conversion of a packaged model

NAME = "smollm2-135m"


@pytest.fixture
def packaged(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The default model's name stands for the tiny GGUF file, which is unpacked where this list says."""
    unpacked: list[Path] = []

    def unpack(model: object, folder: Path) -> Path:
        unpacked.append(write_tiny_gguf(folder / "tiny.gguf"))
        return unpacked[-1]

    monkeypatch.setattr(models, "packaged_gguf", unpack)
    return unpacked


def test_a_packaged_model_is_converted_once_and_exactly(packaged: list[Path], tmp_path: Path) -> None:
    target = convert_packaged(NAME)
    assert target == converted_dir(NAME) and is_converted(NAME)
    stamps = {file: file.stat().st_mtime_ns for file in target.iterdir()}
    converted = load_model(resolve_model(NAME))
    assert convert_packaged(NAME) == target
    assert len(packaged) == 1
    assert {file: file.stat().st_mtime_ns for file in target.iterdir()} == stamps
    assert converted.weights_sha256() == load(write_tiny_gguf(tmp_path / "again.gguf")).weights_sha256()
    assert converted.tokenizer("abba")["input_ids"] == [len(TOKENS) - 1, 98 - 32, 97 - 32]
    assert {file.name for file in target.parent.iterdir()} == {target.name, f"{NAME}.lock"}


@pytest.mark.parametrize("stage", ["unpacking", "saving"])
def test_an_interrupted_conversion_leaves_nothing(
    packaged: list[Path], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stage == "unpacking":
            patch.setattr(models, "packaged_gguf", interrupt)
        else:  # the weights are written, and the tokenizer is not
            patch.setattr(models.PreTrainedTokenizerBase, "save_pretrained", interrupt)
        convert_packaged(NAME)
    assert not is_converted(NAME)
    assert {file.name for file in converted_dir(NAME).parent.iterdir()} == {f"{NAME}.lock"}
    assert load_model(resolve_model_unfetched()).ref.name == NAME


def resolve_model_unfetched() -> models.ModelRef:
    """The packaged model's reference, although its archive is not in the cache."""
    return models.ModelRef(NAME, "packaged", None, None, 64, len(TOKENS))


def test_what_a_killed_conversion_left_is_replaced(packaged: list[Path]) -> None:
    left = converted_dir(NAME).parent / f"{NAME}.part" / "copy"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    converted_dir(NAME).mkdir()  # a folder without the model in it
    (converted_dir(NAME) / "model.safetensors").write_text("half")
    assert not is_converted(NAME)
    assert load_model(resolve_model_unfetched()).model.config.hidden_size == 32
    assert not left.exists()
