"""What makes forwards fast on this machine's CPU: the library for float32 products, and memory that is kept.

On many CPUs torch's default float32 product runs at half the speed that oneDNN reaches. The setting that selects
oneDNN also permits it to round to bfloat16 where the CPU has matrix tiles (AMX); so it is kept only where a
measured product shows full float32 precision.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

# Root mean square error of sums of 1,024 products of standard normals: about 1e-5 in float32, 1e-1 with bfloat16.
FLOAT32_ERROR = 1e-3
# Bytes, a little below the 32 MB up to which the GNU C library learns from what is freed.
LARGEST_LEARNT = 2**25 - 2**16


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


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, in this process, where it can learn to.

    The GNU C library gives large buffers back to the system when they are freed. A layer's outputs are such buffers,
    and asking for their pages anew in each layer takes up to a fifth of a forward's CPU time. How large a buffer it
    keeps it learns from the largest that was freed, so one is freed here. At most 64 MB are kept; other C libraries
    take no notice.
    """
    torch.empty(LARGEST_LEARNT, dtype=torch.uint8)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use another number of threads inside; it decides the order of sums, and so their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _error() -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 1024, generator=generator)
    weight = torch.randn(512, 1024, generator=generator)
    exact = inputs.double() @ weight.double().T
    return (functional.linear(inputs, weight).double() - exact).square().mean().sqrt().item()
