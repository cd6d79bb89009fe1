"""The errors a user can meet. Each message says what was asked, what is allowed and what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches


class StudyError(Exception):
    """Something that the person running the study can put right; the message says how."""

    exit_code = 1


class InputError(StudyError):
    """What was asked for cannot be: an unknown name, a value out of range, a file of the wrong kind."""

    exit_code = 2


class DataError(StudyError):
    """Fetched data are absent, incomplete, or not what the catalogue promises."""

    exit_code = 3


class NumericalError(StudyError):
    """A computation produced something that is not a number; the message names the layer."""

    exit_code = 4


def unknown(kind: str, got: str, allowed: Iterable[str]) -> InputError:
    """Return the error for a name that is not in a list, with its near matches first."""
    names = sorted(set(allowed))
    near = get_close_matches(got, names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return InputError(f"unknown {kind} {got!r}.{hint} Allowed: {', '.join(names)}.")
