"""One pruned model as a directory: what would fail later is said before, and what is written is whole and loads."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_study import tiny_model_directory, tiny_source
from transformers import AutoModelForCausalLM, AutoTokenizer

from calib_study.errors import InputError, NumericalError
from calib_study.export import PruneJob
from calib_study.layers import all_layers
from calib_study.records import Record

Files = tuple[Path, Path]
pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("own_cache")]


def checked(files: Files, out: Path, **options: Any) -> PruneJob:
    """Return a small job of Wanda at one half, with `options` changed."""
    given: dict[str, Any] = {
        "model": str(files[0]),
        "method": "wanda",
        "sparsity": 0.5,
        "pattern": "unstructured",
        "source": str(files[1]),
        "n_samples": 4,
        "seq_len": 16,
        "seed": 0,
        "policy": "packed",
        "calibration_tokens": None,
        "evaluate": "",
        "remote_code": False,
        "dtype": "float32",
        "device": "cpu",
        "out": out,
    }
    return PruneJob.checked(**given | options)


def pruned(files: Files, out: Path, **options: Any) -> list[str]:
    """Run a job; return what it said."""
    said: list[str] = []
    checked(files, out, **options).run(said.append)
    return said


def record(out: Path) -> Record:
    return Record.model_validate_json((out / "record.json").read_text())


# --- what is written --------------------------------------------------------------------------------------


def test_the_directory_loads_with_the_right_zeros(tiny_files: Files, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    said = pruned(tiny_files, out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    dense = AutoModelForCausalLM.from_pretrained(tiny_files[0], dtype="auto")
    layers = all_layers(model)
    assert len(layers) == 14
    for name, layer in layers.items():
        kept = layer.weight() != 0
        assert kept.sum(1).eq(layer.d_in // 2).all(), name
        assert torch.equal(layer.weight()[kept], dense.get_submodule(name).weight[kept])
    for name, tensor in dense.state_dict().items():
        if name.removesuffix(".weight") not in layers:
            assert torch.equal(tensor, model.state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = tokenizer("ba be bi", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    assert {path.name for path in out.iterdir()} >= {"record.json", "calibration_tokens.npy", "model.safetensors"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]  # nothing temporary is left beside it
    assert said == ["wanda 0.5 on own.txt, seed 0: 50.0000% of the block linears' weights are zero."]


def test_the_record_says_what_was_done(tiny_files: Files, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "more.txt", n_documents=150)
    options = {"seed": 3, "evaluate": f" {source},", "n_samples": 2}
    said = pruned((tiny_files[0], source), tmp_path / "out", **options)
    found = record(tmp_path / "out")
    assert found.spec == checked((tiny_files[0], source), tmp_path / "x", **options).spec
    assert found.spec.calibration is not None and found.calibration is not None
    assert (found.spec.model, found.spec.seed, found.spec.calibration.source) == ("tiny", 3, str(source))
    tokens = np.load(tmp_path / "out" / "calibration_tokens.npy")
    assert tokens.shape == (2, 16) and tokens.dtype == np.int64
    assert found.calibration.n_tokens == 32 and found.sparsity.overall == 0.5
    # 8 windows of the model's whole context, 64 tokens, of which the first is not scored: 8 * 63 = 504
    assert re.fullmatch(rf"perplexity on held-out {source}: \d+\.\d\d \(504 tokens in windows of 64\)", said[1])


def test_data_free_methods_need_no_source_and_save_no_tokens(tiny_files: Files, tmp_path: Path) -> None:
    pruned(tiny_files, tmp_path / "out", method="magnitude", source=None)
    assert not (tmp_path / "out" / "calibration_tokens.npy").exists()
    assert record(tmp_path / "out").calibration is None


def test_a_pattern_implies_the_sparsity(tiny_files: Files, tmp_path: Path) -> None:
    pruned(tiny_files, tmp_path / "out", pattern="1:4", sparsity=None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, layer in all_layers(model).items():
        kept = (layer.weight() != 0).reshape(layer.d_out, -1, 4).sum(2)
        assert kept.eq(1).all(), name
    assert record(tmp_path / "out").spec.sparsity == 0.75


def test_the_dense_model_is_copied(tiny_files: Files, tmp_path: Path) -> None:
    pruned(tiny_files, tmp_path / "out", method="dense", sparsity=None, source=None)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_files[0], tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_run_replaces_the_first(tiny_files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pruned(tiny_files, out)
    first = load_file(out / "model.safetensors")
    pruned(tiny_files, out, method="magnitude", source=None)
    assert record(out).spec.method == "magnitude"
    assert not (out / "calibration_tokens.npy").exists()
    second = load_file(out / "model.safetensors")
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_a_failed_run_leaves_the_earlier_output_or_nothing(
    tiny_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned(tiny_files, tmp_path / "old")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()}

    def fails(*_: object, **__: object) -> None:
        raise NumericalError("not finite")

    monkeypatch.setattr("calib_study.study.prune_", fails)
    for name in ("old", "new"):
        with pytest.raises(NumericalError):
            pruned(tiny_files, tmp_path / name, seed=1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_the_earlier_output(
    tiny_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pruned(tiny_files, out)
    before = (out / "record.json").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calib_study.windows.save_tokens", full)
    with pytest.raises(OSError, match="No space left"):
        pruned(tiny_files, out, seed=1)
    assert (out / "record.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_saved_tokens_give_the_same_weights(tiny_files: Files, tmp_path: Path) -> None:
    pruned(tiny_files, tmp_path / "first", seed=5)
    tokens = tmp_path / "first" / "calibration_tokens.npy"
    again = {"source": None, "calibration_tokens": tokens, "n_samples": None, "seq_len": None, "seed": 0}
    pruned(tiny_files, tmp_path / "again", **again)
    pruned(tiny_files, tmp_path / "other", seed=6)
    first, second, other = (load_file(tmp_path / n / "model.safetensors") for n in ("first", "again", "other"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    one, two = record(tmp_path / "first"), record(tmp_path / "again")
    assert one.calibration is not None and two.calibration is not None and two.spec.calibration is not None
    assert one.calibration.tokens_sha256 == two.calibration.tokens_sha256 == two.spec.calibration.tokens_sha256
    assert two.spec.calibration.source == "tokens:calibration_tokens.npy"
    assert np.array_equal(np.load(tokens), np.load(tmp_path / "again" / "calibration_tokens.npy"))


# --- what is refused, before any model is loaded ----------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calib_study.models.load_model", None)
    monkeypatch.setattr("calib_study.study.load_model", None)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wnda"}, r"unknown method 'wnda'\. Did you mean 'wanda'"),
        ({"method": "wnda", "sparsity": None}, r"unknown method 'wnda'\. Did you mean 'wanda'"),
        ({"model": "no/such/model"}, "no such directory"),
        ({"source": "c5"}, r"unknown source 'c5'\. Did you mean 'c4'"),
        ({"source": "none.txt"}, "there is no such file"),
        ({"source": None}, "method 'wanda' needs calibration text"),
        ({"sparsity": 1.5}, r"sparsity = 1\.5: Input should be less than 1"),
        ({"sparsity": None}, "--sparsity is needed for the unstructured pattern"),
        ({"pattern": "3:2"}, "0 < N < M is needed"),
        ({"pattern": "1:4"}, r"means sparsity 0\.75, but sparsity 0\.5 was asked"),
        ({"n_samples": 0}, r"n_samples = 0: Input should be greater than or equal to 1"),
        ({"seq_len": 0}, r"seq_len = 0: Input should be greater than or equal to 8"),
        ({"seq_len": 65}, "seq_len 65 is longer than the context of tiny: 64 tokens"),
        ({"seed": -1}, "seed = -1"),
        ({"policy": "packet"}, "Input should be 'document' or 'packed'"),
        ({"dtype": "float16"}, "dtype 'float16': allowed are float32, bfloat16, auto"),
        ({"dtype": "auto", "device": "gpu"}, "device 'gpu' is not on this machine"),
        ({"evaluate": "c4,wiki"}, r"unknown source 'wiki'\. Did you mean 'wikipedia'"),
        ({"evaluate": "random"}, "'random' has no text to be scored on"),
        ({"evaluate": "c4, c4"}, "each text can be scored once only"),
    ],
)
def test_bad_options(tiny_files: Files, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(tiny_files, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


GOOD = np.zeros((4, 16), dtype=np.int64)
TOKENS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "id too large": (GOOD + 92, {}, "ids from 92 to 92, but the model's vocabulary has 0 to 91"),
    "id negative": (GOOD - 1, {}, "ids from -1 to -1, but the model's vocabulary has 0 to 91"),
    "three axes": (GOOD[None], {}, r"expected int64 \(n_samples, seq_len\), got int64 \(1, 4, 16\)"),
    "one axis": (GOOD[0], {}, r"expected int64 \(n_samples, seq_len\), got int64 \(16,\)"),
    "int32": (GOOD.astype(np.int32), {}, r"expected int64 \(n_samples, seq_len\), got int32"),
    "float": (GOOD.astype(float), {}, "got float64"),
    "empty": (GOOD[:0], {}, r"shape \(0, 16\)"),
    "other n_samples": (GOOD, {"n_samples": 5}, r"shape \(4, 16\), but \(5, 16\) was asked"),
    "other seq_len": (GOOD, {"seq_len": 8}, r"shape \(4, 16\), but \(4, 8\) was asked"),
    "no n_samples": (GOOD, {"n_samples": 0}, "--n-samples 0: at least 1 is needed"),
    "no seq_len": (GOOD, {"seq_len": 0}, "--seq-len 0: at least 1 is needed"),
    "too short": (GOOD[:, :7], {}, "seq_len = 7: Input should be greater than or equal to 8"),
    "too long": (np.zeros((2, 65), dtype=np.int64), {}, "seq_len 65 is longer than the context of tiny"),
    "text": (b"0 1 2 3", {}, "not a .npy file of numbers"),
    "truncated": (b"\x93NUMPY\x01\x00", {}, "not a .npy file of numbers"),
    "absent": (None, {}, "no such file"),
    "a source too": (GOOD, {"source": "c4"}, "give --source or --calibration-tokens, not both"),
    "data-free": (GOOD, {"method": "magnitude"}, "method 'magnitude' uses no calibration text"),
}  # fmt: skip


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("kind", TOKENS)
def test_bad_token_files(tiny_files: Files, tmp_path: Path, kind: str) -> None:
    content, options, message = TOKENS[kind]
    file = tmp_path / "ids.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    given = {"calibration_tokens": file, "source": None, "n_samples": None, "seq_len": None} | options
    with pytest.raises(InputError, match=message):
        checked(tiny_files, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_pickled_tokens_are_not_opened(tiny_files: Files, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    given = {"calibration_tokens": tmp_path / "ids.npy", "source": None, "n_samples": None, "seq_len": None}
    with pytest.raises(InputError, match=r"not a \.npy file of numbers"):
        checked(tiny_files, tmp_path / "out", **given)


@pytest.mark.usefixtures("no_model")
def test_bad_outputs(tiny_files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for below in ("file/out", "file/deep/out"):
        with pytest.raises(InputError, match="cannot write to"):
            checked(tiny_files, tmp_path / below)
    with pytest.raises(InputError, match="is a file; name a directory"):
        checked(tiny_files, tmp_path / "file")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("")
    with pytest.raises(InputError, match="holds other files; name a new directory"):
        checked(tiny_files, tmp_path / "notes")
    (tmp_path / "empty").mkdir()
    assert checked(tiny_files, tmp_path / "empty").out == tmp_path / "empty"


@pytest.mark.usefixtures("no_model")
def test_a_model_is_never_taken_for_an_earlier_output(tiny_files: Files, tmp_path: Path) -> None:
    """Any model has a config.json; only what was written by a job may be replaced."""
    other = tiny_model_directory(tmp_path / "other")
    with pytest.raises(InputError, match="holds other files"):
        checked(tiny_files, other)
    (other / "record.json").write_text(json.dumps({}))
    assert checked(tiny_files, other).out == other
    with pytest.raises(InputError, match="is the model itself; name another directory"):
        checked((other, tiny_files[1]), tmp_path / "sub" / ".." / "other")


def test_checking_writes_nothing(tiny_files: Files, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "own.txt")
    checked((tiny_files[0], source), tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]
