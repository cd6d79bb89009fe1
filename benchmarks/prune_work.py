"""The pieces of work that prune_cost.py measures, each as a function of a loaded model and calibration windows."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import textbook
import torch

from calib_study import walk
from calib_study.criteria import Request, prune_group_
from calib_study.layers import all_layers, block_layers
from calib_study.methods import METHODS, Pattern
from calib_study.models import DenseModel
from calib_study.moments import InputMoments
from calib_study.perplexity import perplexity
from calib_study.prune import allocated, evaluation_mode, prune_
from calib_study.sparsegpt import sparsegpt
from calib_study.specs import Owl

SPARSITY = 0.5
PATTERNS = ("unstructured", "2:4", "4:8")
Problem = tuple[list[torch.Tensor], torch.Tensor]  # the weights that read one input, and its Gram matrix


@dataclass(frozen=True)
class Measured:
    """What one piece of work took, and what it left behind.

    Attributes:
        cpu_s: CPU seconds of this process, all threads.
        zeros: which of all block weights were zero afterwards, eight to a byte, if the work was to prune.
        perplexity: of the pruned model on held-out text.
    """

    cpu_s: float
    zeros: np.ndarray | None = None
    perplexity: float | None = None


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process, all threads, for one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


@torch.no_grad()
def forward(dense: DenseModel, tokens: np.ndarray) -> Measured:
    """Pass all windows through the decoder blocks, a few at a time, as the walk does."""
    dense.restore()
    batches = torch.from_numpy(tokens).split(max(1, walk.TOKENS_PER_CALL // tokens.shape[1]))

    def run() -> None:
        for batch in batches:
            dense.model.model(batch, use_cache=False)

    return Measured(min(cpu_seconds(run) for _ in range(3)))


def pruning(
    dense: DenseModel, tokens: np.ndarray, method: str, schedule: str = "block", held_out: np.ndarray | None = None
) -> Measured:
    """Prune by the engine, unstructured."""
    request = Request(METHODS[method], SPARSITY, Pattern())
    return _pruned(dense, lambda: prune_(dense.model, request, tokens, schedule=schedule, progress=False), held_out)


def textbook_pruning(
    dense: DenseModel, tokens: np.ndarray, method: str, held_out: np.ndarray | None = None
) -> Measured:
    """Prune by the baseline."""
    prune, ids = getattr(textbook, method), torch.from_numpy(tokens)

    def run() -> None:
        with library_attention(dense):
            textbook.prune_block_by_block(dense.model, ids, prune, gram=method == "sparsegpt")

    return _pruned(dense, run, held_out)


def outlier_pass(dense: DenseModel, tokens: np.ndarray) -> Measured:
    """Find OWL's share of each block."""
    dense.restore()
    request = Request(METHODS["wanda"], SPARSITY, Pattern())
    return Measured(cpu_seconds(lambda: allocated(dense.model, request, tokens, Owl(), progress=False)))


@torch.no_grad()
def choosing(dense: DenseModel, pattern: str) -> Measured:
    """Score, choose and zero the weights of the whole model by Wanda, statistics given."""
    dense.restore()
    request = Request(METHODS["wanda"], SPARSITY, Pattern.parse(pattern))
    layers = all_layers(dense.model)
    generator = torch.Generator().manual_seed(0)
    given = {}
    for width in {layer.d_in for layer in layers.values()}:
        squares = torch.rand(1, width, generator=generator, dtype=torch.float64)
        given[width] = InputMoments(squares, squares, seq_len=1)

    def run() -> None:
        for name, layer in layers.items():
            prune_group_({name: layer}, given[layer.d_in], request)

    return Measured(cpu_seconds(run))


@torch.no_grad()
def problems(dense: DenseModel, tokens: np.ndarray) -> list[Problem]:
    """Return what SparseGPT solves: for every input of the model, the weights that read it and its Gram matrix."""
    dense.restore()
    found = []
    with evaluation_mode(dense.model):
        states = walk.Walk(dense.model, tokens)
        for index, block in enumerate(states.blocks):
            seen, layers = states.moments(index, gram=True, advance=True), block_layers(block)
            for first, names in states.groups(index).items():
                found.append(([layers[name].weight() for name in names], seen[first].gram))
    return found


@torch.no_grad()
def solving(given: Sequence[Problem], pattern: str) -> Measured:
    """Factorise every Gram matrix and run the column loop of SparseGPT on its layers; change no model."""
    chosen = Pattern.parse(pattern)

    def run() -> None:
        for weights, gram in given:
            sparsegpt(weights, gram, SPARSITY, chosen, layer="a layer")

    return Measured(cpu_seconds(run))


@contextmanager
def library_product(setting: str) -> Iterator[None]:
    """Let torch compute float32 products by its own setting inside."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    products.fp32_precision = setting
    try:
        yield
    finally:
        products.fp32_precision = before


@contextmanager
def library_attention(dense: DenseModel) -> Iterator[None]:
    """Let the model use transformers' default attention inside, whatever it uses otherwise."""
    before = dense.model.config._attn_implementation
    dense.model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        dense.model.set_attn_implementation(before)


@contextmanager
def tokens_per_call(number: int) -> Iterator[None]:
    """Let the walk take batches of another size inside."""
    before = walk.TOKENS_PER_CALL
    walk.TOKENS_PER_CALL = number
    try:
        yield
    finally:
        walk.TOKENS_PER_CALL = before


def _pruned(dense: DenseModel, work: Callable[[], object], held_out: np.ndarray | None) -> Measured:
    dense.restore()
    seconds = cpu_seconds(work)
    scored = None if held_out is None else perplexity(dense.model, held_out).value
    return Measured(seconds, _zeros(dense), scored)


def _zeros(dense: DenseModel) -> np.ndarray:
    return np.concatenate([np.packbits((layer.weight() == 0).numpy()) for layer in all_layers(dense.model).values()])
