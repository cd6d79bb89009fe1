"""What own text is made of: facts of made-up manifests, excerpts, the overlap of draws, the speed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from calib_study.errors import InputError
from calib_study.manifests import Manifest, Synthesis, TextFacts
from calib_study.own_text_facts import SPEED_COLUMNS, beginning, excerpts, overlap_factor, speed_table, text_facts

PERPLEXITIES = [8.0, 2.0, 20.0, 5.0, 10.0]
REPEATED = [0.0, 0.75, 0.0, 0.25, 0.5]


def manifest(texts: list[dict[str, Any]] | None = None, **counts: int) -> Manifest:
    """Return a manifest of five texts of 7 tokens, one of which ended a document twice."""
    if texts is None:
        texts = [
            {"index": i, "n_scored": 7, "n_tokens": 7, "perplexity": p, "repeated": r, "ends": 2 * (i == 3)}
            for i, (p, r) in enumerate(zip(PERPLEXITIES, REPEATED, strict=True))
        ]
    return Manifest(
        request=Synthesis(model="m", prefix_len=0, n_texts=len(texts), new_tokens=7),
        documents_sha256="0" * 64,
        counts=counts or {"asked": 6, "kept": 5},
        texts=tuple(TextFacts(**text) for text in texts),
        environment={},
        finished="2026-01-01",
    )


def test_facts_by_hand() -> None:
    (row,) = text_facts({"own": manifest()}, wanted=16).to_dict("records")
    # 5 texts of 7 tokens and a token after each: 40 in the pool, of which a draw takes 16
    expected = {"texts": 5, "unusable": 1, "tokens": 40, "drawn": 0.4, "perplexity": 8.0, "repeated": 0.3, "ends": 2}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["loops"] == 0.2  # 0.75 alone is above a half


def test_what_a_manifest_does_not_say_is_missing() -> None:
    bare = manifest([{"index": i, "n_scored": 0} for i in range(3)], before=4, kept=3)
    (row,) = text_facts({"left": bare}, wanted=16).to_dict("records")
    assert (row["texts"], row["unusable"]) == (3, 0)
    assert all(np.isnan(row[name]) for name in ("tokens", "drawn", "perplexity", "repeated", "loops", "ends"))


def test_excerpts_are_the_median_the_extreme_and_the_loop() -> None:
    table = excerpts(manifest(), ["eight", "two " * 100, "twenty", "five", "ten"], 11).set_index("which")
    assert table["text"].to_dict() == {
        "median perplexity": "eight",
        "highest perplexity": "twenty",
        "most repetition": "two two two…",
    }
    assert table.loc["most repetition", ["perplexity", "repeated"]].tolist() == [2.0, 0.75]
    facts = [{"index": i, "n_scored": 7, "perplexity": p, "repeated": 0.0} for i, p in enumerate(PERPLEXITIES)]
    assert excerpts(manifest(facts), ["x"] * 5)["which"].tolist() == ["median perplexity", "highest perplexity"]
    with pytest.raises(InputError, match="4 documents for 5 texts"):
        excerpts(manifest(), ["x"] * 4)


def test_a_beginning_is_on_one_line() -> None:
    assert beginning("a\n\n b\tc", 5) == "a b c"
    assert beginning("a\n\n b\tcd", 5) == "a b c…"


def test_overlap_by_hand_and_in_simulation() -> None:
    # a third of the pool, three draws: 1 + 3 * (1/3) / (2/3) = 2.5
    assert_allclose(overlap_factor(1 / 3, 3), 2.5)
    rng = np.random.default_rng(0)
    means = np.array(
        [[rng.choice(pool, 20, replace=False).mean() for _ in range(3)] for pool in rng.normal(size=(4000, 60))]
    )
    seeming, true = means.var(axis=1, ddof=1).mean() / 3, means.mean(axis=1).var()
    assert_allclose(true / seeming, 2.5, rtol=0.08)  # 4,000 pools: standard error 3 %
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"share in \[0, 1\)"):
            overlap_factor(share, 3)


def test_speed_is_read_from_the_benchmarks_file(tmp_path: Path) -> None:
    file = tmp_path / "synthesis.json"
    assert len(speed_table(file)) == 0 and list(speed_table(file).columns) == list(SPEED_COLUMNS)
    row = {"work": "generate, default product", "tokens": 100, "tokens_per_s": 30.0, "speedup": 1.0, "other": 1}
    file.write_text(json.dumps({"settings": {"target": 3.0}, "environment": {}, "rows": [row]}))
    table = speed_table(file)
    assert table.attrs == {"target": 3.0}
    assert table[["work", "tokens", "tokens_per_s", "speedup"]].to_numpy().tolist() == [[*row.values()][:4]]
    assert table["floor_s"].isna().all()
    file.write_text("[]")
    with pytest.raises(InputError, match=r"is no result of benchmarks/synthesis\.py --json"):
        speed_table(file)
