"""The choice of the float32 product: fast if it is exact, and never otherwise. What is freed is used again."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from calib_study import matmul
from calib_study.matmul import FLOAT32_ERROR, select_float32_matmul


@pytest.fixture
def setting() -> Iterator[object]:
    """The process's setting, put back afterwards."""
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    yield products
    products.fp32_precision = before


def test_products_keep_float32_precision_whatever_is_chosen(setting: object) -> None:
    assert select_float32_matmul() in ("onednn", "default")
    generator = torch.Generator().manual_seed(1)
    inputs, weight = (torch.randn(101, 307, generator=generator) for _ in range(2))
    exact = inputs.double() @ weight.double().T
    # Each of 307 products rounds to 2^-24 of about 1, and partial sums to 2^-24 of about 18: far below 1e-3.
    assert (functional.linear(inputs, weight).double() - exact).abs().max() < 1e-3
    assert matmul._error() < FLOAT32_ERROR


def test_the_choice_is_the_same_each_time(setting: object) -> None:
    assert select_float32_matmul() == select_float32_matmul()


def test_a_library_that_rounds_is_not_used(setting: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setting.fp32_precision
    monkeypatch.setattr(matmul, "_error", lambda: 0.1)
    assert select_float32_matmul() == "default"
    assert setting.fp32_precision == before


def test_the_measured_product_would_show_rounding_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of 1,024 products of standard normals have a spread of 32; 8-bit factors are 0.2 % off: about 0.1."""
    exact = functional.linear

    def rounding(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return exact(inputs.bfloat16().float(), weight.bfloat16().float())

    monkeypatch.setattr(matmul.functional, "linear", rounding)
    assert 0.02 < matmul._error() < 0.5


def test_without_the_library_nothing_is_set(setting: object, monkeypatch: pytest.MonkeyPatch) -> None:
    before = setting.fp32_precision
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert select_float32_matmul() == "default"
    assert setting.fp32_precision == before


PAGES = """
import resource, torch
from calib_study.matmul import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        outputs = torch.ones(1024, 1536) + 1  # 6 MB, as those of a layer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
new_pages()
print(new_pages())
"""


def test_memory_of_freed_tensors_is_used_again() -> None:
    found = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True).stdout
    # 20 times two tensors of 6 MB are 60,000 pages of 4 KB; where the C library cannot be taught they may be new ones
    assert int(found) < 60_000 if sys.platform != "linux" else int(found) < 6_000
