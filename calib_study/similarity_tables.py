"""Does likeness to the training text decide? Contrasts over models whose training text is known.

A *cell* is one run read on one held-out text: a model, the corpus that calibrated it, the corpus that it was scored on.
Its damage is taken as a logarithm, so that a difference is a share: models, and texts that a model knows well or
badly, are damaged to different degrees, and what is asked is by how much less a text damages than another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calib_study.errors import InputError
from calib_study.frames import damage_table
from calib_study.records import Record
from calib_study.sources import SEEN, UNSEEN, parse_view
from calib_study.specs import RunSpec
from calib_study.statistics import Interval, mean_interval
from calib_study.verdicts import Judgement, at_least, for_all, shifted, text_of

LEAST = 0.05  # of the damage: a smaller advantage would change no choice of text
CELL = ["model", "calibrated", "view", "evaluated", "method", "sparsity", "seed"]
Floats = NDArray[np.float64]


class Parameters(Protocol):
    """What the tables need of the parameters of 08_similarity."""

    glass_methods: list[str]
    corpora: list[str]
    glass_sparsities: list[float]

    def crossed(self) -> Mapping[str, Sequence[RunSpec]]: ...


def crossed_records(cfg: Parameters, records: Sequence[Record]) -> list[Record]:
    """Return the records of the crossed runs."""
    asked = {spec.run_id for specs in cfg.crossed().values() for spec in specs}
    return [record for record in records if record.run_id in asked]


def cell_table(frame: pd.DataFrame, corpora: Sequence[str]) -> pd.DataFrame:
    """Return one row for each run and held-out corpus: the columns of `CELL`, `damage` (nats per token), `log_damage`.

    Args:
        frame: tidy frame of runs calibrated with "CORPUS@seen" or "CORPUS@unseen", and of their dense models.
    Raises InputError for a run that a text of another name calibrated, or for damage that is not above zero.
    """
    parts = [damage_table(frame, [corpus]).assign(evaluated=corpus) for corpus in corpora]
    table = pd.concat(parts, ignore_index=True)
    names = {source: parse_view(source) for source in table["source"].unique()}
    if strange := sorted(str(source) for source, view in names.items() if view is None):
        raise InputError(f"cell_table: runs calibrated with {', '.join(strange)}, not with the part of a corpus.")
    table["calibrated"] = [(names[source] or ("", ""))[0] for source in table["source"]]
    table["view"] = [(names[source] or ("", ""))[1] for source in table["source"]]
    table["log_damage"] = np.log(table["damage"].where(table["damage"] > 0))
    return table[[*CELL, "damage", "log_damage"]]


@dataclass(frozen=True)
class Contrasts:
    """What the runs of one method at one sparsity say; differences of logarithms of damage, over seeds.

    Attributes:
        own: how much less a model's own corpus damages what it can do on that corpus than the others do, the
            mean over models of one corpus. It is the interaction of model and text: which text is better for all
            cancels out.
        matching: the same of the model of all corpora: how much less a text damages it *on that text*. All are its
            training text, so this is likeness to what is evaluated.
        beyond: own minus matching, paired by seed.
        texts: by corpus, its effect on the damage of all models alike, from a least-squares fit with the
            models' own levels and one effect of the own corpus; they sum to zero.
        spread: that of the worst corpus minus that of the best.
        decides: own minus spread, paired by seed.
        seen: how much less the part that the model was trained on damages than the unseen part of its corpus; None
            if it was not run.
    """

    own: Interval
    matching: Interval | None
    beyond: Interval | None
    texts: dict[str, Interval]
    spread: Interval
    decides: Interval
    seen: Interval | None


def trained_on(models: Mapping[str, Sequence[str]], corpora: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """Return the models of one corpus, each with it, and the first model of all of them (None if there is none).

    Args:
        models: by name, what each was trained on.
    Raises InputError unless there is exactly one model for each corpus.
    """
    single = {name: texts[0] for name, texts in models.items() if len(texts) == 1 and texts[0] in corpora}
    if sorted(single.values()) != sorted(corpora):
        raise InputError(
            f"one model for each of {', '.join(corpora)} is needed; got models of {sorted(single.values())}."
        )
    whole = [name for name, texts in models.items() if len(texts) > 1 and set(texts) >= set(corpora)]
    return single, whole[0] if whole else None


def contrasts(cells: pd.DataFrame, models: Mapping[str, Sequence[str]], corpora: Sequence[str]) -> Contrasts:
    """Return the contrasts of the cells of one method at one sparsity.

    Raises InputError if a cell is missing, has two runs, or no damage above zero.
    """
    single, whole = trained_on(models, corpora)
    order = {corpus: name for name, corpus in single.items()}
    unseen = cells[cells["view"] == UNSEEN]
    # (n_models, n_texts, n_seeds), models in the order of their corpora, each scored on its own corpus
    table = np.stack([_by_text(unseen, order[corpus], corpus, corpora) for corpus in corpora])
    own = advantage(table)
    effects = text_effects(table)
    means = effects.mean(axis=1)
    spread = effects[means.argmax()] - effects[means.argmin()]
    matching = None
    if whole is not None:
        matching = advantage(np.stack([_by_text(unseen, whole, corpus, corpora) for corpus in corpora]))
    return Contrasts(
        own=mean_interval(own),
        matching=None if matching is None else mean_interval(matching),
        beyond=None if matching is None else mean_interval(own - matching),
        texts={corpus: mean_interval(effect) for corpus, effect in zip(corpora, effects, strict=True)},
        spread=mean_interval(spread),
        decides=mean_interval(own - spread),
        seen=_seen(cells, order, corpora),
    )


def advantage(table: Floats) -> Floats:
    """Return for each seed the mean over rows of (mean of the others - the diagonal), from (k, k, n_seeds).

    >>> advantage(np.array([[[1.0], [2.0]], [[5.0], [3.0]]]))
    array([1.5])
    """
    k = len(table)
    diagonal = table[np.arange(k), np.arange(k)]
    others = (table.sum(axis=1) - diagonal) / (k - 1)
    mean: Floats = (others - diagonal).mean(axis=0)
    return mean


def text_effects(table: Floats) -> Floats:
    """Return the effect of each column (k, n_seeds), summing to zero, from (k, k, n_seeds).

    The least-squares fit of row levels, column effects and one effect of the diagonal. It takes the diagonal's effect
    off before columns are compared; which is the same here as without it, since each column has one such cell.
    """
    effects: Floats = table.mean(axis=0) - table.mean(axis=(0, 1))
    return effects


def _by_text(cells: pd.DataFrame, model: str, evaluated: str, corpora: Sequence[str]) -> Floats:
    """Return the logarithms of a model's damage on one corpus (n_texts, n_seeds), by what calibrated it."""
    rows = cells[(cells["model"] == model) & (cells["evaluated"] == evaluated)]
    return np.stack(
        [_by_seed(rows[rows["calibrated"] == corpus], f"{model} calibrated with {corpus}") for corpus in corpora]
    )


def _by_seed(rows: pd.DataFrame, what: str) -> Floats:
    if rows.empty or rows["seed"].duplicated().any() or rows["log_damage"].isna().any():
        raise InputError(
            f"contrasts: {what} needs one run a seed with damage above zero; got {len(rows)} runs, "
            f"{int(rows['log_damage'].isna().sum())} of them without damage."
        )
    return rows.sort_values("seed")["log_damage"].to_numpy(dtype=np.float64)


def _seen(cells: pd.DataFrame, order: Mapping[str, str], corpora: Sequence[str]) -> Interval | None:
    own = cells[(cells["view"] == SEEN)]
    if own.empty:
        return None
    differences = []
    for corpus in corpora:
        rows = cells[
            (cells["model"] == order[corpus]) & (cells["evaluated"] == corpus) & (cells["calibrated"] == corpus)
        ]
        parts = [
            _by_seed(rows[rows["view"] == view], f"{order[corpus]} calibrated with {corpus}@{view}")
            for view in (UNSEEN, SEEN)
        ]
        differences.append(parts[0] - parts[1])
    return mean_interval(np.mean(differences, axis=0))


def contrast_table(cells: pd.DataFrame, cfg: Parameters, models: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the contrasts of every method and sparsity: method, sparsity, contrast, mean, low, high.

    `contrast` is "own text", "matching text", "own beyond matching", "seen text", "best text" (the spread), and "own
    beyond best".
    """
    rows: list[tuple[object, ...]] = []
    for method in cfg.glass_methods:
        for sparsity in cfg.glass_sparsities:
            chosen = cells[(cells["method"] == method) & np.isclose(cells["sparsity"], sparsity)]
            found = contrasts(chosen, models, cfg.corpora)
            named = {
                "own text": found.own,
                "matching text": found.matching,
                "own beyond matching": found.beyond,
                "best text": found.spread,
                "own beyond best": found.decides,
                "seen text": found.seen,
            }
            rows += [
                (method, sparsity, name, interval.mean, interval.low, interval.high)
                for name, interval in named.items()
                if interval is not None
            ]
    return pd.DataFrame(rows, columns=["method", "sparsity", "contrast", "mean", "low", "high"])


def judge_likeness(cells: pd.DataFrame, cfg: Parameters, models: Mapping[str, Sequence[str]]) -> Judgement:
    """Return the verdict on J7, with the first method at the first sparsity, on unseen text."""
    method, sparsity = cfg.glass_methods[0], cfg.glass_sparsities[0]
    found = contrasts(cells[(cells["method"] == method) & np.isclose(cells["sparsity"], sparsity)], models, cfg.corpora)
    beyond = [] if found.beyond is None else [at_least(found.beyond)]
    verdict = for_all([at_least(shifted(found.own, -LEAST)), at_least(found.decides), *beyond])
    said = (
        f"damage with {method} at {sparsity:.0%}, as a share: own text does {text_of(found.own)} less than others; "
        + ("" if found.beyond is None else f"beyond likeness to the text evaluated, {text_of(found.beyond)}; ")
        + f"the best text for all models does {text_of(found.spread)} less than the worst"
    )
    return Judgement(
        "J7", said, verdict if found.beyond is not None or verdict != "supported" else "inconclusive", "fig-crossed"
    )
