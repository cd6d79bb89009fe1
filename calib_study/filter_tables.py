"""What a perplexity filter removes from text of a model's own, and what calibrating with the rest changes.

Runs come from `frames.damage_table`, of a chapter whose parameters are `Parameters`. A *filter* drops a share of the
texts at one end of their perplexities; "random" drops as many at random, one filter for each seed, and is the control.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from calib_study.errors import InputError
from calib_study.frames import damage_table
from calib_study.manifests import Manifest
from calib_study.own_text_facts import beginning
from calib_study.own_text_tables import LIMITS, contrast_interval, gains, interval_of
from calib_study.records import Record, to_frame
from calib_study.verdicts import Judgement, Verdict, text_of

WHOLE, CONTROL = "whole", "random"
PAPER_DROP = 20.0  # per cent of the texts, those of highest perplexity
RUN = ["text", "method", "end", "drop", "seed"]


class Named(Protocol):
    """A job that makes a source."""

    @property
    def source(self) -> str: ...


class Parameters(Protocol):
    """What the tables need of the parameters of 06_filtering."""

    sources: list[str]
    methods: list[str]
    drops: list[float]
    n_seeds: int

    def jobs(self) -> Sequence[Named]: ...
    def filters(self) -> Sequence[tuple[str, str, float, int | None, Named]]: ...


# --- runs -------------------------------------------------------------------------------------------------


def filter_names(cfg: Parameters) -> pd.DataFrame:
    """Return which source is which filter: source (its name), text (its prefix source), end, drop (per cent).

    The whole texts have the end "whole" and drop 0.
    """
    rows = [(job.source, text, WHOLE, 0.0) for text, job in zip(cfg.sources, cfg.jobs(), strict=True)]
    rows += [(job.source, text, end, float(drop)) for text, end, drop, _, job in cfg.filters()]
    return pd.DataFrame(rows, columns=["source", "text", "end", "drop"]).drop_duplicates("source")


def filter_runs(damage: pd.DataFrame, cfg: Parameters) -> pd.DataFrame:
    """Return the runs by what their texts are: text, method, end, drop, seed, damage.

    Raises InputError unless each text, method, end and drop has a run of each seed.
    """
    runs = damage.merge(filter_names(cfg), on="source")[[*RUN, "damage"]]
    counts = runs.groupby(RUN[:-1], sort=False)["seed"].agg(lambda seeds: sorted(seeds) == list(range(cfg.n_seeds)))
    kinds = len(cfg.sources) * len(cfg.methods) * len(filter_names(cfg)[["end", "drop"]].drop_duplicates())
    if len(counts) != kinds or not counts.all():
        raise InputError(
            f"filter_runs: {int(counts.sum())} of {kinds} texts, methods and filters have a run of each of "
            f"{cfg.n_seeds} seeds. Run the chapter's grid first."
        )
    return runs


def effect_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return, for each method, end and drop, its damage minus that after as many random drops, with limits.

    Pairs share text and seed; the mean is over texts. The spread is pooled over the drops of an end and the texts.
    Columns: method, end, drop, `LIMITS`, from_whole (mean damage minus that of the whole texts), verdict (`gains`).

    Args:
        runs: from `filter_runs`.
    """
    level = runs.set_index(RUN)["damage"].unstack("seed")
    whole = level.xs((WHOLE, 0.0), level=("end", "drop"))
    control = level.xs(CONTROL, level="end")
    rows = []
    for method in dict.fromkeys(runs["method"]):
        for end in [name for name in dict.fromkeys(runs["end"]) if name not in (WHOLE, CONTROL)]:
            here = level.xs((method, end), level=("method", "end"))
            other = control.xs(method, level="method").reindex(here.index)
            drops = here.index.get_level_values("drop")
            for drop in sorted(set(drops)):
                weights = (drops == drop) / (drops == drop).sum()
                wide, narrow = (contrast_interval(here - other, weights, level=p) for p in (0.95, 0.90))
                limits = (wide.mean, wide.low, wide.high, narrow.low, narrow.high)
                change = float(
                    here[drops == drop].to_numpy().mean() - whole.xs(method, level="method").to_numpy().mean()
                )
                rows.append((method, end, drop, *limits, change, gains(wide, narrow)))
    return pd.DataFrame(rows, columns=["method", "end", "drop", *LIMITS, "from_whole", "verdict"])


def judge(cfg: Parameters, records: Sequence[Record]) -> list[Judgement]:
    """Return the verdict of the chapter on J9, from its checked parameters and its records."""
    return judgements(cfg, damage_table(to_frame(records)))


def judgements(cfg: Parameters, damage: pd.DataFrame) -> list[Judgement]:
    """Return the same from the runs' damage: of the drop of high perplexities that is nearest to the paper's."""
    effects = effect_table(filter_runs(damage, cfg))
    top = effects[(effects["end"] == "top") & (effects["method"] == cfg.methods[0])]
    if top.empty:
        return [Judgement("J9", "no filter drops the highest perplexities", "inconclusive", "fig-filter-damage")]
    row = top.iloc[int((top["drop"] - PAPER_DROP).abs().to_numpy().argmin())]
    verdict: Verdict = row["verdict"]
    said = (
        f"damage with {cfg.methods[0]} after dropping the {row['drop']:g} % of highest perplexity, minus after "
        f"dropping as many at random: {text_of(interval_of(row))} nats per token"
    )
    return [Judgement("J9", said, verdict, "fig-filter-damage")]


# --- texts ------------------------------------------------------------------------------------------------


def manifests_by_filter(
    cfg: Parameters, manifests: Mapping[str, Manifest]
) -> dict[str, dict[tuple[str, float], list[Manifest]]]:
    """Return by text, then by (end, drop), the manifests of its filters: one, or one for each seed of the control.

    Args:
        manifests: by name of the source.
    """
    found: dict[str, dict[tuple[str, float], list[Manifest]]] = {text: {} for text in cfg.sources}
    for text, end, drop, _, job in cfg.filters():
        found[text].setdefault((end, float(drop)), []).append(manifests[job.source])
    return found


def scored_texts(
    parent: Manifest, documents: Sequence[str], filters: Mapping[tuple[str, float], Sequence[Manifest]]
) -> pd.DataFrame:
    """Return one row for each text before the filters: index, perplexity, repeated, text.

    Perplexities are those that the filters cut by. Another model's are known of the texts that some filter keeps, and
    missing for others. Raises InputError unless there is a document for each text of the parent.
    """
    if len(documents) != len(parent.texts):
        raise InputError(f"scored_texts: {len(documents)} documents for {len(parent.texts)} texts.")
    every = [manifest for group in filters.values() for manifest in group]
    rescored = any(getattr(manifest.request, "scorer", None) for manifest in every)
    known = {} if rescored else {text.index: text.perplexity for text in parent.texts}
    known |= {text.index: text.perplexity for manifest in every for text in manifest.texts}
    rows = [
        (facts.index, known.get(facts.index), facts.repeated, text)
        for facts, text in zip(parent.texts, documents, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["index", "perplexity", "repeated", "text"])
    return table.astype({"perplexity": float, "repeated": float})


def composition_table(texts: pd.DataFrame, filters: Mapping[tuple[str, float], Sequence[Manifest]]) -> pd.DataFrame:
    """Return what each filter removes and keeps: end, drop, removed (texts), cut (perplexity; missing for random ones),
    then the median perplexity and the mean share of repeated 4-grams of what is removed and kept.

    Of the control, which has a filter for each seed, means over them.

    Args:
        texts: from `scored_texts`.
    """
    rows = []
    for (end, drop), group in filters.items():
        found = []
        for manifest in group:
            gone = _removed(texts, manifest)
            medians = (texts.loc[gone, "perplexity"].median(), texts.loc[~gone, "perplexity"].median())
            means = (texts.loc[gone, "repeated"].mean(), texts.loc[~gone, "repeated"].mean())
            cut = np.nan if manifest.threshold is None else manifest.threshold
            found.append((int(gone.sum()), cut, *medians, *means))
        rows.append((end, drop, *np.array(found, dtype=np.float64).mean(axis=0)))
    names = ["perplexity_removed", "perplexity_kept", "repeated_removed", "repeated_kept"]
    return pd.DataFrame(rows, columns=["end", "drop", "removed", "cut", *names])


def removed_table(
    texts: pd.DataFrame, filters: Mapping[tuple[str, float], Sequence[Manifest]], characters: int = 200
) -> pd.DataFrame:
    """Return the beginnings of the removed texts of highest and lowest perplexity: end, drop, which, perplexity,
    repeated, text. Of the control, those of its first seed.

    Args:
        texts: from `scored_texts`.
    """
    rows = []
    for (end, drop), group in filters.items():
        gone = texts[_removed(texts, group[0])].dropna(subset="perplexity").sort_values("perplexity")
        for which, place in (("highest", -1), ("lowest", 0)) if len(gone) else ():
            row = gone.iloc[place]
            rows.append((end, drop, which, row["perplexity"], row["repeated"], beginning(row["text"], characters)))
    return pd.DataFrame(rows, columns=["end", "drop", "which", "perplexity", "repeated", "text"])


def _removed(texts: pd.DataFrame, manifest: Manifest) -> "pd.Series[bool]":
    """Return which texts a filter did not keep."""
    return ~texts["index"].isin([facts.index for facts in manifest.texts])
