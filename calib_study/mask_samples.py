"""A sample of each layer's mask: small enough to keep with every record, large enough to compare any two.

The same positions are looked at in every run, drawn once for a layer's name and size. So the share of weights on
which two pruned models disagree is known without pruning either again.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from calib_study.array_files import Array
from calib_study.errors import StudyError
from calib_study.layers import all_layers

POSITIONS = 256  # weights looked at in each layer; a share of 1 % over 210 layers then has a standard error of 0.04 %


@dataclass(frozen=True)
class MaskSample:
    """Which of the sampled weights are zero.

    Attributes:
        layers: full names, in order.
        sizes: (n_layers,) weights in each layer.
        zero: (n_layers, n_positions) bool, a multiple of 8 positions; `POSITIONS` of them in the record of a run.
    """

    layers: tuple[str, ...]
    sizes: npt.NDArray[np.int64]
    zero: npt.NDArray[np.bool_]

    def arrays(self) -> dict[str, Array]:
        """Return the sample as arrays to store, one bit for each position."""
        return {
            "mask_layers": np.array(self.layers),
            "mask_sizes": self.sizes,
            "mask_bits": np.packbits(self.zero, axis=1),
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> "MaskSample":
        """Return the sample that `arrays` gave. Raises StudyError if it is not among them."""
        try:
            names, sizes, bits = (arrays[f"mask_{part}"] for part in ("layers", "sizes", "bits"))
        except KeyError as error:
            raise StudyError(f"no sample of masks is stored: {error} is missing.") from error
        zero = np.unpackbits(bits.astype(np.uint8), axis=1).astype(bool)
        return cls(tuple(str(name) for name in names), sizes.astype(np.int64), zero)


def sample_mask(model: nn.Module, n_positions: int = POSITIONS) -> MaskSample:
    """Return which of the sampled weights of every block linear are zero in the model as it is."""
    layers = all_layers(model)
    weights = {name: layer.weight().reshape(-1) for name, layer in layers.items()}
    zero = [(weight[positions(name, len(weight), n_positions)] == 0).cpu().numpy() for name, weight in weights.items()]
    return MaskSample(tuple(layers), np.array([len(weight) for weight in weights.values()]), np.stack(zero))


def positions(layer: str, size: int, count: int = POSITIONS) -> npt.NDArray[np.int64]:
    """Return the flat indices (count,) of the weights of a layer that are looked at; repeated if it has fewer."""
    digest = hashlib.sha256(f"{layer}:{size}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    return rng.choice(size, count, replace=size < count, shuffle=False)


def disagreement(one: MaskSample, other: MaskSample) -> float:
    """Return the share of all weights that are zero in exactly one of two models, estimated from the samples.

    Each layer counts by its size. Raises StudyError if the models have other layers.
    """
    differ = _same_layers(one, other).zero != other.zero
    return float(np.average(differ.mean(axis=1), weights=one.sizes))


def jaccard(one: MaskSample, other: MaskSample) -> npt.NDArray[np.float64]:
    """Return, for each layer, |removed in both| / |removed in either|, (n_layers,); 1 where none is removed."""
    _same_layers(one, other)
    both, either = (one.zero & other.zero).sum(axis=1), (one.zero | other.zero).sum(axis=1)
    share: npt.NDArray[np.float64] = np.divide(both, either, out=np.ones(len(both)), where=either > 0)
    return share


def _same_layers(one: MaskSample, other: MaskSample) -> MaskSample:
    if one.layers != other.layers or not np.array_equal(one.sizes, other.sizes):
        raise StudyError(f"masks of {len(one.layers)} and {len(other.layers)} layers: not of one architecture.")
    return one
