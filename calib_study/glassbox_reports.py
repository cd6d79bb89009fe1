"""The report that lies beside a glass-box model's weights: its recipe, and how the training went."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from calib_study.errors import DataError, InputError
from calib_study.glassbox import REPORT, Recipe
from calib_study.model_files import resolve_model
from calib_study.records import Environment
from calib_study.specs import problem_lines
from calib_study.stores import Part


class Curve(Part):
    """Nats per token along the training: at `steps`, the mean `loss` of the steps since the one before."""

    steps: tuple[int, ...]
    loss: tuple[float, ...]


class Report(Part):
    """How a glass-box model came about.

    Attributes:
        distinct_tokens: tokens of each corpus's "@seen" part; the model saw them again in every epoch.
        curve: of the training text.
        held_out: of each corpus's held-out windows, by corpus.
        perplexity: of the finished, rounded model on those windows, by corpus.
        weights_sha256: as `DenseModel.weights_sha256` gives it for the model loaded in float32.
        wall_s: seconds of training, over all processes that went on with it.
    """

    schema_version: Literal[1] = 1
    recipe: Recipe
    distinct_tokens: dict[str, int]
    curve: Curve
    held_out: dict[str, Curve]
    perplexity: dict[str, float]
    weights_sha256: str
    wall_s: float
    environment: Environment
    finished: str


def read_report(folder: Path) -> Report:
    """Return how the model in a folder was trained. Raises DataError if that is not there or damaged."""
    file = folder / REPORT
    try:
        return Report.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Is {folder} a finished glass-box model?") from error
    except ValidationError as error:
        raise DataError(f"{file}: not the report of a training:\n{problem_lines(error)}") from error


def model_folder(name: str) -> Path:
    """Return the folder of a model of that name or path. Raises InputError or DataError if it has none."""
    ref = resolve_model(name)
    if ref.kind != "directory":
        raise InputError(f"model {name} is {ref.kind}, not a model that was trained here.")
    return Path(str(ref.location))
