"""Own text beside real text: contrasts by hand and by simulation, rules at their edges, tables of made-up runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from calib_study import own_text_tables, study
from calib_study.errors import InputError
from calib_study.own_text_facts import overlap_factor
from calib_study.own_text_tables import contrast_interval, gains, no_worse
from calib_study.parameters import validate
from calib_study.schedule_tables import stratified_interval
from calib_study.statistics import Interval

# Damage of each text; a draw adds -0.01, 0 or 0.01.
LEVELS = {"c4": 0.5, "code": 0.7, "math": 0.9, "own-c4": 0.6, "own-code": 0.8}
BY_LENGTH = {0: 0.65, 2: 0.6, 16: 0.595, 64: 0.45}  # that after 2 tokens is own-c4
ADDED = {("c4", 16): 0.49, ("c4 and own", 16): 0.47}  # with twice as many windows
DRAWS = np.array([-0.01, 0.0, 0.01])


@dataclass
class Chapter:
    """Parameters of the chapter in miniature."""

    sources: list[str] = field(default_factory=lambda: ["c4", "code", "random", "math"])
    methods: list[str] = field(default_factory=lambda: ["wanda", "dsnot"])
    n_samples: int = 8
    seq_len: int = 64
    n_seeds: int = 3
    prefix_len: int = 2
    prefixes: tuple[str, ...] = ("c4", "code")
    added: tuple[str, ...] = ("c4",)

    def own(self) -> dict[str, str]:
        return {name: f"own-{name}" for name in self.prefixes}

    def by_length(self) -> dict[int, str]:
        return {length: "own-c4" if length == self.prefix_len else f"own-c4-{length}" for length in BY_LENGTH}

    def mixed(self) -> dict[str, str]:
        return {name: f"{name} and own" for name in self.added}


def runs(shift: float = 0.0, **changes: float) -> pd.DataFrame:
    """Return the damage of every run; own text is moved by `shift` with the second method, others as `changes` say."""
    rows: list[tuple[str, str, int, int, float]] = []
    for seed, draw in enumerate(DRAWS):
        for method in ("wanda", "dsnot"):
            for name, level in LEVELS.items():
                moved = shift if method == "dsnot" and name.startswith("own") else changes.get(name, 0.0)
                rows.append((method, name, 8, seed, level + moved + draw))
        rows.append(("wanda", "random", 8, seed, 3.0 + draw))
        for length, level in BY_LENGTH.items():
            if length != 2:
                rows.append(("wanda", f"own-c4-{length}", 8, seed, level + draw))
        rows += [("wanda", name, n, seed, level + draw) for (name, n), level in ADDED.items()]
    return pd.DataFrame(rows, columns=["method", "source", "n_samples", "seed", "damage"])


# --- rules --------------------------------------------------------------------------------------------------


def test_a_contrast_by_hand() -> None:
    # means 1, 5, 1; variances 2, 2, 0, on average 4/3; df = 3; t(0.975, 3) = 3.182446
    values = [[0.0, 2.0], [4.0, 6.0], [1.0, 1.0]]
    found = contrast_interval(values, [-1, 1, 0])
    assert found.high is not None
    # the variance of each mean is 4/3 / 2, of their difference 4/3
    assert_allclose([found.mean, found.high - found.mean, found.n], [4, 3.182446 * np.sqrt(4 / 3), 6], rtol=1e-6)
    wider = contrast_interval(values, [-1, 1, 0], inflation=[1, 3, 1])  # 4/3 / 2 and 3 times that
    assert wider.high is not None
    assert_allclose(wider.high - wider.mean, 3.182446 * np.sqrt(8 / 3), rtol=1e-6)


def test_a_contrast_of_two_groups_is_students_and_of_equal_weights_is_stratified() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5))
    limits = stats.ttest_ind(*x).confidence_interval(0.9)
    found = contrast_interval(x, [1, -1], 0.9)
    assert_allclose([found.low, found.high], [limits.low, limits.high])
    both = contrast_interval(x, [0.5, 0.5]), stratified_interval(x)
    assert_allclose([both[0].low, both[0].high], [both[1].low, both[1].high])


@pytest.mark.parametrize(("own_spread", "least", "most"), [(1.0, 0.935, 0.965), (0.8, 0.95, 0.98)])
def test_a_contrast_covers_what_it_promises(own_spread: float, least: float, most: float) -> None:
    """Two own texts minus four real ones, 2,000 experiments (standard error 0.5 %).

    Own draws that vary less by a fifth, as those from a small pool, make it cautious: variance 0.57 counts as 0.66.
    """
    rng = np.random.default_rng(1)
    weights, spread = np.array([0.5, 0.5, *[-0.25] * 4]), np.array([[own_spread]] * 2 + [[1.0]] * 4)
    levels = rng.normal(size=(6, 1))
    covered = 0
    for _ in range(2000):
        found = contrast_interval(levels + spread * rng.normal(size=(6, 3)), weights)
        assert found.low is not None and found.high is not None
        covered += bool(found.low < weights @ levels[:, 0] < found.high)
    assert least < covered / 2000 < most


def test_draws_from_one_pool_need_wider_intervals() -> None:
    """A pool of 90 values, three draws of 30: how often the interval holds the mean that all pools have, 0."""
    rng = np.random.default_rng(2)
    covered = np.zeros(2)
    for _ in range(2000):
        pool = rng.normal(size=90)
        means = np.array([[rng.choice(pool, 30, replace=False).mean() for _ in range(3)]])
        for place, factor in enumerate((1.0, overlap_factor(30 / 90, 3))):
            found = contrast_interval(means, [1.0], inflation=factor)
            assert found.low is not None and found.high is not None
            covered[place] += found.low < 0 < found.high
    assert 0.8 < covered[0] / 2000 < 0.9
    assert 0.935 < covered[1] / 2000 < 0.965


@pytest.mark.parametrize(
    ("values", "weights"),
    [([[1.0, 2.0]], [1, 1]), ([[1.0], [2.0]], [1, -1]), ([1.0, 2.0], [1]), ([[1.0, np.nan]], [1])],
)
def test_contrasts_need_groups_of_draws(values: Any, weights: Any) -> None:
    with pytest.raises(InputError, match="contrast_interval"):
        contrast_interval(values, weights)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.05, -0.02, "supported"),
        (-0.05, 0.0099, "supported"),
        (0.001, 0.0099, "supported"),  # worse, but not by an amount that matters
        (-0.05, 0.01, "inconclusive"),
        (0.01, 0.03, "inconclusive"),
        (0.011, 0.03, "not supported"),
        (None, None, "inconclusive"),
    ],
)
def test_no_worse_at_its_edges(low: float | None, high: float | None, verdict: str) -> None:
    assert no_worse(Interval(0.0, low, high, 3)) == verdict


@pytest.mark.parametrize(
    ("wide", "narrow", "verdict"),
    [
        ((-0.05, -0.011), (-0.04, -0.012), "supported"),
        ((-0.05, -0.01), (-0.04, -0.015), "inconclusive"),
        ((-0.011, 0.02), (-0.0099, 0.019), "not supported"),  # the 90 % interval decides
        ((-0.008, -0.002), (-0.007, -0.003), "not supported"),  # a gain, but too small
        ((0.02, 0.05), (0.03, 0.04), "not supported"),
        ((-0.03, 0.03), (-0.02, 0.02), "inconclusive"),
        ((None, None), (None, None), "inconclusive"),
    ],
)
def test_gains_at_their_edges(wide: Any, narrow: Any, verdict: str) -> None:
    assert gains(Interval(0.0, *wide, 3), Interval(0.0, *narrow, 3)) == verdict


# --- tables -------------------------------------------------------------------------------------------------


def test_names() -> None:
    cfg = Chapter()
    assert own_text_tables.real_texts(cfg) == ["c4", "code", "math"]
    assert own_text_tables.labels(cfg) == {
        "own-c4-0": "own after nothing",
        "own-c4-16": "own after c4 (16 tokens)",
        "own-c4-64": "own after c4 (64 tokens)",
        "own-c4": "own after c4",
        "own-code": "own after code",
        "c4 and own": "c4 + own",
    }


def test_comparison_by_hand() -> None:
    table = own_text_tables.comparison_table(runs(shift=0.1), Chapter()).set_index(["method", "against"])
    # own 0.6 and 0.8; real 0.5, 0.7, 0.9, of which the best is 0.5 and the prefix sources are 0.5 and 0.7
    assert_allclose(table.loc["wanda", "mean"], [0.0, 0.2, 0.1], atol=1e-12)
    assert_allclose(table.loc["dsnot", "mean"], [0.1, 0.3, 0.2])
    # s = 0.01, df = 5 * 2; squared weights 2 / 4 and 3 / 9; 3 draws
    row = table.loc[("wanda", "mean of real texts")]
    assert_allclose(row["high"], stats.t.ppf(0.975, 10) * 0.01 * np.sqrt((2 / 4 + 3 / 9) / 3))
    assert_allclose(row["low90"], -stats.t.ppf(0.95, 10) * 0.01 * np.sqrt((2 / 4 + 3 / 9) / 3))
    # of a fifth of the pool: 1 + 3 * 0.25 = 1.75 for own text alone
    wider = own_text_tables.comparison_table(runs(), Chapter(), overlap=0.2).iloc[0]
    assert_allclose(wider["high"], stats.t.ppf(0.975, 10) * 0.01 * np.sqrt((1.75 * 2 / 4 + 3 / 9) / 3))


def test_ranks_and_gaps_are_of_the_texts() -> None:
    gaps = own_text_tables.gap_table(runs(), Chapter())
    of_wanda = gaps[gaps["method"] == "wanda"].set_index("source")
    assert of_wanda["rank"].to_dict() == {"c4": 1, "own-c4": 2, "code": 3, "own-code": 4, "math": 5}
    assert_allclose(of_wanda["mean"], [-0.2, 0.0, 0.2, -0.1, 0.1], atol=1e-12)
    assert of_wanda["own"].tolist() == [False] * 3 + [True] * 2
    single = own_text_tables.run_gaps(runs(), Chapter())
    assert set(single["source"]) == set(LEVELS) and len(single) == 30
    assert_allclose(single.query("method == 'wanda' and source == 'own-c4'")["gap"], -0.1 + DRAWS)


def test_prefix_sources_by_hand() -> None:
    table = own_text_tables.prefix_source_table(runs(**{"own-code": -0.15}), Chapter())
    assert table[["kind", "prefix"]].to_numpy().tolist() == [
        [kind, name] for kind in ("real", "own") for name in ("c4", "code")
    ]
    assert_allclose(table["range"], [0.2, 0.2, 0.05, 0.05])
    assert table["verdict"].iloc[0] == "supported"
    assert len(own_text_tables.prefix_source_table(runs(), Chapter(prefixes=("c4",)))) == 0


def test_lengths_by_hand() -> None:
    table = own_text_tables.length_table(runs(), Chapter()).set_index("length")
    assert_allclose(table["level"], list(BY_LENGTH.values()))
    assert_allclose(table["mean"], [0.05, 0, -0.005, -0.15], atol=1e-12)
    # s = 0.01, df = 4 * 2: half of the 95 % interval 2.306 * 0.01 * sqrt(2 / 3) = 0.0188, of the 90 % one 0.0152
    assert table["alike"].tolist() == ["different", "", "inconclusive", "different"]
    assert table["better"].tolist() == ["not supported", "", "inconclusive", "supported"]


def test_added_text_by_hand() -> None:
    single = own_text_tables.added_runs(runs(), Chapter())
    means = single.groupby("set")["damage"].mean().to_dict()
    assert means == pytest.approx({"real": 0.5, "real, twice": 0.49, "real + own": 0.47})
    table = own_text_tables.added_table(single).set_index("against")
    # draws move all three alike, so pairs have no spread
    assert_allclose(table.loc["real", ["mean", "low", "high"]].astype(float), -0.03)
    assert_allclose(table.loc["real, twice", ["mean", "low90", "high90"]].astype(float), -0.02)
    assert table["verdict"].tolist() == ["supported", "supported"]
    assert len(own_text_tables.added_table(own_text_tables.added_runs(runs(), Chapter(added=())))) == 0


def test_judgements_follow_the_rules() -> None:
    found = {j.claim: j for j in own_text_tables.judgements(Chapter(), runs(shift=-0.3))}
    assert {claim: j.verdict for claim, j in found.items()} == {
        "J8": "inconclusive",  # 0.000, half of the interval 0.0117
        "J12": "inconclusive",  # supported with dsnot
        "J10": "not supported",  # after 64 tokens 0.15 less
        "S5": "supported",
    }
    assert "damage with wanda: 0.000 [-0.012, 0.012] nats per token" in found["J8"].statistic
    assert "dsnot -0.300 [-0.312, -0.288] (supported)" in found["J12"].statistic
    assert "64: -0.150 [-0.165, -0.135]" in found["J10"].statistic
    assert found["S5"].statistic.startswith("damage of real + own minus real -0.030 [-0.030, -0.030]")
    better = runs(shift=-0.1, **{"own-c4": -0.3, "own-code": -0.3})
    assert [j.verdict for j in own_text_tables.judgements(Chapter(), better)][:2] == ["supported", "supported"]
    worse = own_text_tables.judgements(Chapter(), runs(shift=0.1))
    assert worse[1].verdict == "not supported"


def test_one_method_and_nothing_added_are_judged_too() -> None:
    found = own_text_tables.judgements(Chapter(methods=["wanda"], added=()), runs())
    assert [j.claim for j in found] == ["J8", "J12", "J10"]
    assert found[1].verdict == "inconclusive" and found[1].statistic.endswith("one method cannot tell")


def test_missing_runs_are_named() -> None:
    table = runs()
    with pytest.raises(InputError, match="no run for wanda/own-code/seed 0"):
        own_text_tables.judgements(Chapter(), table[table["source"] != "own-code"])


# --- the chapter in miniature -------------------------------------------------------------------------------


@pytest.mark.tiny
def test_the_chapter_runs_and_is_judged(
    tiny_files: tuple[Path, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From parameters to verdicts with a tiny model: names of sources in the records are those of the parameters."""
    monkeypatch.setenv("CALIB_STUDY_RECORDS", str(tmp_path / "records"))
    for module in ("grids", "preflight"):  # the tasks of the parameters are not run
        monkeypatch.setattr(f"calib_study.{module}.check_tasks", lambda *asked: None)
    other = tmp_path / "other.txt"
    lines = tiny_files[1].read_text(encoding="utf-8").split("\n\n")
    other.write_text("\n\n".join(" ".join(reversed(line.split())) for line in lines), encoding="utf-8")
    cfg = validate("05_self_generation", small(tiny_files, other))
    for job in cfg.jobs():
        job.run(lambda line: None)
    specs = [spec.model_copy(update={"evaluation": without_tasks(spec.evaluation)}) for spec in cfg.specs()]
    records = study.run_grid(specs, model=cfg.model, progress=False)
    found = own_text_tables.judge(cfg, records)
    assert [j.claim for j in found] == ["J8", "J12", "J10", "S5"]
    assert all("nan" not in j.statistic for j in found)


def without_tasks(evaluation: Any) -> Any:
    """Return an evaluation as it is, but for the tasks, whose words the tiny tokenizer does not know."""
    return evaluation.model_copy(update={"tasks": None, "task_limit": None})


def small(files: tuple[Path, Path], other: Path) -> dict[str, Any]:
    sampling = {"temperature": 0.6, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2, "end_of_text": "continue"}
    return {
        "model": str(files[0]),
        "sources": [str(files[1]), str(other)],
        "methods": ["wanda", "wanda+owl"],
        "sparsity": 0.5,
        "pattern": "unstructured",
        "schedule": "dense",
        "policy": "packed",
        "n_samples": 2,
        "seq_len": 16,
        "n_texts": 8,
        "new_tokens": 16,
        "prefix_len": 2,
        **sampling,
        "text_seed": 0,
        "n_seeds": 3,
        "dtype": "float32",
        "device": "cpu",
        "eval_sources": [str(files[1])],
        "eval_seq_len": 16,
        "eval_windows": 2,
        "n_spot_checks": 0,
        "tasks": ["piqa"],
        "task_limit": 3,
        "prefix_sources": [str(files[1])],
        "prefix_lens": [0, 4],
        "added_sources": [str(files[1])],
    }
