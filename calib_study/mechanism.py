"""Where a calibration text shows in a network: what answers the measurements `layer_profile` and `block_swap`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib_study import scores
from calib_study.array_files import Array
from calib_study.criteria import Request, prune_group_
from calib_study.dense_moments import BlockMoments, dense_moments
from calib_study.divergence import kl
from calib_study.errors import NumericalError
from calib_study.layers import Layer, block_layers, decoder_blocks
from calib_study.mask_samples import sample_mask
from calib_study.measurement_runs import Measured, Measurer, run_measurements
from calib_study.measurements import BlockSwap, LayerProfile, Measurement, MeasurementStore
from calib_study.measurements import Request as Asked
from calib_study.methods import Pattern, method_named
from calib_study.moments import InputMoments
from calib_study.owl import outlier_share
from calib_study.perplexity import TOKENS_PER_CALL
from calib_study.progress import bar
from calib_study.prune import evaluation_mode
from calib_study.records import Metric
from calib_study.specs import Evaluation, RunSpec
from calib_study.study import Laboratory
from calib_study.suffix import block_outputs, logits_after, weights_in, weights_of
from calib_study.walk import Walk
from calib_study.windows import Tokens

BITS = 12  # of a norm that are kept: 0.0001 of its value
CACHED_TOKENS = 512  # of a held-out text: Gram matrices of fewer are faster made again than read (400 MB here)


def measurers(*, progress: bool = True) -> dict[str, Measurer]:
    """Return what answers the measurements of this chapter, by kind; the two share the masks that they make."""
    masks = Masks()
    return {
        "layer_profile": Profiler(masks, progress=progress),
        "block_swap": partial(block_swap, masks=masks, progress=progress),
    }


def measure_mechanism(
    requests: Sequence[Asked],
    *,
    model: str | None = None,
    device: str = "cpu",
    store: MeasurementStore | None = None,
    progress: bool = True,
) -> list[Measurement]:
    """Return the measurements of all requests; see `measurement_runs.run_measurements`."""
    answers = measurers(progress=progress)
    return run_measurements(requests, answers, model=model, device=device, store=store, progress=progress)


class Masks:
    """Prunes a model as runs specify, and remembers which weights each removes: one bit a weight, 13 MB a run here.

    What changes the weights that it keeps, as SparseGPT does, is not remembered but pruned again.
    """

    def __init__(self) -> None:
        self._bits: dict[str, list[dict[str, NDArray[np.uint8]]]] = {}  # by run, then block and layer

    @torch.no_grad()
    def prune(self, lab: Laboratory, spec: RunSpec, only: Collection[int] | None = None) -> None:
        """Prune the model in place from its dense weights; with `only`, at least these blocks."""
        bits = self._bits.get(_mask_id(spec))
        if bits is None:
            lab.prune(spec)
            self.remember(lab, spec)
            return
        lab.dense.restore()
        for index, block in enumerate(decoder_blocks(lab.dense.model)[1]):
            for name, layer in block_layers(block).items() if only is None or index in only else ():
                removed = np.unpackbits(bits[index][name], count=layer.d_out * layer.d_in)
                mask = torch.from_numpy(removed).view(layer.d_out, layer.d_in).bool()
                layer.remove_(mask.to(layer.weight().device))

    @torch.no_grad()
    def remember(self, lab: Laboratory, spec: RunSpec) -> None:
        """Remember the masks of the model as it is, pruned as specified."""
        if spec.method != "dense" and method_named(spec.method).statistics != "gram":
            self._bits[_mask_id(spec)] = [
                {name: np.packbits((layer.weight() == 0).cpu().numpy()) for name, layer in block_layers(block).items()}
                for block in decoder_blocks(lab.dense.model)[1]
            ]


def _mask_id(spec: RunSpec) -> str:
    """Return a name of what decides the masks of a run, which its evaluation does not."""
    return spec.model_copy(update={"evaluation": Evaluation()}).run_id


# --- layers -------------------------------------------------------------------------------------------------


class Profiler:
    """Answers requests of kind `layer_profile`; it remembers the energies of held-out texts from one to the next."""

    def __init__(self, masks: Masks | None = None, *, progress: bool = True) -> None:
        self.masks = masks or Masks()
        self.progress = progress
        self._energies: dict[tuple[str, str, str], float] = {}  # weights, windows, layer -> ||X W||^2

    @torch.no_grad()
    def __call__(self, lab: Laboratory, request: LayerProfile) -> Measured:
        """Return the profile of a draw: see `LayerProfile` for its arrays. The model is left pruned."""
        asked, spec = request.evaluation, request.spec(request.draw)
        texts = {name: lab.held_out(name, asked.n_windows, asked.seq_len) for name in asked.sources}
        windows = lab.calibration_windows(spec)
        assert windows is not None
        how = Request(method_named(spec.method), spec.sparsity, Pattern.parse(spec.pattern), spec.seed)
        model = lab.dense.model
        lab.dense.restore()
        grams = method_named(spec.method).statistics == "gram"
        passes = [dense_moments(model, windows.tokens, gram=grams, cache=lab.cache)]
        passes += [_held_out_moments(lab, text.tokens, request.stride) for text in texts.values()]
        rows: list[dict[str, Any]] = []
        norms: list[Array] = []
        outliers: list[float] = []
        prefix, blocks = decoder_blocks(model)
        with evaluation_mode(model), bar(len(blocks), "layers", "block", shown=self.progress) as shown:
            # all statistics of a block are there before it is pruned, and the hidden states are beyond it
            for index, (block, (own, *held_out)) in enumerate(zip(blocks, zip(*passes, strict=True), strict=True)):
                layers = block_layers(block)
                outliers.append(outlier_share(_worth(layers, own), request.outlier_multiple))
                first = len(norms)
                norms += [_rounded(seen.norms() / np.sqrt(seen.n_tokens)) for _, seen in own]
                before = weights_of(block)
                for names, seen in own:
                    prune_group_({f"{prefix}.{index}.{name}": layers[name] for name in names}, seen, how)
                inputs = {name: first + i for i, (names, _) in enumerate(own) for name in names}
                grams_of = [{name: seen for names, seen in text for name in names} for text in held_out]
                for name, layer in layers.items():
                    full = f"{prefix}.{index}.{name}"
                    row: dict[str, Any] = {"layer": full, "kind": name, "block": index, "input": inputs[name]}
                    keys = [(lab.weights_sha256, text.sha256, full) for text in texts.values()]
                    found = zip(keys, (by_name[name] for by_name in grams_of), strict=True)
                    row["errors"] = [
                        self._error(key, before[name], layer.weight(), seen) if index % request.stride == 0 else np.nan
                        for key, seen in found
                    ]
                    rows.append(row)
                shown.update()
        self.masks.remember(lab, spec)
        arrays = _profile_arrays(rows, norms, outliers, list(texts))
        arrays |= sample_mask(model, request.n_positions).arrays()
        n_tokens = asked.n_windows * asked.seq_len
        return Measured(arrays, _error_metrics(arrays, n_tokens))

    def _error(self, key: tuple[str, str, str], dense: Tensor, pruned: Tensor, seen: InputMoments) -> float:
        """Return the relative error of a layer's output on a text, with its energy remembered by `key`."""
        gram = seen.gram
        assert gram is not None
        if key not in self._energies:
            self._energies[key] = output_energy(dense, gram)
        return relative_error(output_energy(dense.float() - pruned.float(), gram), self._energies[key], key[2])


def _held_out_moments(lab: Laboratory, tokens: Tokens, stride: int) -> Iterator[BlockMoments]:
    """Yield the moments of each block of the dense model, with Gram matrices in every so many blocks, at least."""
    if tokens.size >= CACHED_TOKENS:
        yield from dense_moments(lab.dense.model, tokens, gram=True, cache=lab.cache)
        return
    walk = Walk(lab.dense.model, tokens)
    for index in range(len(walk.blocks)):
        seen = walk.moments(index, gram=index % stride == 0, advance=index + 1 < len(walk.blocks))
        yield [(names, seen[first]) for first, names in walk.groups(index).items()]


def output_energy(weight: Tensor, gram: Tensor) -> float:
    """Return ||X W^T||^2 (Frobenius) from a weight (d_out, d_in) and X^T X (d_in, d_in): the trace of W X^T X W^T."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return float(((wide @ gram.to(wide)) * wide).sum(dtype=torch.float64))


def relative_error(error: float, energy: float, layer: str) -> float:
    """Return an error's share of the energy. Raises NumericalError naming the layer if there is no energy."""
    if not (np.isfinite(error) and np.isfinite(energy) and energy > 0):
        raise NumericalError(f"{layer}: its output on held-out text has the energy {energy}, its error {error}.")
    return max(error, 0.0) / energy


def _worth(layers: Mapping[str, Layer], inputs: BlockMoments) -> list[Tensor]:
    """Return the Wanda scores of every layer of a block."""
    return [scores.wanda(layers[name].weight(), seen.norms()) for names, seen in inputs for name in names]


def _rounded(values: Tensor) -> NDArray[np.float32]:
    """Return values to `BITS` significant bits: the zeros that follow take no room in a compressed file."""
    fraction, exponent = np.frexp(values.double().cpu().numpy())
    return np.asarray(np.ldexp(np.round(fraction * 2**BITS), exponent - BITS), dtype=np.float32)


def _profile_arrays(
    rows: Sequence[Mapping[str, Any]], norms: Sequence[Array], outliers: Sequence[float], texts: Sequence[str]
) -> dict[str, Array]:
    """Return the arrays that `LayerProfile` names, but those of the mask."""
    return {
        "layers": np.array([row["layer"] for row in rows]),
        "kinds": np.array([row["kind"] for row in rows]),
        "blocks": np.array([row["block"] for row in rows], dtype=np.int16),
        "inputs": np.array([row["input"] for row in rows], dtype=np.int16),
        "widths": np.array([len(channel) for channel in norms], dtype=np.int32),
        "norms": np.concatenate(norms),
        "outliers": np.array(outliers, dtype=np.float64),
        "errors": np.array([row["errors"] for row in rows], dtype=np.float32),
        "datasets": np.array(texts),
    }


def _error_metrics(arrays: Mapping[str, Array], n_tokens: int) -> list[Metric]:
    means = np.nanmean(arrays["errors"].astype(np.float64), axis=0)
    alike: dict[str, Any] = {"unit": "share of output, mean of layers", "higher_is_better": False, "n": n_tokens}
    return [
        Metric(name="reconstruction_error", dataset=str(name), value=float(mean), **alike)
        for name, mean in zip(arrays["datasets"], means, strict=True)
    ]


# --- blocks -------------------------------------------------------------------------------------------------


@torch.no_grad()
def block_swap(lab: Laboratory, request: BlockSwap, *, masks: Masks | None = None, progress: bool = True) -> Measured:
    """Return what a swap of each block does: see `BlockSwap` for the arrays. The model is left as its `base`.

    Exact, by forwards that begin at the swapped block. Held meanwhile: the other weights of all blocks, and for the
    held-out windows what each block gives and the logits.
    """
    asked, model, masks = request.evaluation, lab.dense.model, masks or Masks()
    windows = {name: lab.held_out(name, asked.n_windows, asked.seq_len).tokens for name in asked.sources}
    datasets = [name for name, tokens in windows.items() for _ in tokens]
    blocks = decoder_blocks(model)[1]
    chosen = range(0, len(blocks), request.stride)
    masks.prune(lab, request.spec(request.other), chosen)
    other = [weights_of(blocks[index]) for index in chosen]
    masks.prune(lab, request.spec(request.base))
    ids = torch.from_numpy(np.concatenate(list(windows.values()))).to(lab.device)
    per_call = max(1, TOKENS_PER_CALL // asked.seq_len)
    batches = [_Batch(model, some) for some in ids.split(per_call)]  # type: ignore[no-untyped-call]
    found = np.empty((2, len(chosen), len(datasets)))  # nll, divergence
    with evaluation_mode(model), bar(len(chosen), "swaps", "block", shown=progress) as shown:
        for row, index in enumerate(chosen):
            with weights_in(blocks[index], other[row]):
                found[:, row] = np.concatenate([batch.swapped(model, index) for batch in batches], axis=1)
            if not np.isfinite(found[:, row]).all():
                raise NumericalError(f"{request.title}: predictions with block {index} swapped are not finite.")
            shown.update()
    base = np.concatenate([batch.base_nll for batch in batches])
    arrays = {"blocks": np.array(chosen, dtype=np.int16), "datasets": np.array(datasets), "base_nll": base}
    arrays |= {"nll": found[0], "divergence": found[1]}
    return Measured(arrays, _base_metrics(datasets, base, asked.seq_len - 1))


class _Batch:
    """Held-out windows (n, seq_len) in one forward of the base model: what its blocks gave, and what it predicted."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        self.tokens = tokens
        self._outputs, logits = block_outputs(model, tokens)
        self._log_p = logits.float().log_softmax(-1)
        self.base_nll = np.array([nll for nll, _ in self._compared(self._log_p)])

    def swapped(self, model: Any, index: int) -> NDArray[np.float64]:
        """Return nll and divergence of each window, (2, n), with block `index` as it is now."""
        logits = logits_after(model, self.tokens, index - 1, self._outputs[index - 1])
        return np.array(list(self._compared(logits.float().log_softmax(-1)))).T

    def _compared(self, log_q: Tensor) -> Iterator[tuple[float, float]]:
        """Yield each window's mean of -ln q(token) and of KL(base || q), over all tokens but the first, in nats."""
        for tokens, p, q in zip(self.tokens, self._log_p, log_q, strict=True):
            loss = -q[:-1].gather(1, tokens[1:, None])
            yield float(loss.mean(dtype=torch.float64)), float(kl(p[:-1], q[:-1]).mean(dtype=torch.float64))


def _base_metrics(datasets: Sequence[str], nll: NDArray[np.float64], n_scored: int) -> list[Metric]:
    names = np.array(datasets)
    alike: dict[str, Any] = {"name": "base_nll", "unit": "nats/token", "higher_is_better": False}
    return [
        Metric(
            dataset=name,
            value=float(nll[names == name].mean()),
            n=n_scored * int((names == name).sum()),
            items=tuple(nll[names == name].tolist()),
            **alike,
        )
        for name in dict.fromkeys(datasets)
    ]
