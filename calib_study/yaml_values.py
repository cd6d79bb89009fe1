"""YAML as people write parameters: 2:4 is a pattern, and 1e-3 a number.

The YAML 1.1 of the library reads 2:4 as the base-60 number 124, and 1e-3 as text. Here numbers follow the core schema
of YAML 1.2, which has neither surprise; all else is as the library's safe loader has it.
"""

import re
from typing import Any, ClassVar

import yaml

_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def read_yaml(text: str) -> Any:
    """Return the value that a YAML text holds. Raises yaml.YAMLError if it is none.

    >>> read_yaml("{pattern: 2:4, damping: 1e-3, n_seeds: 010, flag: true}")
    {'pattern': '2:4', 'damping': 0.001, 'n_seeds': 10, 'flag': True}
    """
    return yaml.load(text, Loader=_Loader)
