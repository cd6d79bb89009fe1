"""The layers of a decoder that pruning may touch. This is the one file that knows how transformers lays a decoder out.

Linear maps inside the decoder blocks are found by type, in any family. What a type does not tell is in one table,
`FUSED`: which modules compute several of the papers' layers at once, and which of their rows belong to which.
Embeddings, norms and lm_head are outside the blocks, or are no linear maps, and are never found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from calib_study.errors import StudyError

LINEAR_TYPES = (nn.Linear, Conv1D)  # Conv1D is GPT-2's linear layer with a transposed weight; it convolves nothing
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # short ones, in the mixers of some blocks; never pruned
# Anything else is a packed weight of a quantised model, of which single entries cannot be set to zero.
PRUNABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Role = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Fused:
    """How the output rows of one module are shared among several layers.

    The rows are `groups` equal runs, one after another; each run holds its share of every part, in order.

    Args:
        parts: names in the order of the rows.
        groups: number of runs; 1 = all of the first part, then all of the second, and so on.
        head_width: name of the owner's attribute that holds the width of a head, if there is instead one run for
            each key-value head.
    """

    parts: tuple[str, ...]
    groups: int = 1
    head_width: str | None = None


QKV, GATE_UP = ("q", "k", "v"), ("gate", "up")
# Class of the module that owns it and its name there -> the layout. The name alone does not tell: Phi-3's and
# CodeGen's qkv_proj have the same shape and different rows. A fused module that is not listed is one layer. That
# changes no mask where weights compete within a row (Wanda); where they compete within a layer (magnitude), its
# parts then compete with each other.
FUSED = {
    "Phi3Attention.qkv_proj": Fused(QKV),
    "GPT2Attention.c_attn": Fused(QKV),
    "MptAttention.Wqkv": Fused(QKV),
    # The first head's queries, keys and values, then the second head's, ...
    "GPTNeoXAttention.query_key_value": Fused(QKV, head_width="head_size"),
    "BloomAttention.query_key_value": Fused(QKV, head_width="head_dim"),
    "PersimmonAttention.query_key_value": Fused(QKV, head_width="head_dim"),
    # The same with all queries that share a key-value head before it. With a single one it is q, k, v as above.
    "FalconAttention.query_key_value": Fused(QKV, head_width="head_dim"),
    "GPTBigCodeAttention.c_attn": Fused(QKV, head_width="head_dim"),
    # Always four runs, whatever the number of heads, from the four accelerators of its training; values before keys.
    "CodeGenAttention.qkv_proj": Fused(("q", "v", "k"), groups=4),
    "Phi3MLP.gate_up_proj": Fused(GATE_UP),
    "GlmMLP.gate_up_proj": Fused(GATE_UP),
    "Glm4MLP.gate_up_proj": Fused(GATE_UP),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map of a decoder block as the papers count them: all of a module, or one part of a fused one.

    Attributes:
        name: inside the block: "self_attn.q_proj", or "self_attn.qkv_proj.q" for a part.
        module: the module that is called; its input is the layer's input, shared by all parts.
        role: "attention" if a module on the path has attn or attention in its name, else "mlp".
        rows: int64 indices of the module's outputs that belong to the layer; None = all. On the CPU, wherever the
            module is: it may move.
        transposed: True for GPT-2's Conv1D, whose weight is (d_in, d_out).
    """

    name: str
    module: nn.Module
    role: Role
    rows: Tensor | None
    transposed: bool
    d_out: int
    d_in: int

    def weight(self) -> Tensor:
        """Return the weight (d_out, d_in), detached: a view of the module's where it is all of it, else a copy."""
        whole = self._whole()
        return whole if self.rows is None else whole[self.rows]

    def set_weight_(self, weight: Tensor) -> None:
        """Write a weight (d_out, d_in) into the module, in the module's dtype. Other parts keep theirs."""
        self._check_shape("weight", weight)
        whole = self._whole()
        if self.rows is None:
            whole.copy_(weight)
        else:
            whole[self.rows] = weight.to(whole)

    def remove_(self, removed: Tensor) -> None:
        """Set the weights to zero where `removed` (d_out, d_in) is True."""
        self._check_shape("mask", removed)
        weight = self.weight().masked_fill_(removed, 0)
        if self.rows is not None:
            self.set_weight_(weight)

    def _whole(self) -> Tensor:
        """Return a view of the module's weight with one row for each output."""
        weight = self.module.get_parameter("weight").detach()
        return weight.t() if self.transposed else weight

    def _check_shape(self, what: str, tensor: Tensor) -> None:
        if tensor.shape != (self.d_out, self.d_in):
            raise StudyError(f"{self.name}: a {what} of shape {tuple(tensor.shape)}, not {(self.d_out, self.d_in)}.")


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the decoder blocks: the longest list of modules that contain linears.

    Lists inside the members of another such list do not count. Raises StudyError if there is none.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():  # outer modules come first
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and len(module) and all(map(_has_linears, module)):
            lists[name] = module
    if not lists:
        raise StudyError(
            f"{type(model).__name__}: no list of decoder blocks found. Looked for a torch.nn.ModuleList whose members "
            "each contain linear layers (torch.nn.Linear, or transformers' Conv1D)."
        )
    return max(lists.items(), key=lambda item: len(item[1]))


def _has_linears(block: nn.Module) -> bool:
    return any(isinstance(module, LINEAR_TYPES) for module in block.modules() if module is not block)


def all_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the layers of all decoder blocks by full name, for example "model.layers.0.self_attn.q_proj"."""
    prefix, blocks = decoder_blocks(model)
    return {
        f"{prefix}.{index}.{name}": layer
        for index, block in enumerate(blocks)
        for name, layer in block_layers(block).items()
    }


def block_layers(block: nn.Module) -> dict[str, Layer]:
    """Return the layers of a decoder block by their name inside it: all that pruning may touch.

    Raises StudyError for a block that cannot be pruned as a whole: a mixture of experts, or packed weights.
    """
    _refuse_experts(block)
    return {
        layer.name: layer
        for name, module in block.named_modules()
        if isinstance(module, LINEAR_TYPES)
        for layer in _layers_of(block, name, module)
    }


def _refuse_experts(block: nn.Module) -> None:
    """Raise StudyError if a block has weights of experts: no Linear holds them, so they would be left dense."""
    experts = [name for name, _ in block.named_modules() if name.endswith("experts")]
    stacked = [
        f"{name} {tuple(parameter.shape)}"
        for name, parameter in block.named_parameters()
        if parameter.ndim > 2 and not isinstance(block.get_submodule(name.rpartition(".")[0]), CONVOLUTIONS)
    ]
    if experts or stacked:
        raise StudyError(
            f"{type(block).__name__} is a mixture of experts ({', '.join(stacked or experts)}); only models whose "
            "weights are all in linear layers can be pruned, so that none is left out."
        )


def _layers_of(block: nn.Module, name: str, module: nn.Module) -> Iterator[Layer]:
    """Yield the layers that one linear module of a block computes."""
    weight = module.get_parameter("weight")
    if weight.dtype not in PRUNABLE_DTYPES:
        raise StudyError(f"{name}: its weights are stored as {weight.dtype}; load the model in a floating-point dtype.")
    transposed = isinstance(module, Conv1D)
    d_out, d_in = weight.shape[::-1] if transposed else weight.shape
    role: Role = "attention" if "attn" in name.lower() or "attention" in name.lower() else "mlp"
    parent, _, own = name.rpartition(".")
    owner = block.get_submodule(parent)
    fused = FUSED.get(f"{type(owner).__name__}.{own}")
    if fused is None:
        yield Layer(name, module, role, None, transposed, d_out, d_in)
        return
    for part, rows in _rows_of_parts(fused, owner, module, d_out).items():
        yield Layer(f"{name}.{part}", module, role, rows, transposed, len(rows), d_in)


def _rows_of_parts(fused: Fused, owner: nn.Module, module: nn.Module, d_out: int) -> dict[str, Tensor]:
    """Return which of the d_out rows of a fused module belong to each part.

    Gate and up are equal. There are as many rows of queries as the attention's output projection has inputs; keys
    and values share the rest. Raises StudyError if they do not come out whole.
    """
    sizes = dict.fromkeys(fused.parts, d_out // len(fused.parts))
    if "q" in fused.parts:
        n_query = sum(_d_in(other) for other in owner.children() if other is not module)
        sizes = dict.fromkeys(fused.parts, (d_out - n_query) // 2) | {"q": n_query}
    groups = fused.groups
    if fused.head_width is not None:
        groups, left = divmod(sizes["k"], int(getattr(owner, fused.head_width)))
        groups = 0 if left else groups
    if groups < 1 or sum(sizes.values()) != d_out or any(size < 1 or size % groups for size in sizes.values()):
        raise StudyError(
            f"{type(owner).__name__}: its {d_out} fused output rows are not {', '.join(fused.parts)} in {groups} "
            f"equal groups (expected {sizes}). The layout in calib_study/layers.py does not fit this model."
        )
    runs = torch.split_with_sizes(torch.arange(d_out).view(groups, -1), [sizes[p] // groups for p in fused.parts], 1)
    return {part: run.reshape(-1) for part, run in zip(fused.parts, runs, strict=True)}


def _d_in(module: nn.Module) -> int:
    """Return the number of inputs of a linear module, 0 for any other."""
    if not isinstance(module, LINEAR_TYPES):
        return 0
    return module.get_parameter("weight").shape[0 if isinstance(module, Conv1D) else 1]
