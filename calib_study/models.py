"""Models in memory: loading and conversion, and a dense model that can be pruned and put back."""

import hashlib
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from calib_study import paths
from calib_study.catalogue import load_catalogue
from calib_study.errors import InputError, StudyError
from calib_study.layers import all_layers
from calib_study.model_files import ModelRef, converted_dir, is_converted, packaged_gguf

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What transformers and the libraries below it raise for files that do not make a model.
UNLOADABLE = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    ImportError,
    UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)


class DenseModel:
    """A loaded model that can be pruned and put back: the unpruned weights of its blocks' layers are kept aside.

    Args:
        keep: False saves the memory of those weights; the model can then be pruned once.

    Attributes:
        model: in evaluation mode; the layers of its blocks are what pruning changes.
        tokenizer: its tokenizer.
        ref: where it came from.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ref: ModelRef, *, keep: bool = True
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.ref = ref
        self._kept, self._used = keep, False
        modules = {layer.module for layer in all_layers(model).values() if keep}  # a fused one's parts share it
        self._dense = {module: module.get_parameter("weight").detach().clone() for module in modules}

    def weights_sha256(self) -> str:
        """Return the SHA-256 over names and values of all weights as they are now, whatever file they came from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.named_parameters()):
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def restore(self) -> None:
        """Undo any pruning: copy the dense weights back. Raises StudyError the second time if they were not kept."""
        if self._used and not self._kept:
            raise StudyError(f"{self.ref.name}: its dense weights were not kept, so it can be pruned only once.")
        self._used = True
        for module, weight in self._dense.items():
            module.get_parameter("weight").copy_(weight)


def check_device(device: str) -> torch.device:
    """Return the device of that name. Raises InputError if this machine does not have it."""
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        usable = chosen.type != "meta"  # torch's device without memory
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        have = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            have.append("mps")
        raise InputError(f"device {device!r} is not on this machine. It has: {', '.join(have)}.")
    return chosen


def choose_dtype(dtype: str, device: str) -> str:
    """Return "float32" or "bfloat16"; "auto" is bfloat16 where the hardware multiplies it, else float32."""
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise InputError(f"dtype {dtype!r}: allowed are float32, bfloat16 and auto.")
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    features = torch.backends.cpu.get_cpu_capability()
    return "bfloat16" if "AVX512" in features and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def load_model(ref: ModelRef, *, dtype: str = "float32", device: str = "cpu", keep: bool = True) -> DenseModel:
    """Load a model in evaluation mode.

    A packaged model is converted to safetensors once, in the cache. Only safetensors are read, never pickled
    weights, and Python code that comes with a model is run only if `ref.remote_code` says so. Raises InputError
    if the files do not make a causal language model, or lack any of its weights. `keep` is `DenseModel`'s.
    """
    where = check_device(device)
    source, options = _where(ref)
    if ref.kind != "gguf":
        options["use_safetensors"] = True
    try:
        # Weights of the wrong shape are reported like missing ones, rather than by a table in the log.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=DTYPES[dtype], output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except UNLOADABLE as error:
        raise InputError(f"model {ref.name}: transformers cannot load it: {error}") from error
    model, report = loaded
    _refuse_invented_weights(ref, report)
    tokenizer = load_tokenizer(ref)
    return DenseModel(model.to(where).eval(), tokenizer, ref, keep=keep)


def _refuse_invented_weights(ref: ModelRef, report: dict[str, Any]) -> None:
    """Raise InputError if transformers filled weights with random numbers, as it does when the files lack them."""
    invented = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if invented:
        more = f" and {len(invented) - 3} more" if len(invented) > 3 else ""
        raise InputError(
            f"model {ref.name}: its files lack, or have in a shape that does not fit, the weights "
            f"{', '.join(invented[:3])}{more}."
        )


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, without the model."""
    source, options = _where(ref)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    except UNLOADABLE as error:
        raise InputError(f"model {ref.name}: transformers cannot load its tokenizer: {error}") from error
    return tokenizer


def _where(ref: ModelRef) -> tuple[str, dict[str, Any]]:
    """Return what `from_pretrained` is called with for a model, after quieting its log."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"trust_remote_code": ref.remote_code}
    if ref.kind == "packaged":
        return str(convert_packaged(ref.name)), options
    if ref.kind == "gguf":
        file = Path(str(ref.location))
        return str(file.parent), {**options, "gguf_file": file.name}
    return str(ref.location), {**options, **({"revision": ref.revision} if ref.kind == "hub" else {})}


def convert_packaged(name: str) -> Path:
    """Return the safetensors copy of a packaged model, made from its GGUF file if it is not in the cache yet.

    The copy holds the de-quantised weights in float32, exactly. Processes that need it at once wait for the first.
    What a killed process left behind is removed by the next.
    """
    target = converted_dir(name)
    paths.check_writable(target.parent)
    with FileLock(target.parent / f"{name}.lock"):
        if not is_converted(name):
            folder = target.parent / f"{name}.part"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                _convert(packaged_gguf(load_catalogue().models[name], folder), folder / "copy")
                shutil.rmtree(target, ignore_errors=True)
                (folder / "copy").rename(target)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return target


def _convert(gguf: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers refuses to save a model that remembers having been quantised; these weights are plain floats.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def next_token_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits (n, seq_len, d_vocab) for a batch of token ids, without a key-value cache."""
    logits: Tensor = model(tokens, use_cache=False).logits
    return logits
