"""Files of arrays: what was put comes back, from the same bytes."""

import numpy as np
import pytest

from calib_study.array_files import from_bytes, to_bytes
from calib_study.errors import StudyError

ARRAYS = {
    "b": np.arange(7, dtype=np.int32),
    "a": np.array([[0.5, np.nan]], dtype=np.float32),
    "names": np.array(["x", "longer"]),
}


def test_arrays_come_back_with_their_types() -> None:
    found = from_bytes(to_bytes(ARRAYS), "x.npz")
    assert sorted(found) == ["a", "b", "names"]
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_the_bytes_depend_on_the_content_alone() -> None:
    assert to_bytes(ARRAYS) == to_bytes(dict(reversed(ARRAYS.items())))
    assert to_bytes(ARRAYS) != to_bytes(ARRAYS | {"b": np.arange(8)})


def test_objects_are_never_stored() -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        to_bytes({"a": np.array([{}], dtype=object)})


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_damaged_file_is_named(cut: int) -> None:
    with pytest.raises(StudyError, match=r"0123\.npz"):
        from_bytes(to_bytes(ARRAYS)[:cut], "0123.npz")
