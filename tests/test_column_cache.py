"""The key-value cache: what it holds by hand, and that views are handed out instead of copies."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from calib_study.column_cache import ColumnCache

N_ROWS, HEADS, WIDTH = 3, 2, 5


def column(value: float, n: int = N_ROWS) -> Tensor:
    """One token's keys or values: `value` + row in all places."""
    return (value + torch.arange(float(n))).view(n, 1, 1, 1).expand(n, HEADS, 1, WIDTH)


def put(cache: ColumnCache, value: float, n: int = N_ROWS) -> tuple[Tensor, Tensor]:
    keys, values = cache.update(column(value, n), column(-value, n), 0)
    cache.advance()
    return keys, values


def seen(keys: Tensor) -> list[list[float]]:
    return keys[:, 0, :, 0].tolist()


def test_columns_are_filled_from_the_left_and_handed_out_as_views() -> None:
    cache = ColumnCache(1, N_ROWS, 7)
    assert cache.get_mask_sizes(1, 0) == (1, 0) and cache.nbytes == 0
    put(cache, 10)
    keys, values = put(cache, 20)
    assert seen(keys) == [[10, 20], [11, 21], [12, 22]]
    assert_close(values[:, 1, :, 4], torch.tensor([[-10.0, -20], [-9, -19], [-8, -18]]))
    assert cache.get_seq_length() == 2 and cache.get_mask_sizes(1, 0) == (3, 0)
    assert cache.nbytes == 2 * N_ROWS * HEADS * 7 * WIDTH * 4
    assert keys.data_ptr() == cache.layers[0].keys.data_ptr()
    keys, _ = put(cache, 30, n=2)  # the last row is no longer used
    assert seen(keys) == [[10, 20, 30], [11, 21, 31]]


def test_columns_before_the_first_are_hidden_and_moved_only_when_there_is_no_room() -> None:
    cache = ColumnCache(1, N_ROWS, 5)
    for value in (10, 20, 30, 40):
        put(cache, value)
    assert cache.forget_before(2) == 0
    keys, _ = put(cache, 50)
    assert seen(keys)[0] == [30, 40, 50] and cache.get_seq_length() == 3
    assert cache.forget_before(2) == 2  # five columns are used up
    keys, _ = put(cache, 60)
    assert seen(keys) == [[30, 40, 50, 60], [31, 41, 51, 61], [32, 42, 52, 62]]
    assert cache.forget_before(4) == 4  # nothing of the past is needed
    assert seen(put(cache, 70)[0])[0] == [70]


def test_a_row_moves_with_all_its_columns() -> None:
    cache = ColumnCache(2, N_ROWS, 5)
    for value in (10, 20):
        cache.update(column(value), column(-value), 0)
        cache.update(column(value + 5), column(-value), 1)
        cache.advance()
    cache.move_row(2, 0)
    assert seen(cache.layers[0].keys)[0][:2] == [12, 22]
    assert seen(cache.layers[1].keys)[0][:2] == [17, 27]
    assert seen(cache.layers[1].values)[0][:2] == [-8, -18]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keys_keep_their_type(dtype: torch.dtype) -> None:
    cache = ColumnCache(1, N_ROWS, 5)
    keys, values = cache.update(column(1).to(dtype), column(2).to(dtype), 0)
    assert keys.dtype == values.dtype == dtype
    assert cache.get_max_length() == 5
