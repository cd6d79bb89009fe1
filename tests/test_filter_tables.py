"""Perplexity filters: effects by hand, which source is which filter, what is removed; the chapter in miniature."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from test_own_text_facts import PERPLEXITIES, manifest
from test_own_text_tables import small

from calib_study import filter_tables, generated, study
from calib_study.errors import InputError
from calib_study.filter_tables import effect_table, filter_runs, judgements
from calib_study.manifests import Filter, Manifest
from calib_study.parameters import validate

# Damage after each end and drop; a draw adds -0.01, 0 or 0.01, after random drops its double.
LEVELS = {
    ("whole", 0.0): 0.5,
    ("top", 20.0): 0.44,
    ("top", 40.0): 0.43,
    ("random", 20.0): 0.5,
    ("random", 40.0): 0.52,
    ("bottom", 20.0): 0.51,
    ("bottom", 40.0): 0.6,
}
DRAWS = np.array([-0.01, 0.0, 0.01])


def name_of(text: str, end: str, drop: float, seed: int | None) -> str:
    return f"own-{text}" if end == "whole" else f"own-{text}-{end}-{drop:g}" + (f"-{seed}" if end == "random" else "")


@dataclass
class Chapter:
    """Parameters of the chapter in miniature."""

    sources: list[str] = field(default_factory=lambda: ["c4"])
    methods: list[str] = field(default_factory=lambda: ["wanda"])
    drops: list[float] = field(default_factory=lambda: [40.0, 20.0])
    n_seeds: int = 3
    ends: tuple[str, ...] = ("top", "bottom", "random")

    def jobs(self) -> list[Any]:
        return [SimpleNamespace(source=name_of(text, "whole", 0, None)) for text in self.sources]

    def filters(self) -> list[tuple[str, str, float, int | None, Any]]:
        return [
            (text, end, drop, seed, SimpleNamespace(source=name_of(text, end, drop, seed)))
            for text in self.sources
            for end in self.ends
            for drop in self.drops
            for seed in (range(self.n_seeds) if end == "random" else [None])
        ]


def damage(cfg: Chapter, shift: float = 0.0) -> pd.DataFrame:
    """Return the damage of every run; `shift` is added to the filters of the second text and the second method."""
    rows = [
        (
            method,
            name_of(text, end, drop, seed),
            seed,
            level + (shift * (bool(t) + bool(m)) if end == "top" else 0) + DRAWS[seed] * (1 + (end == "random")),
        )
        for m, method in enumerate(cfg.methods)
        for t, text in enumerate(cfg.sources)
        for (end, drop), level in LEVELS.items()
        if end in ("whole", *cfg.ends)
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns=["method", "source", "seed", "damage"])


# --- runs ---------------------------------------------------------------------------------------------------


def test_each_run_gets_its_filter() -> None:
    cfg = Chapter(sources=["c4", "code"])
    runs = filter_runs(damage(cfg), cfg)
    assert len(runs) == 2 * len(LEVELS) * 3
    means = runs[runs["text"] == "code"].groupby(["end", "drop"])["damage"].mean()
    assert means.to_dict() == pytest.approx(LEVELS)
    # other runs in the table, such as the dense model's, are left out
    extra = pd.DataFrame([("wanda", "c4", 0, 9.9)], columns=["method", "source", "seed", "damage"])
    assert len(filter_runs(pd.concat([damage(cfg), extra]), cfg)) == len(runs)


@pytest.mark.parametrize("lost", ["own-c4-random-20-1", "own-c4-top-20", "own-c4"])
def test_a_missing_run_is_refused(lost: str) -> None:
    cfg = Chapter()
    table = damage(cfg)
    with pytest.raises(InputError, match="6 of 7 texts, methods and filters have a run of each of 3 seeds"):
        filter_runs(table[table["source"] != lost], cfg)


def test_effects_by_hand() -> None:
    cfg = Chapter()
    table = effect_table(filter_runs(damage(cfg), cfg)).set_index(["end", "drop"])
    assert table.index.tolist() == [("top", 20), ("top", 40), ("bottom", 20), ("bottom", 40)]
    assert_allclose(table["mean"], [-0.06, -0.09, 0.01, 0.08])
    assert_allclose(table["from_whole"], [-0.06, -0.07, 0.01, 0.1])
    # pairs differ by the draw once: s = 0.01, pooled over two drops, df = 4, three draws
    half = stats.t.ppf([0.975, 0.95], 4) * 0.01 / np.sqrt(3)  # 0.0160, 0.0123
    assert_allclose(table["high"] - table["mean"], half[0])
    assert_allclose(table["mean"] - table["low90"], half[1])
    # [-0.076, -0.044]; [-0.106, -0.074]; 90 %: from -0.002 and from 0.068
    assert table["verdict"].tolist() == ["supported", "supported", "not supported", "not supported"]


def test_effects_are_means_over_texts_for_each_method() -> None:
    cfg = Chapter(sources=["c4", "code"], methods=["wanda", "dsnot"])
    table = effect_table(filter_runs(damage(cfg, shift=0.04), cfg))
    top = table[(table["end"] == "top") & (table["drop"] == 20)].set_index("method")["mean"]
    # wanda: -0.06 and -0.02; dsnot: -0.02 and 0.02
    assert top.to_dict() == pytest.approx({"wanda": -0.04, "dsnot": 0.0})


def test_the_verdict_is_on_the_drop_nearest_to_the_papers() -> None:
    (found,) = judgements(Chapter(), damage(Chapter()))
    assert (found.claim, found.verdict, found.figure) == ("J9", "supported", "fig-filter-damage")
    assert "after dropping the 20 % of highest perplexity" in found.statistic
    assert found.statistic.endswith("-0.060 [-0.076, -0.044] nats per token")
    cfg = Chapter(drops=[40.0])
    assert "after dropping the 40 %" in judgements(cfg, damage(cfg))[0].statistic
    without = Chapter(ends=("bottom", "random"))
    assert judgements(without, damage(without))[0].verdict == "inconclusive"


# --- texts --------------------------------------------------------------------------------------------------

DOCUMENTS = ["eight", "two", "twenty", "five", "ten"]


def filtered(indices: list[int], threshold: float | None, scores: dict[int, float] | None = None) -> Manifest:
    """Return the manifest of a filter of `manifest()`; scores: by another model."""
    parent = manifest()
    texts = [parent.texts[i].model_copy(update={"perplexity": scores[i]} if scores else {}) for i in indices]
    request = Filter(parent="selfgen:p", parent_hash="h", drop="top:20", scorer="other" if scores else None)
    changes = {"request": request, "texts": tuple(texts), "threshold": threshold}
    return parent.model_copy(update=changes)


def test_what_is_removed_by_hand() -> None:
    filters = {("top", 40.0): [filtered([0, 1, 3], 9.0)], ("random", 40.0): [filtered([0, 2, 4], None)] * 2}
    texts = filter_tables.scored_texts(manifest(), DOCUMENTS, filters)
    assert texts["perplexity"].tolist() == PERPLEXITIES
    made = filter_tables.composition_table(texts, filters).set_index("end")
    # removed by top: 20 and 10; left: 8, 2, 5. Removed at random: 2 and 5; left: 8, 20, 10.
    assert made.loc["top"].tolist() == pytest.approx([40, 2, 9, 15, 5, 0.25, 1 / 3])
    assert made.loc["random", ["perplexity_removed", "perplexity_kept", "repeated_removed"]].tolist() == [3.5, 10, 0.5]
    assert np.isnan(made.loc["random", "cut"])
    shown = filter_tables.removed_table(texts, filters, 3)
    assert shown[["end", "which", "text"]].to_numpy().tolist() == [
        ["top", "highest", "twe…"],
        ["top", "lowest", "ten"],
        ["random", "highest", "fiv…"],
        ["random", "lowest", "two"],
    ]
    with pytest.raises(InputError, match="1 documents for 5 texts"):
        filter_tables.scored_texts(manifest(), ["x"], filters)


def test_another_models_perplexities_are_those_of_the_filters() -> None:
    scores = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}
    filters = {("top", 40.0): [filtered([0, 1], 3.0, scores)], ("random", 40.0): [filtered([0, 3], None, scores)]}
    texts = filter_tables.scored_texts(manifest(), DOCUMENTS, filters)
    assert texts["perplexity"].fillna(-1).tolist() == [1, 2, -1, 4, -1]  # those that no filter keeps are not known
    shown = filter_tables.removed_table(texts, filters)
    assert shown[shown["end"] == "top"]["text"].tolist() == ["five", "five"]


# --- the chapter in miniature -------------------------------------------------------------------------------


@pytest.mark.tiny
def test_the_chapter_runs_and_is_judged(
    tiny_files: tuple[Path, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From parameters to the verdict with a tiny model: names in the records are those of the parameters."""
    monkeypatch.setenv("CALIB_STUDY_RECORDS", str(tmp_path / "records"))
    left_out = ("tasks", "task_limit", "prefix_sources", "prefix_lens", "added_sources")
    given = {name: value for name, value in small(tiny_files, tiny_files[1]).items() if name not in left_out}
    given |= {"sources": [str(tiny_files[1])], "drops": [25, 50], "ends": ["top", "bottom", "random"], "scorer": ""}
    cfg = validate("06_filtering", given)
    for job in cfg.jobs():
        job.run(lambda line: None)
    manifests = {job.source: job.run(lambda line: None) for *_, job in cfg.filters()}
    records = study.run_grid(cfg.specs(), model=cfg.model, progress=False)
    (found,) = filter_tables.judge(cfg, records)
    assert found.claim == "J9" and "the 25 % of highest perplexity" in found.statistic and "nan" not in found.statistic
    # the filters keep what their names say, of the texts as they stand in the source
    filters = filter_tables.manifests_by_filter(cfg, manifests)[str(tiny_files[1])]
    folder = generated.generated_folder(cfg.jobs()[0].source)
    assert folder is not None
    texts = filter_tables.scored_texts(*generated.read_generated(folder), filters)
    made = filter_tables.composition_table(texts, filters).set_index(["end", "drop"])
    assert made["removed"].tolist() == [2, 4] * 3
    assert (made.loc["top", "perplexity_removed"] > made.loc["top", "cut"]).all()
    assert (made.loc["bottom", "perplexity_removed"] < made.loc["bottom", "cut"]).all()
    shown = filter_tables.removed_table(texts, filters)
    assert shown["perplexity"].max() == texts["perplexity"].max()
