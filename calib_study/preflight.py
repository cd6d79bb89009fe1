"""Checks of a request against what exists, before a model is loaded. Imports nothing slow."""

from collections.abc import Mapping
from pathlib import Path

from calib_study.errors import InputError
from calib_study.model_files import ModelRef
from calib_study.paths import check_writable
from calib_study.sources import resolve_source
from calib_study.specs import RunSpec


def check_spec(spec: RunSpec, ref: ModelRef) -> None:
    """Raise InputError unless the specification's text exists and its windows fit the model's context."""
    lengths = {"evaluation seq_len": spec.evaluation.seq_len} if spec.evaluation.sources else {}
    for source in spec.evaluation.sources:
        check_evaluation_source(source)
    if spec.calibration is not None:
        lengths["seq_len"] = spec.calibration.seq_len
        if spec.calibration.tokens_sha256 is None:
            resolve_source(spec.calibration.source)
    check_lengths(ref, lengths)


def check_lengths(ref: ModelRef, lengths: Mapping[str, int]) -> None:
    """Raise InputError, naming it, for the first length that is longer than the model's context."""
    for name, length in lengths.items():
        if ref.context_length is not None and length > ref.context_length:
            raise InputError(
                f"{name} {length:,} is longer than the context of {ref.name}: {ref.context_length:,} tokens."
            )


def check_evaluation_source(source: str) -> None:
    """Raise InputError for a source that has no held-out text."""
    if source == "random":
        raise InputError("'random' has no text to be scored on; evaluate on a text source.")
    resolve_source(source)


def check_new_directory(path: Path) -> None:
    """Raise InputError unless `path` can be made and is not yet in use by something else."""
    if path.exists() and not path.is_dir():
        raise InputError(f"output {path} is a file; name a directory.")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise InputError(f"output {path} holds other files; name a new directory, or an earlier output to replace.")
    check_writable(path)
