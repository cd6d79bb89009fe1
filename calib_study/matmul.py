"""The float32 matrix product of this machine: the faster library, if it is as exact.

On many CPUs torch's default float32 product runs at half the speed that oneDNN reaches. The setting that selects
oneDNN also permits it to round to bfloat16 where the CPU has matrix tiles (AMX); so it is kept only where a
measured product shows full float32 precision.
"""

import torch
from torch.nn import functional

# Root mean square error of sums of 1,024 products of standard normals: about 1e-5 in float32, 1e-1 with bfloat16.
FLOAT32_ERROR = 1e-3


def select_float32_matmul() -> str:
    """Choose the library for float32 products on the CPU in this process; return "onednn" or "default"."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "default"
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    if _error() < FLOAT32_ERROR:
        return "onednn"
    products.fp32_precision = before
    return "default"


def _error() -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 1024, generator=generator)
    weight = torch.randn(512, 1024, generator=generator)
    exact = inputs.double() @ weight.double().T
    return (functional.linear(inputs, weight).double() - exact).square().mean().sqrt().item()
