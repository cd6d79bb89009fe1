"""From the statistics of an input to pruned weights: one function for each kind of method.

A group is the layers that read one input (queries, keys and values; gate and up); they share its statistics.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from calib_study import masks, scores
from calib_study.dsnot import dsnot
from calib_study.errors import InputError, NumericalError, StudyError, unknown
from calib_study.layers import Layer
from calib_study.methods import Method, Pattern, method_named
from calib_study.moments import InputMoments
from calib_study.sparsegpt import sparsegpt


@dataclass(frozen=True)
class Request:
    """What to do to every block linear: which method, how much, in which pattern, with which seed and options."""

    method: Method
    sparsity: float
    pattern: Pattern
    seed: int = 0
    options: Mapping[str, float | str] = field(default_factory=dict)

    def option(self, name: str) -> float | str:
        """Return an option's value, or the method's default for it."""
        return self.options.get(name, self.method.options[name])


def prune_group_(layers: Mapping[str, Layer], moments: InputMoments | None, request: Request) -> None:
    """Prune the layers of one group, by full name, in place.

    Raises NumericalError or InputError with the name of the first layer concerned.
    """
    first = next(iter(layers))
    if request.method.needs_calibration:
        if moments is None:
            raise InputError(f"method {request.method.name!r} needs calibration windows, and got none.")
        moments.check_finite(first)
    if request.method.name == "sparsegpt":
        _sparsegpt_(layers, moments, request, first)
        return
    for name, layer in layers.items():
        try:
            layer.remove_(_removed(layer, name, moments, request))
        except (InputError, NumericalError) as error:
            raise type(error)(f"{name}: {error}") from error


def _sparsegpt_(layers: Mapping[str, Layer], moments: InputMoments | None, request: Request, first: str) -> None:
    if moments is None or moments.gram is None:
        raise StudyError(f"{first}: SparseGPT needs the Gram matrix of its input.")
    solved = sparsegpt(
        [layer.weight() for layer in layers.values()],
        moments.gram,
        request.sparsity,
        request.pattern,
        damping=float(request.option("damping")),
        block_size=int(request.option("block_size")),
        layer=first,
    )
    for layer, (weight, removed) in zip(layers.values(), solved, strict=True):
        layer.set_weight_(weight)
        layer.remove_(removed)


def _removed(layer: Layer, name: str, moments: InputMoments | None, request: Request) -> Tensor:
    """Return the mask of one layer by the request's method."""
    if request.method.score is not None:
        worth = _own_scores(request.method.score, layer.weight(), moments)
        return masks.removed_by(worth, request.sparsity, request.pattern, request.method.group)
    match request.method.name:
        case "dsnot":
            return _dsnot(layer, name, moments, request)
        case "wanda_variant" if moments is not None:
            worth = scores.wanda(layer.weight(), moments.norms())
            if request.pattern.structured:
                raise InputError("the variable-sparsity variant of Wanda has no N:M form; use method 'wanda'.")
            return masks.lowest_mass_per_row(worth, request.sparsity)
        case other:
            worth = _scores(other, layer, name, moments, request.seed)
            return masks.removed_by(worth, request.sparsity, request.pattern, request.method.group)


def _scores(criterion: str, layer: Layer, name: str, moments: InputMoments | None, seed: int) -> Tensor:
    """Return the scores of a layer by one of the plain criteria."""
    match criterion:
        case "magnitude" | "magnitude_row":
            return scores.magnitude(layer.weight())
        case "random":
            return scores.random(layer.weight(), name, seed)
        case "wanda" if moments is not None:
            return scores.wanda(layer.weight(), moments.norms())
        case other:
            raise unknown("pruning criterion", other, ("magnitude", "magnitude_row", "random", "wanda"))


def _own_scores(score: Callable[..., Any], weight: Tensor, moments: InputMoments | None) -> Tensor:
    """Return the scores of a layer by a formula of the user's own, which gets copies, so that it changes no model."""
    copy = weight.detach().float().clone()
    worth = score(copy) if moments is None else score(copy, moments.norms())
    if not isinstance(worth, Tensor) or worth.shape != weight.shape:
        got = f"shape {tuple(worth.shape)}" if isinstance(worth, Tensor) else type(worth).__name__
        raise InputError(f"the score should return a tensor of the weight's shape {tuple(weight.shape)}, got {got}.")
    return worth.float()


def _dsnot(layer: Layer, name: str, moments: InputMoments | None, request: Request) -> Tensor:
    """Return DSnoT's refinement of an initial mask; roles in `skip` keep the initial mask."""
    if moments is None:
        raise InputError("DSnoT needs calibration windows, and got none.")
    initial = method_named(str(request.option("initial")))
    worth = _scores(initial.name, layer, name, moments, request.seed)
    removed = masks.removed_by(worth, request.sparsity, request.pattern, initial.group)
    if layer.role == request.option("skip"):
        return removed
    return dsnot(
        layer.weight(),
        removed,
        scores.wanda(layer.weight(), moments.norms()),
        moments.mean(),
        moments.variance(),
        pattern=request.pattern,
        max_cycles=int(request.option("max_cycles")),
        threshold=float(request.option("threshold")),
    )
