"""What the records of chapters 1 and 11 say of the papers' claims, by the functions that these chapters show.

The rules are in words in the opening of each chapter; that of W6, which chapter 1 has the records for but no rule, is
at `judge_sources` and in the registry of claims.
"""

from collections.abc import Sequence

import pandas as pd

from calib_study import crossed, frames, measures, measuring_tables, statistics, verdicts
from calib_study.amount_tables import beyond
from calib_study.crossed import Layout
from calib_study.grids import Scored, reads_text
from calib_study.measure_figures import describe_steadiness
from calib_study.parameters import DataSources, Measuring
from calib_study.records import Record, to_frame
from calib_study.statistics import Interval
from calib_study.verdicts import Judgement, text_of

UNIT = "nats per token"
WEB, ENCYCLOPAEDIA, SOLVER = "c4", "wikipedia", "sparsegpt"  # what W6 compares


# --- chapter 1 ----------------------------------------------------------------------------------------------


def judge_sources(cfg: DataSources, records: Sequence[Record]) -> list[Judgement]:
    """Return what chapter 1's records say of J3, by its three rules, and of W6 if the crossed grid holds it.

    W6: damage with Wikipedia minus damage with web text by SparseGPT, over held-out texts that are neither (all of
    them if there are no others); decided by `amount_tables.beyond`.

    Args:
        records: of both grids, in any order.
    """
    by_run = {record.run_id: record for record in records}
    found = _of_sources(cfg, [by_run[spec.run_id] for spec in cfg.specs()])
    crossing = cfg.crossed()
    return found + _of_crossing(crossing, [by_run[spec.run_id] for spec in crossing.specs()])


def _of_sources(cfg: DataSources, records: Sequence[Record]) -> list[Judgement]:
    """Return rules 1 and 2 of chapter 1: do sources differ, and as much as the first and the last method do?"""
    texts = _texts(cfg.sources)
    damage = frames.damage_table(to_frame(records))
    values = frames.cells(damage, texts, cfg.methods, range(cfg.n_seeds), "damage")
    null = statistics.same_source_null(values[:, -1], seed=0)
    means = values[:, -1].mean(axis=1)
    by_source = values[int(means.argmax()), -1] - values[int(means.argmin()), -1]
    by_method = values[:, 0].mean(axis=0) - values[:, -1].mean(axis=0)
    difference = statistics.paired_difference(by_source, by_method)
    first = (
        f"best minus worst of {len(texts)} texts {null.observed:.3f} {UNIT}; if they were one it would stay below "
        f"{null.null_q95:.3f} in 95 of 100 cases; p = {null.p_value:.2g}"
    )
    second = (
        f"worst minus best text with {cfg.methods[-1]}, less {cfg.methods[0]} minus {cfg.methods[-1]}: "
        f"{text_of(difference)} {UNIT}"
    )
    return [
        Judgement("J3", first, verdicts.sources_differ(null), "fig-same-source-null"),
        Judgement("J3", second, verdicts.at_least(difference), "fig-variance-shares"),
    ]


def _of_crossing(crossing: Scored, records: Sequence[Record]) -> list[Judgement]:
    """Return rule 3 of chapter 1, among methods that read text, and W6 if the texts and the method are there."""
    table = measures.measure_table(to_frame(records), measures.answers_of(measures.results_by_run(records)))
    layout = _layout(crossing)
    spread = crossed.spread_table(table, layout, ["damage"]).iloc[0]
    difference = Interval(spread["mean"], spread["low"], spread["high"], crossing.n_seeds)
    said = (
        f"among {', '.join(layout[1])}: s.d. of texts {spread['by_text']:.3f} less that of methods "
        f"{spread['by_method']:.3f}: {text_of(difference)} {UNIT}"
    )
    found = [Judgement("J3", said, spread["verdict"], "fig-losses-by-text")]
    if {WEB, ENCYCLOPAEDIA} <= set(layout[0]) and SOLVER in layout[1]:
        found.append(_web_or_encyclopaedia(table, layout, crossing.eval_sources))
    return found


def _web_or_encyclopaedia(table: pd.DataFrame, layout: Layout, held_out: Sequence[str]) -> Judgement:
    others = [name for name in held_out if name not in (WEB, ENCYCLOPAEDIA)] or list(held_out)
    damage = table[[measures.DAMAGE_ON + name for name in others]].mean(axis=1)
    values = frames.cells(table.assign(elsewhere=damage), [ENCYCLOPAEDIA, WEB], [SOLVER], layout[2], "elsewhere")
    found = statistics.paired_difference(values[0, 0], values[1, 0])
    said = (
        f"damage by SparseGPT on held-out {', '.join(others)}: with {ENCYCLOPAEDIA} minus with {WEB} {text_of(found)} "
        f"{UNIT}"
    )
    return Judgement("W6", said, beyond(found), "fig-losses-by-text")


# --- chapter 11 ---------------------------------------------------------------------------------------------


def judge_measuring(cfg: Measuring, records: Sequence[Record]) -> list[Judgement]:
    """Return what chapter 11's records say of J13, K2, K1 and W5, by its four rules."""
    answers = measures.answers_of(measures.results_by_run(records))
    every = measures.measure_table(to_frame(records), answers)
    table = every[every["sparsity"].isin([0, cfg.sparsity])]
    layout = _layout(cfg)
    return [
        _at_home(table, layout, cfg.eval_sources),
        _revealed(table, layout),
        _kept(cfg, every, answers),
        _steady(table, layout, records, answers),
    ]


def _at_home(table: pd.DataFrame, layout: Layout, held_out: Sequence[str]) -> Judgement:
    home = measuring_tables.home_table(table, layout, ["accuracy_loss"])
    text = ENCYCLOPAEDIA if ENCYCLOPAEDIA in held_out else held_out[0]
    row = home[home["text"] == text].iloc[0]
    said = f"rank correlation over texts of damage on {text} with accuracy lost {_signed(row, '')}"
    return Judgement("J13", said, row["verdict"], "fig-home")


def _revealed(table: pd.DataFrame, layout: Layout) -> Judgement:
    row = measuring_tables.reveal_table(table, layout, ["jensen_shannon"], "accuracy_loss").iloc[0]
    said = f"rank correlation of divergence with accuracy lost, given damage {_signed(row, 'beyond')}"
    return Judgement("K2", said, row["verdict"], "fig-reveal")


def _kept(cfg: Measuring, every: pd.DataFrame, answers: measures.Answers) -> Judgement:
    method, text = cfg.methods[1], cfg.sources[0]
    chosen = every["method"].eq("dense") | (every["method"].eq(method) & every["source"].isin([None, text]))
    keep = measuring_tables.keep_table(every[chosen], answers, seed=0)
    row = keep[keep["sparsity"] == cfg.sparsity].iloc[0]
    said = (
        f"{method} with {text} at {100 * cfg.sparsity:g} %: perplexity {100 * row['rise']:+.0f} % "
        f"[{100 * row['rise_low']:+.0f}, {100 * row['rise_high']:+.0f}], accuracy lost {100 * row['loss']:.1f} points "
        f"[{100 * row['loss_low']:.1f}, {100 * row['loss_high']:.1f}]"
    )
    return Judgement("K1", said, row["verdict"], "fig-keeps")


def _steady(table: pd.DataFrame, layout: Layout, records: Sequence[Record], answers: measures.Answers) -> Judgement:
    parts = crossed.crossed_components(table, layout, records, answers)
    noise = measuring_tables.noise_table(table, layout, parts, ["damage", "accuracy_loss"])
    said = describe_steadiness(noise) + ", in per cent of the mean loss"
    return Judgement("W5", said, measuring_tables.steadier(noise), "fig-noise")


def _signed(row: "pd.Series[float]", name: str) -> str:
    """Return an estimate and its limits as "−0.10 [−0.30, +0.10]"; they are in `mean`, or in `name` and its limits."""
    mean, low, high = (row[name or "mean"], *(row[f"{name}_{end}" if name else end] for end in ("low", "high")))
    return f"{mean:+.2f}" if pd.isna(low) or pd.isna(high) else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _texts(sources: Sequence[str]) -> list[str]:
    return [name for name in sources if name != frames.FLOOR_SOURCE]


def _layout(cfg: Scored) -> Layout:
    return _texts(cfg.sources), [name for name in cfg.methods if reads_text(name)], range(cfg.n_seeds)
