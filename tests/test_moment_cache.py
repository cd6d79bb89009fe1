"""The disk cache of dense statistics: what comes back is what was put, and nothing else."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from calib_study.errors import InputError
from calib_study.moment_cache import MomentCache, size_limit

LAYOUT = [[(["q", "k"], 3), (["o"], 2)], [(["q", "k"], 3), (["o"], 2)]]
WIDTH = 10  # 2 blocks of 3 + 2 inputs


def windows(*first: int) -> np.ndarray:
    """Return windows of 5 tokens that begin with the given ids."""
    return np.array([[i, 1, 2, 3, 4] for i in first], dtype=np.int64)


def moments(value: float) -> np.ndarray:
    return np.full((2, WIDTH), value, dtype=np.float32)


def test_a_sequence_is_found_again_in_any_set_and_order(tmp_path: Path) -> None:
    cache = MomentCache("model", tmp_path)
    assert cache.layout() is None
    cache.put_sequences(windows(7, 8), [moments(0.7), moments(0.8)], LAYOUT)
    again = MomentCache("model", tmp_path)
    assert [[tuple(group) for group in block] for block in again.layout() or []] == LAYOUT
    eight, nine, seven = again.sequences(windows(8, 9, 7), LAYOUT)
    assert nine is None
    np.testing.assert_array_equal(eight, moments(0.8))
    np.testing.assert_array_equal(seven, moments(0.7))


def test_other_weights_or_precision_share_nothing(tmp_path: Path) -> None:
    MomentCache("model:float32", tmp_path).put_sequences(windows(7), [moments(0.7)], LAYOUT)
    other = MomentCache("model:bfloat16", tmp_path)
    assert other.layout() is None
    assert other.sequences(windows(7), LAYOUT) == [None]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"not an array"])
def test_a_damaged_file_is_as_good_as_absent(tmp_path: Path, content: bytes) -> None:
    cache = MomentCache("model", tmp_path)
    cache.put_sequences(windows(7), [moments(0.7)], LAYOUT)
    (file,) = cache.folder.glob("sequences/*.npy")
    file.write_bytes(content)
    assert cache.sequences(windows(7), LAYOUT) == [None]


def test_moments_of_another_shape_are_not_taken(tmp_path: Path) -> None:
    cache = MomentCache("model", tmp_path)
    cache.put_sequences(windows(7), [moments(0.7)], LAYOUT)
    assert cache.sequences(windows(7), LAYOUT[:1]) == [None]


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_file = 4 * 2 * WIDTH + 128  # float32 numbers and numpy's header
    monkeypatch.setenv("CALIB_STUDY_MOMENTS_GB", str(2.5 * one_file / 1e9))
    cache = MomentCache("model", tmp_path)
    cache.put_sequences(windows(1, 2), [moments(1), moments(2)], LAYOUT)
    for file in cache.folder.glob("sequences/*.npy"):
        os.utime(file, (time.time() - 100, time.time() - 100))
    assert cache.sequences(windows(1), LAYOUT)[0] is not None  # used just now
    cache.put_sequences(windows(3), [moments(3)], LAYOUT)
    assert [found is not None for found in cache.sequences(windows(1, 2, 3), LAYOUT)] == [True, False, True]


def test_gram_matrices_of_a_set_come_back_block_by_block(tmp_path: Path) -> None:
    cache = MomentCache("model", tmp_path)
    assert not cache.has_grams(windows(1, 2))
    with cache.keeping_grams(windows(1, 2), 1000) as folder:
        assert folder is not None
        for block in range(2):
            np.arange(13, dtype=np.float32).__add__(100 * block).tofile(folder / f"{block}.f32")
        assert not cache.has_grams(windows(1, 2))  # not before it is whole
    assert cache.has_grams(windows(2, 1))
    assert not cache.has_grams(windows(2, 3))
    three, two = cache.grams(windows(2, 1), 1, [3, 2])
    assert three.tolist() == [[100, 101, 102], [103, 104, 105], [106, 107, 108]]
    assert two.tolist() == [[109, 110], [111, 112]]


def test_gram_matrices_of_a_run_that_failed_are_not_kept(tmp_path: Path) -> None:
    cache = MomentCache("model", tmp_path)
    with pytest.raises(RuntimeError, match="killed"), cache.keeping_grams(windows(1), 1000):
        raise RuntimeError("killed")
    assert not cache.has_grams(windows(1))
    assert not list((cache.folder / "grams").iterdir())


def test_gram_matrices_above_the_limit_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALIB_STUDY_MOMENTS_GB", "1e-6")
    with MomentCache("model", tmp_path).keeping_grams(windows(1), 1001) as folder:
        assert folder is None


def test_a_limit_of_zero_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALIB_STUDY_MOMENTS_GB", "0")
    MomentCache("model", tmp_path).put_sequences(windows(1), [moments(1)], LAYOUT)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_a_limit_must_be_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALIB_STUDY_MOMENTS_GB", text)
    with pytest.raises(InputError, match="CALIB_STUDY_MOMENTS_GB"):
        size_limit()
