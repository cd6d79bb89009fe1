"""Computing measurements: those that the store does not have, each stored as soon as it is finished."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_study import paths
from calib_study.array_files import Array
from calib_study.environment import describe_environment, peak_memory_mb
from calib_study.errors import InputError, unknown
from calib_study.matmul import threads
from calib_study.measurements import Measurement, MeasurementStore, Request
from calib_study.model_files import resolve_model
from calib_study.preflight import check_specs
from calib_study.records import Metric, Stage
from calib_study.stores import compute_missing
from calib_study.study import Laboratory
from calib_study.verification import RELATIVE_TOLERANCE

if TYPE_CHECKING:
    import pandas as pd

# Of arrays whose numbers are small differences, in which a few flipped weights of a mask are seen: times the tolerance.
LESS_STABLE = {"divergence": 5.0}


@dataclass(frozen=True)
class Measured:
    """What a measurement found: its arrays, and its metrics."""

    arrays: Mapping[str, Array]
    metrics: Sequence[Metric] = field(default=())


Measurer = Callable[[Laboratory, Any], Measured]  # answers a request of its kind with a loaded model


def run_measurements(
    requests: Sequence[Request],
    measurers: Mapping[str, Measurer],
    *,
    model: str | None = None,
    device: str = "cpu",
    store: MeasurementStore | None = None,
    progress: bool = True,
) -> list[Measurement]:
    """Return the measurements of all requests, in their order; compute those that the store does not have.

    Any number of processes may share a store, as in `study.run_grid`. Everything is checked first; a model is loaded
    only if something is missing.

    Args:
        requests: of one model and dtype; repeated ones are computed once.
        measurers: by kind of request, what answers it.
        model: where to load the model from if its name does not say (a path).
    Raises InputError for requests of several models, of a kind that nothing answers, or what `check_specs` refuses.
    """
    store = store or MeasurementStore.default()
    wanted = {request.measurement_id: request for request in requests}
    missing = {key: request for key, request in wanted.items() if store.get(key) is None}
    if missing:
        _compute(missing, measurers, model, device, store, progress)
    found = {key: store.get(key) for key in wanted}
    return [made for request in requests if (made := found[request.measurement_id]) is not None]


def _compute(
    missing: Mapping[str, Request],
    measurers: Mapping[str, Measurer],
    model: str | None,
    device: str,
    store: MeasurementStore,
    progress: bool,
) -> None:
    names = {(request.model, request.dtype) for request in missing.values()}
    if len(names) > 1:
        got = ", ".join(f"{name} in {dtype}" for name, dtype in sorted(names))
        raise InputError(f"measurements together are of one model and dtype; got {got}. Ask for them one by one.")
    ((name, dtype),) = names
    for kind in dict.fromkeys(request.kind for request in missing.values()):
        if kind not in measurers:
            raise unknown("kind of measurement", kind, measurers)
    ref = resolve_model(model or name)
    check_specs([spec for request in missing.values() for spec in request.specs()], ref)

    @cache
    def laboratory() -> Laboratory:
        return Laboratory(ref, dtype=dtype, device=device)

    def compute(request: Request) -> None:
        found, arrays = measure(laboratory(), request, measurers)
        store.put(found, arrays)

    compute_missing(missing, store, compute, title=lambda request: request.title, progress=progress)


def measure(
    lab: Laboratory, request: Request, measurers: Mapping[str, Measurer]
) -> tuple[Measurement, Mapping[str, Array]]:
    """Return a measurement computed now, and the arrays to store with it; nothing is stored."""
    start = time.perf_counter()
    found = measurers[request.kind](lab, request)
    stage = Stage(
        name="measure",
        wall_s=round(time.perf_counter() - start, 3),
        peak_memory_mb=peak_memory_mb(lab.device),
    )
    asked: Any = request  # one of the kinds that `AnyRequest` names: pydantic checks it
    measurement = Measurement(
        measurement_id=request.measurement_id,
        request=asked,
        model_sha256=lab.weights_sha256,
        metrics=tuple(found.metrics),
        stages=(stage,),
        environment=describe_environment(lab.device, lab.matmul),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return measurement, found.arrays


# --- measured again -----------------------------------------------------------------------------------------


def spot_check(
    found: Sequence[Measurement],
    sample: int,
    measurers: Mapping[str, Measurer],
    *,
    model: str | None = None,
    device: str = "cpu",
) -> "tuple[pd.DataFrame, int]":
    """Measure a few of the published among `found` again; return the comparison and the seed that chose them.

    The frame is like that of `verification.spot_check`, with a row for each array: the mean of a numeric one, of a mask
    the share of positions that are the same. It is empty if none is published.
    """
    import pandas as pd

    seed = secrets.randbelow(2**31)
    folder = paths.published_measurements_dir()
    store = MeasurementStore(folder)
    published = [one for one in found if (folder / f"{one.key}.json").is_file()]
    chosen = np.random.default_rng(seed).permutation(len(published))[: min(sample, len(published))]
    rows: list[tuple[Any, ...]] = []
    lab: Laboratory | None = None
    for one in (published[i] for i in sorted(chosen)):
        lab = lab or Laboratory(resolve_model(model or one.request.model), dtype=one.request.dtype, device=device)
        check_specs(one.request.specs(), lab.dense.ref)
        with threads(one.environment.threads):
            again = measure(lab, one.request, measurers)[1]
        rows += [(one.request.title, *row) for row in compared(store.arrays(one), again)]
    columns = ["run", "quantity", "stored", "here", "relative difference", "agrees"]
    return pd.DataFrame(rows, columns=columns), seed


def compared(stored: Mapping[str, Array], again: Mapping[str, Array]) -> list[tuple[str, float, float, float, bool]]:
    """Return for each array its mean stored and again, how they differ, and whether by no more than is allowed.

    Names and layouts must be the same exactly. Of bits of a mask, the means are the share of positions that agree.
    """
    rows = []
    for name, old in stored.items():
        new = again.get(name, np.empty(0))
        if old.shape != new.shape or old.dtype.kind not in "fu":
            same = old.shape == new.shape and bool((old == new).all())
            rows.append((name, 1.0, float(same), 1.0 - same, same))
            continue
        if old.dtype.kind == "u":
            means = (1.0, float((np.unpackbits(old) == np.unpackbits(new)).mean()))
        else:
            means = (float(np.mean(old, dtype=np.float64)), float(np.mean(new, dtype=np.float64)))
        relative = abs(means[1] - means[0]) / abs(means[0]) if means[0] else abs(means[1])
        rows.append((name, *means, relative, relative <= RELATIVE_TOLERANCE * LESS_STABLE.get(name, 1.0)))
    return rows
