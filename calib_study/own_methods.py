"""Pruning methods of the user's own: a score for each weight, registered for the life of the process.

A registered method is named wherever a method is: in specifications, grids, and the parameters of a notebook that
registers it before it checks them. A specification carries the hash of its source text, so that a record says which
code made it, and code that was changed makes runs of its own.
"""

import dis
import hashlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

from calib_study.errors import InputError, unknown
from calib_study.methods import METHODS, Group, Method

GROUPS: tuple[Group, ...] = ("row", "layer")


def register_method(
    name: str, score: Callable[..., Any], summary: str, *, reads_text: bool = True, compare: Group = "row"
) -> Method:
    """Make `name` a method in this process, which removes the weights that `score` gives the lowest values.

    A name registered before is replaced, so that a notebook cell can be run again.

    Args:
        score: a pure function (weight, norms) -> scores. weight: (d_out, d_in) float32, on the layer's device; norms:
            (d_in,), the 2-norm of each input feature over all calibration tokens; scores: of the weight's shape, any
            real numbers. Without reads_text it gets the weight alone.
        reads_text: it depends on calibration text. If not, all texts and seeds share its run.
        compare: the weights that compete under the unstructured pattern, those of a "row" or of the whole "layer".
    Raises InputError for an unfit name, one of the project's, or a function whose source text does not say what it
    computes: see `code_sha256`.
    """
    if name in METHODS and METHODS[name].code_sha256 is None:
        raise InputError(f"method {name!r} is one of the project's. Choose another name.")
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise InputError(
            f"method name {name!r}: use lower-case letters, digits, - and _, a letter first, like 'my-score'."
        )
    if compare not in GROUPS:
        raise unknown("comparison group", compare, GROUPS)
    method = Method(
        name=name,
        summary=summary,
        reference="",
        statistics="moments" if reads_text else "none",
        needs_seed=reads_text,
        group=compare,
        score=score,
        code_sha256=code_sha256(score, n_arguments=2 if reads_text else 1),
    )
    METHODS[name] = method
    return method


def code_sha256(score: Callable[..., Any], *, n_arguments: int) -> str:
    """Return the SHA-256 of a function's source text, without common indentation.

    The text must say all: the function may use its arguments, modules, and what other modules define, but no variable
    or function beside it, which could change while the text stays. Versions of libraries are in every record.
    Raises InputError for such a function, another number of arguments, or one without source text.
    """
    if not inspect.isfunction(score) or score.__name__ == "<lambda>":
        raise InputError(f"a score is a function made by `def`, not {score!r}.")
    arguments = list(inspect.signature(score).parameters.values())
    if len(arguments) != n_arguments or any(one.default is not one.empty for one in arguments):
        wanted = "(weight, norms)" if n_arguments == 2 else "(weight), since it reads no text"
        raise InputError(f"score {score.__name__!r} takes {inspect.signature(score)}; expected {wanted}, no defaults.")
    if outside := sorted({*score.__code__.co_freevars, *_variables(score)}):
        raise InputError(
            f"score {score.__name__!r} uses {', '.join(outside)} from outside. Its source text is what a record pins: "
            "define that inside the function, or in a module that it imports."
        )
    try:
        source = inspect.getsource(score)
    except (OSError, TypeError) as error:
        raise InputError(
            f"score {score.__name__!r}: its source text cannot be found ({error}). Define it in a file or a notebook."
        ) from error
    return hashlib.sha256(textwrap.dedent(source).encode()).hexdigest()


def _variables(score: Callable[..., Any]) -> Iterator[str]:
    """Yield the global names that a function reads and that are neither modules nor functions or classes of others."""
    known: dict[str, Any] = getattr(score, "__globals__", {})
    for name in _global_names(score.__code__) & set(known):
        value = known[name]
        imported = (inspect.isroutine(value) or inspect.isclass(value)) and value.__module__ != score.__module__
        if not (imported or isinstance(value, ModuleType)):
            yield name


def _global_names(code: CodeType) -> set[str]:
    """Return the global names that a piece of code reads, and those that the functions inside it read."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inside = [_global_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return names.union(*inside)
