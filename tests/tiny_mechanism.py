"""Requests of measurements on the study in miniature of `tiny_study`: two draws of each of two texts."""

from pathlib import Path
from typing import Any

from calib_study.measurements import BlockSwap, Draw, LayerProfile
from calib_study.model_files import resolve_model
from calib_study.preflight import evaluation_of
from calib_study.sources import source_hash
from calib_study.specs import Calibration

SEQ_LEN, N_WINDOWS = 11, 3


def draw(source: Path, seed: int = 0) -> Draw:
    """Return a draw of four windows of 16 tokens."""
    text = Calibration(source=str(source), source_hash=source_hash(str(source)), n_samples=4, seq_len=16)
    return Draw(text=text, seed=seed)


def asked(model: Path, held_out: list[Path], **changes: Any) -> dict[str, Any]:
    """Return the fields that requests have in common."""
    ref = resolve_model(str(model))
    evaluation = evaluation_of([str(file) for file in held_out], seq_len=SEQ_LEN, n_windows=N_WINDOWS)
    alike = {"model": ref.name, "model_hash": ref.content_hash(), "evaluation": evaluation}
    return alike | {"method": "wanda", "sparsity": 0.5} | changes


def profile(model: Path, source: Path, seed: int = 0, **changes: Any) -> LayerProfile:
    """Return the request of a profile, judged on the same text's held-out part."""
    return LayerProfile(draw=draw(source, seed), **asked(model, [source], **changes))


def swap(model: Path, source: Path, base: int | None, other: int | None, **changes: Any) -> BlockSwap:
    """Return the request of a swap between draws of one text, by seed; None is dense."""
    draws = [None if seed is None else draw(source, seed) for seed in (base, other)]
    return BlockSwap(base=draws[0], other=draws[1], **asked(model, [source], **changes))
