"""Scores: how much each weight of a linear layer is worth. The weights with the lowest scores are removed.

All functions are pure; `weight` is (d_out, d_in): rows are outputs, columns inputs.
"""

import hashlib

import torch
from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Return |W|, in float32. Source: Han et al. 2015.

    >>> magnitude(torch.tensor([[4.0, -3.0]]))
    tensor([[4., 3.]])
    """
    return weight.detach().abs().float()


def wanda(weight: Tensor, input_norms: Tensor) -> Tensor:
    """Return |W_ij| * ||X_j||_2: magnitude times the norm of the input feature that the weight meets.

    Source: Sun et al. 2024, equation 1. Multiplying all norms by one number changes no comparison, so it does
    not matter whether they are sums or means over tokens.

    Args:
        weight: (d_out, d_in).
        input_norms: (d_in,), the 2-norm of each input feature over all calibration tokens.

    >>> wanda(torch.tensor([[4.0, -3.0, 2.0, 1.0]]), torch.tensor([1.0, 2.0, 8.0, 8.0]))
    tensor([[ 4.,  6., 16.,  8.]])
    """
    return weight.detach().abs().float() * input_norms.float()


def random(weight: Tensor, layer: str, seed: int) -> Tensor:
    """Return uniform scores that depend on the layer's name, its shape and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{layer}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(weight.shape, generator=generator).to(weight.device)
