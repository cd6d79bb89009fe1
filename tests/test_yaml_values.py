"""Values as people type them on the command line and in parameter files."""

import math
from typing import Any

import pytest
import yaml

from calib_study.yaml_values import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("10:30", "10:30"),
        ("pattern: 4:8", {"pattern": "4:8"}),
        ("1e-3", 1e-3),
        ("0.6", 0.6),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("true", True),
        ("null", None),
        ("[c4, code]", ["c4", "code"]),
        ("c4:0.7,code:0.3", "c4:0.7,code:0.3"),
        ("'0.5'", "0.5"),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = read_yaml(text)
    assert found == value and type(found) is type(value)


def test_infinity_and_damage() -> None:
    assert read_yaml("-.inf") == -math.inf
    with pytest.raises(yaml.YAMLError):
        read_yaml("[1, 2")


def test_no_python_object_is_made() -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")
