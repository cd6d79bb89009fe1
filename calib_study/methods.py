"""The pruning methods by name, and what each one needs. The arithmetic is in `scores` and `masks`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from calib_study.errors import InputError, unknown

Group = Literal["row", "layer"]
Statistics = Literal["none", "moments", "gram"]


@dataclass(frozen=True)
class Method:
    """What the study must know of a method before any model is loaded.

    Attributes:
        statistics: what it reads of a layer's input: "none", "moments" (sums and squares of each feature) or
            "gram" (all products of two features).
        needs_seed: its result depends on the seed (through the text drawn, or the mask drawn).
        group: the weights that are compared with each other under the unstructured pattern:
            those of one output row, or those of the whole layer.
        options: its own parameters, with the published defaults.
        unstructured_only: it has no N:M form.
        score, code_sha256: of a method of the user's own, see `own_methods`: its formula, and the hash of its source.
    """

    name: str
    summary: str
    reference: str
    statistics: Statistics
    needs_seed: bool
    group: Group
    options: Mapping[str, float | str] = field(default_factory=dict)
    unstructured_only: bool = False
    score: Callable[..., Any] | None = None
    code_sha256: str | None = None

    @property
    def needs_calibration(self) -> bool:
        """True if its scores depend on calibration text."""
        return self.statistics != "none"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "no pruning: the reference", "", "none", False, "layer"),
        Method("random", "a random mask in every output row: the floor", "", "none", True, "row"),
        Method(
            "magnitude",
            "smallest |W| in each layer; uses no data",
            "Han et al. 2015; Wanda, table 1",
            "none",
            False,
            "layer",
        ),
        Method(
            "magnitude_row",
            "smallest |W| in each output row: magnitude in Wanda's comparison group",
            "Wanda, table 7",
            "none",
            False,
            "row",
        ),
        Method(
            "wanda",
            "smallest |W| times the norm of the input feature, in each output row",
            "Sun et al. 2024, equation 1",
            "moments",
            True,
            "row",
        ),
        Method(
            "wanda_variant",
            "Wanda's scores; each output row loses the same share of its total score",
            "Sun et al. 2024, released code",
            "moments",
            True,
            "row",
            unstructured_only=True,
        ),
        Method(
            "dsnot",
            "an initial mask refined by swapping weights until the mean output of each row is kept",
            "Zhang et al. 2024, algorithm 1",
            "moments",
            True,
            "row",
            # threshold: mean shift of an output per token; the released code's 0.1 is for sums over 2,048 tokens
            {"initial": "wanda", "max_cycles": 50, "threshold": 0.1 / 2048, "skip": "mlp"},
        ),
        Method(
            "sparsegpt",
            "weights removed column by column, the later ones adjusted to make up for it",
            "Frantar & Alistarh 2023, algorithm 1",
            "gram",
            True,
            "layer",
            {"damping": 0.01, "block_size": 128},
        ),
    )
}


def method_named(name: str) -> Method:
    """Return the method of that name. Raises InputError with near matches."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


@dataclass(frozen=True)
class Pattern:
    """Which weights may be zero: anywhere, or exactly `group - kept` of every `group` consecutive inputs.

    `group == 0` means anywhere ("unstructured").
    """

    kept: int = 0
    group: int = 0

    @property
    def structured(self) -> bool:
        """True for N:M patterns."""
        return self.group > 0

    @property
    def sparsity(self) -> float | None:
        """The fraction of zeros that the pattern implies; None for unstructured, which implies none."""
        return 1 - self.kept / self.group if self.structured else None

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Return the pattern written as "unstructured" or "N:M", N weights *kept* of every M.

        Raises InputError unless 0 < N < M.

        >>> Pattern.parse("2:4")
        Pattern(kept=2, group=4)
        """
        if text == "unstructured":
            return cls()
        kept, colon, group = text.partition(":")
        if not (colon and kept.isdecimal() and group.isdecimal()):
            raise InputError(f"pattern {text!r}: expected 'unstructured' or 'N:M', for example '2:4'.")
        if not 0 < int(kept) < int(group):
            raise InputError(f"pattern {text!r}: N:M keeps N weights of every M, so 0 < N < M is needed.")
        return cls(int(kept), int(group))
