"""Checks of a request against what exists, before a model is loaded. Imports nothing slow."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from calib_study.errors import InputError
from calib_study.methods import METHODS
from calib_study.mixtures import parse_mixture
from calib_study.model_files import ModelRef
from calib_study.paths import check_writable
from calib_study.sources import only_for_calibration, resolve_source, source_hash
from calib_study.specs import Evaluation, RunSpec, problem_lines
from calib_study.task_data import check_tasks


def evaluation_of(sources: Sequence[str], **asked: Any) -> Evaluation:
    """Return the evaluation on held-out text of `sources`, with the hashes of those that the catalogue does not pin.

    Raises InputError for a source that is not there, has no text, or is repeated, and DataError for tasks whose data
    are not there.

    Args:
        asked: other fields of `Evaluation`; no tasks may be given as an empty list, and no divergence as False.
    """
    for source in sources:
        check_evaluation_source(source)
    names = tuple(resolve_source(source) for source in sources)
    hashes = tuple(source_hash(name) for name in names)
    fields = {name: value for name, value in asked.items() if value is not False and value not in ((), [])}
    try:
        evaluation = Evaluation(sources=names, source_hashes=hashes if any(hashes) else None, **fields)
    except ValidationError as error:
        raise InputError("bad evaluation:\n" + problem_lines(error)) from error
    if evaluation.tasks is not None:
        check_tasks(evaluation.tasks, evaluation.task_limit, evaluation.shots)
    return evaluation


def check_specs(specs: Iterable[RunSpec], ref: ModelRef) -> None:
    """Raise InputError unless the specifications mean this model, their texts are there, unchanged, and windows fit."""
    texts: dict[str, str | None] = {}
    for spec in specs:
        if (spec.model, spec.model_hash) != (ref.name, ref.content_hash()):
            raise InputError(
                f"the run was specified for model {spec.model!r} with content hash {_short(spec.model_hash)}, but "
                f"{ref.name!r} with {_short(ref.content_hash())} was given. Has the model changed? A specification "
                "takes `model` and `model_hash` from the `name` and `content_hash()` of `resolve_model`."
            )
        _check_method(spec)
        evaluation, text = spec.evaluation, spec.calibration
        if evaluation.tasks is not None:
            check_tasks(evaluation.tasks, evaluation.task_limit, evaluation.shots)
        lengths = {"evaluation seq_len": evaluation.seq_len} if evaluation.sources else {}
        pinned = evaluation.source_hashes or (None,) * len(evaluation.sources)
        for source, pin in zip(evaluation.sources, pinned, strict=True):
            check_evaluation_source(source)
            _check_text(source, pin, texts)
        if text is not None:
            lengths["seq_len"] = text.seq_len
            if text.tokens_sha256 is None:
                _check_text(text.source, text.source_hash, texts)
        check_lengths(ref, lengths)


def _check_method(spec: RunSpec) -> None:
    """Raise InputError unless the code of a method of the user's own is registered, as the specification pins it."""
    here = METHODS[spec.method].code_sha256 if spec.method in METHODS else None
    if here != spec.method_hash:
        raise InputError(
            f"method {spec.method!r}: the run was specified with code of the hash {_short(spec.method_hash)}, but "
            f"{_short(here)} is registered in this process. Register that code with `register_method`, or make the "
            "specification anew with `make_spec`."
        )


def _check_text(source: str, pin: str | None, texts: dict[str, str | None]) -> None:
    """Raise InputError unless the text of a source has the hash that a specification names; `texts` keeps hashes."""
    if source not in texts:
        texts[source] = source_hash(source)
    if texts[source] != pin:
        raise InputError(
            f"source {source!r}: its documents have the hash {_short(texts[source])}, but the run was specified with "
            f"{_short(pin)}. Has the text changed? A specification takes its hash from `source_hash`."
        )


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else f"{sha256[:12]}…"


def check_lengths(ref: ModelRef, lengths: Mapping[str, int]) -> None:
    """Raise InputError, naming it, for the first length that is longer than the model's context."""
    for name, length in lengths.items():
        if ref.context_length is not None and length > ref.context_length:
            raise InputError(
                f"{name} {length:,} is longer than the context of {ref.name}: {ref.context_length:,} tokens."
            )


def check_evaluation_source(source: str) -> None:
    """Raise InputError for a source that has no held-out text."""
    if parse_mixture(source):
        raise InputError(f"{source!r} is a mixture, which can serve for calibration, not for evaluation.")
    if source == "random":
        raise InputError("'random' has no text to be scored on; evaluate on a text source.")
    if refusal := only_for_calibration(resolve_source(source)):
        raise InputError(f"{source!r}: {refusal}")


def check_new_directory(path: Path) -> None:
    """Raise InputError unless `path` can be made and is not yet in use by something else."""
    if path.exists() and not path.is_dir():
        raise InputError(f"output {path} is a file; name a directory.")
    if path.is_dir() and any(path.iterdir()) and not (path / "record.json").is_file():
        raise InputError(f"output {path} holds other files; name a new directory, or an earlier output to replace.")
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise InputError(f"cannot write to {path}: {existing} is a file. Choose a folder you can write to.")
    check_writable(existing)  # which makes nothing: a run that fails leaves no empty folder
