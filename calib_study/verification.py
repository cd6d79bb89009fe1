"""Stored records computed again on this machine: which, how they compare, and how that is shown."""

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from calib_study import paths
from calib_study.environment import differences
from calib_study.errors import DataError, StudyError
from calib_study.metrics import TASK_UNITS
from calib_study.model_files import resolve_model
from calib_study.preflight import check_specs
from calib_study.progress import bar
from calib_study.records import Metric, Record, Store

if TYPE_CHECKING:
    import pandas as pd

# Records of another kind of processor (AVX512, here AVX2) came out with perplexities of 2,000 to 4,000 tokens that
# differ by up to 1.6 % for Wanda, and up to 5.4 % for SparseGPT: its updates feed every rounding into the next column,
# and 2 % of the mask moves. On the same kind of machine, with as many threads, all are equal to the last bit.
RELATIVE_TOLERANCE = 0.03
LESS_STABLE = {"sparsegpt": 5.0}  # method: times the tolerance
FLIPS = 4  # tokens or items that may fall on the other side
WORDS = 1000  # fewer average rounding out less: the tolerance of a perplexity of n words grows with sqrt(WORDS / n)


@dataclass(frozen=True)
class Comparison:
    """A stored number, or hash, beside the same computed again.

    Attributes:
        relative: |again - stored| / |stored|.
        within: True if the two differ by no more than is allowed.
        elsewhere: in what the environment of the stored record is not that of this machine.
    """

    run_id: str
    title: str
    quantity: str
    stored: float | str
    again: float | str
    relative: float
    within: bool
    elsewhere: tuple[str, ...] = ()


def verify(
    records: Sequence[Record],
    *,
    model: str | None = None,
    device: str = "cpu",
    tolerance: float = RELATIVE_TOLERANCE,
    progress: bool = True,
) -> list[Comparison]:
    """Compute stored runs again and return every number beside the stored one; nothing is stored.

    Token ids, weights and achieved sparsity must be the same exactly; metrics to the relative tolerance (on the
    same kind of machine they are equal to the last bit).

    Args:
        model: where to load the model from if the records' name does not say (a path).
    """
    from calib_study.matmul import threads
    from calib_study.study import Laboratory

    comparisons: list[Comparison] = []
    labs: dict[tuple[str, str], Laboratory] = {}
    with bar(len(records), "recomputing", "run", shown=progress) as shown:
        for record in records:
            shown.set_postfix_str(record.spec.title)
            key = (record.spec.model, record.spec.dtype)
            if key not in labs:
                ref = resolve_model(model or record.spec.model)
                labs = {key: Laboratory(ref, dtype=record.spec.dtype, device=device)}
            check_specs([record.spec], labs[key].dense.ref)
            with threads(record.environment.threads):
                comparisons += compare(record, labs[key].run(record.spec).record, tolerance)
            shown.update()
    return comparisons


def compare(stored: Record, again: Record, tolerance: float) -> list[Comparison]:
    """Return each number of a stored record beside the same number of another record of that run.

    Counts, single layers and windows and standard errors follow the others, and only where they differ.
    """
    run = stored.run_id, stored.spec.title
    tolerance *= LESS_STABLE.get(stored.spec.method, 1.0)
    rows = [_same(run, "model", stored.model_sha256, again.model_sha256)]
    if stored.calibration or again.calibration:
        rows.append(_same(run, "calibration tokens", _tokens(stored), _tokens(again)))
    rows.append(_close(run, "sparsity", stored.sparsity.overall, again.sparsity.overall, 1e-9))
    for metric in stored.metrics:
        value = again.metric(metric.name, metric.dataset).value
        allowed = allowance(metric, tolerance)
        rows.append(_close(run, f"{metric.name} on {metric.dataset}", metric.value, value, allowed))
    details = [_close(run, *detail) for detail in _details(stored, again, tolerance)]
    elsewhere = tuple(differences(stored.environment, again.environment))
    return [replace(row, elsewhere=elsewhere) for row in [*rows, *(row for row in details if not row.within)]]


def allowance(metric: Metric, tolerance: float) -> float:
    """Return how far a metric computed again may lie from the stored one, in its own unit.

    A share of tokens or items moves in steps of 1 / n: `FLIPS` of these are allowed at `RELATIVE_TOLERANCE`, more
    in proportion to the root of a larger one (twice the rounding does not flip twice as many). A perplexity of few
    words may move more than one of a text.
    """
    allowed = tolerance * abs(metric.value)
    if metric.unit == TASK_UNITS["perplexity"]:
        return float(allowed * max(1.0, math.sqrt(WORDS / metric.n)))
    if metric.unit.startswith("share"):
        return float(max(allowed, FLIPS * math.sqrt(tolerance / RELATIVE_TOLERANCE) / metric.n))
    return allowed


def _details(stored: Record, again: Record, tolerance: float) -> Iterator[tuple[str, float, float, float]]:
    """Yield (quantity, stored, again, allowed difference) for the numbers behind the headline ones."""
    if stored.calibration and again.calibration:
        for name in ("n_tokens", "n_documents"):
            yield name, getattr(stored.calibration, name), getattr(again.calibration, name), 0
    layers = again.sparsity.per_layer
    yield "layers", len(stored.sparsity.per_layer), len(layers), 0
    for layer, sparsity in stored.sparsity.per_layer.items():
        yield f"sparsity of {layer}", sparsity, layers.get(layer, 0.0), 1e-9
    for metric in stored.metrics:
        other = again.metric(metric.name, metric.dataset)
        name, allowed = f"{metric.name} on {metric.dataset}", allowance(metric, tolerance)
        yield f"{name}: tokens", metric.n, other.n, 0
        yield f"{name}: windows", len(metric.items), len(other.items), 0
        for index, (item, new) in enumerate(zip(metric.items, other.items, strict=False)):
            yield f"{name}: window {index}", item, new, max(allowed, tolerance * abs(item))
        # a standard error is small beside the value: it may move by as much as the value may
        yield f"{name}: stderr", metric.stderr or 0.0, other.stderr or 0.0, allowed


def _tokens(record: Record) -> str:
    return record.calibration.tokens_sha256 if record.calibration else "none"


def _same(run: tuple[str, str], quantity: str, stored: str, again: str) -> Comparison:
    same = stored == again
    return Comparison(*run, quantity, stored[:12], again[:12], 0.0 if same else 1.0, same)


def _close(run: tuple[str, str], quantity: str, stored: float, again: float, allowed: float) -> Comparison:
    difference = abs(again - stored)
    relative = difference / abs(stored) if stored else difference
    return Comparison(*run, quantity, stored, again, relative, difference <= allowed)


def choose(sample: int | None, seed: int | None, among: Sequence[Record] | None = None) -> tuple[list[Record], int]:
    """Return published records, a random sample of them or all (None), and the seed that chose them.

    Raises DataError if a published file is not a record, arrays beside a record are not its own, or there are none.

    Args:
        among: the records to choose from; None for every published one.
    """
    store = Store(paths.results_dir())
    records, problems = store.scan()
    records = records if among is None else list(among)
    for record in records:
        try:
            store.arrays(record)
        except StudyError as error:
            problems.append(str(error))
    if problems:
        raise DataError("published records that are damaged:\n" + "\n".join(problems))
    if not records:
        raise DataError(f"{store.write_dir} holds no records.")
    seed = secrets.randbelow(2**31) if seed is None else seed
    return sample_of(records, sample, seed), seed


def sample_of(records: Sequence[Record], sample: int | None, seed: int) -> list[Record]:
    """Return `sample` of the records chosen by a seed, or all of them for None or when there are no more."""
    if sample is None or sample >= len(records):
        return list(records)
    chosen = np.random.default_rng(seed).choice(len(records), sample, replace=False)
    return [records[i] for i in sorted(chosen)]


def report(
    records: Sequence[Record], *, model: str | None = None, device: str, tolerance: float | None
) -> tuple[str, bool]:
    """Compute records again; return a table, one line for each number, and whether all agree.

    If any number is not equal, what the environments tell of it follows.
    """
    allowed = RELATIVE_TOLERANCE if tolerance is None else tolerance
    comparisons = verify(records, model=model, device=device, tolerance=allowed)
    lines = []
    wide = max((len(row.title) for row in comparisons), default=0) + 2
    for row in comparisons:
        if isinstance(row.stored, str):
            numbers = f"{row.stored:>14}{row.again:>14}{'':>12}"
        else:
            numbers = f"{row.stored:>14.6g}{row.again:>14.6g}{row.relative:>12.1e}"
        verdict = "equal" if row.relative == 0 else "agrees" if row.within else "DIFFERS"
        lines.append(f"{row.run_id}  {row.title:<{wide}}{row.quantity:<26}{numbers}  {verdict}")
    head = f"{'run_id':<18}{'run':<{wide}}{'quantity':<26}{'stored':>14}{'again':>14}{'relative':>12}"
    return "\n".join([head, *lines, *explanation(comparisons)]), all(row.within for row in comparisons)


def explanation(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what the environments tell of numbers that are not equal to the last bit: no line if all are."""
    unequal = [row for row in comparisons if row.relative != 0]
    differing = list(dict.fromkeys(field for row in unequal for field in row.elsewhere))
    alike = list(dict.fromkeys(row.run_id for row in unequal if not row.elsewhere))
    lines = [f"this machine differs from the records' in: {', '.join(differing)}"] if differing else []
    if alike:
        lines.append(
            f"the environment, equal to the record's, does not explain what is not equal in {', '.join(alike)}"
        )
    return lines


def spot_check(
    records: Sequence[Record], sample: int, *, model: str | None = None, device: str
) -> "tuple[pd.DataFrame, int]":
    """Compute a few of the published among `records` again; return the comparison and the seed that chose them.

    The frame has a row for each number: run, quantity, stored, here, relative difference, agrees. It is empty
    if none of the records is published, for then all of them were computed on this machine.
    """
    import pandas as pd

    seed = secrets.randbelow(2**31)
    published = [record for record in records if (paths.results_dir() / f"{record.run_id}.json").is_file()]
    rows = verify(sample_of(published, sample, seed), model=model, device=device) if published and sample else []
    columns = ["run", "quantity", "stored", "here", "relative difference", "agrees"]
    table = [(row.title, row.quantity, row.stored, row.again, row.relative, row.within) for row in rows]
    return pd.DataFrame(table, columns=columns), seed
