"""How like a text is to what a model knows, and to a reference: what answers the measurement `text_scores`."""

from collections.abc import Sequence

import numpy as np
import torch

from calib_study.array_files import Array
from calib_study.dense_moments import dense_moments
from calib_study.measurement_runs import Measured, Measurer, run_measurements
from calib_study.measurements import Draw, Measurement, MeasurementStore, TextScores
from calib_study.membership import membership_scores
from calib_study.models import DenseModel
from calib_study.norm_distance import norm_distance
from calib_study.records import Metric
from calib_study.study import Laboratory
from calib_study.text_likeness import ngram_divergence
from calib_study.windows import Tokens


def measure_likeness(
    requests: Sequence[TextScores],
    *,
    model: str | None = None,
    device: str = "cpu",
    store: MeasurementStore | None = None,
    progress: bool = True,
) -> list[Measurement]:
    """Return the measurements of all requests; see `measurement_runs.run_measurements`."""
    answers: dict[str, Measurer] = {"text_scores": text_scores}
    return run_measurements(requests, answers, model=model, device=device, store=store, progress=progress)


def arrays_of(measurement: Measurement, store: MeasurementStore | None = None) -> dict[str, Array]:
    """Return the arrays of a measurement that is stored."""
    return (store or MeasurementStore.default()).arrays(measurement)


@torch.no_grad()
def text_scores(lab: Laboratory, request: TextScores) -> Measured:
    """Return the scores of a draw under the dense model: see `TextScores` for the arrays."""
    windows = _tokens(lab, request, request.draw)
    lab.dense.restore()
    found = membership_scores(lab.dense.model, windows, k=request.k)
    arrays = {"nll": found.nll, "min_k": found.min_k, "min_k_plus_plus": found.min_k_plus_plus}
    if request.reference is None:
        return Measured(arrays)
    reference = _tokens(lab, request, request.reference)
    norms = [_norms(lab, lab.dense, tokens) for tokens in (windows, reference)]
    distance = norm_distance(*norms)
    arrays |= {"inputs": np.array(list(distance.by_layer)), "norm_distance": np.array(list(distance.by_layer.values()))}
    divergence = ngram_divergence(windows, reference, 1)
    metrics = [
        _metric("unigram_divergence", request.reference, divergence, "nats", windows.size),
        _metric("norm_distance", request.reference, distance.mean, "nats", windows.size),
    ]
    return Measured(arrays, metrics)


def _tokens(lab: Laboratory, request: TextScores, draw: Draw) -> Tokens:
    windows = lab.calibration_windows(request.spec(draw))
    assert windows is not None
    return windows.tokens


def _norms(lab: Laboratory, dense: DenseModel, tokens: Tokens) -> dict[str, np.ndarray]:
    """Return the root mean square of every input channel, by the first layer that reads it."""
    norms = {}
    for index, block in enumerate(dense_moments(dense.model, tokens, gram=False, cache=lab.cache)):
        for names, seen in block:
            norms[f"{index}.{names[0]}"] = (seen.norms() / np.sqrt(seen.n_tokens)).double().cpu().numpy()
    return norms


def _metric(name: str, reference: Draw, value: float, unit: str, n: int) -> Metric:
    return Metric(name=name, dataset=reference.text.source, value=value, unit=unit, higher_is_better=False, n=n)
