"""What the paper's scale would cost: sizes of models, tokens of runs and hours, each worked by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from calib_study import paper_costs
from calib_study.errors import InputError
from calib_study.paper_costs import (
    ALL,
    GPU_TBYTES,
    GPU_TFLOPS,
    MODELS,
    Shape,
    calibration_tokens,
    describe_assumptions,
    describe_hours,
    hours_table,
    measured_forwards,
    method_of,
    plan_table,
    pruning_tokens,
    runs_by_method,
    task_lengths,
    tokens_by_chapter,
)
from calib_study.specs import Evaluation, Owl, RunSpec, make_spec

FORWARDS = {("wanda", "block"): 2.0, ("sparsegpt", "dense"): 5.0, ("owl", ""): 1.0}
TASKS = {name: (100, 30.0) for name in ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge")}
ITEMS = TASKS | {"mmlu": (1000, 800.0)}


def run(method: str, **change: Any) -> RunSpec:
    asked: dict[str, Any] = {"model": "m", "sparsity": 0.5, "source": "c4", "n_samples": 7, "seq_len": 11}
    return make_spec(method=method, **asked | change)


# --- models -------------------------------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    """3 layers, width 5, feed-forward 7, keys and values 2: 2 * 25 + 2 * 10 + 3 * 35 = 175 each; head 5 * 11."""
    shape = Shape(3, 5, 7, 2, 11)
    assert (shape.block_weights, shape.head_weights, shape.parameters) == (525, 55, 635)


@pytest.mark.parametrize(
    ("name", "billions"), [("DCLM-7B", 6.89), ("Llama-3-8B", 8.03), ("Llama-2-7B", 6.74), ("Qwen2.5-7B", 7.62)]
)
def test_models_have_the_number_of_parameters_that_is_published(name: str, billions: float) -> None:
    assert MODELS[name].parameters / 1e9 == pytest.approx(billions, abs=0.005)


# --- tokens -------------------------------------------------------------------------------------------------


def test_tokens_of_a_run() -> None:
    assert calibration_tokens(run("wanda")) == 77
    assert calibration_tokens(run("magnitude")) == calibration_tokens(run("dense")) == 0


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        (run("wanda"), 2 * 77),
        (run("wanda_variant"), 2 * 77),
        (run("wanda", allocation=Owl()), 3 * 77),
        (run("magnitude"), 0),
        (run("magnitude", allocation=Owl()), 77),
        (run("sparsegpt", schedule="dense"), 5 * 77),
        (run("dense", sparsity=0), 0),
    ],
    ids=lambda value: value.title if isinstance(value, RunSpec) else "",
)
def test_pruning_costs_forwards(spec: RunSpec, tokens: float) -> None:
    assert pruning_tokens(spec, FORWARDS) == tokens


def test_a_cost_that_was_not_measured_is_named() -> None:
    with pytest.raises(InputError, match="the cost of dsnot under schedule 'block' was not measured"):
        pruning_tokens(run("dsnot"), FORWARDS)


def test_measured_costs_are_read_by_method_and_schedule(tmp_path: Path) -> None:
    rows = [
        {"work": "one forward, onednn", "dtype": "float32", "forwards": 1.0},
        {"work": "wanda, textbook", "dtype": "float32", "forwards": 4.9},
        {"work": "wanda, block", "dtype": "float32", "forwards": 1.9},
        {"work": "wanda, dense", "dtype": "bfloat16", "forwards": 1.3},
        {"work": "wanda, dense", "dtype": "float32", "forwards": 1.1},
        {"work": "owl, its extra pass", "dtype": "float32", "forwards": 1.03},
    ]
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({"settings": {}, "environment": {}, "rows": rows}))
    assert measured_forwards(file) == {("wanda", "block"): 1.9, ("wanda", "dense"): 1.1, ("owl", ""): 1.03}
    with pytest.raises(InputError, match="no measured cost of pruning"):
        measured_forwards(tmp_path / "none.json")


def test_the_kept_measurement_has_every_method_of_the_papers_scale() -> None:
    found = measured_forwards()
    named = {("wanda", "block"), ("sparsegpt", "block"), ("dsnot", "block"), ("owl", "")}
    assert named <= set(found) and min(found.values()) > 0.5


@pytest.mark.real
def test_lengths_of_tasks_are_of_their_items() -> None:
    """MMLU has five examples before each question, so its items are the longest by far."""
    found = task_lengths(["winogrande", "mmlu"])
    assert [n for n, _ in found.values()] == [1267, 14042]
    assert 20 < found["winogrande"][1] < 100 < 400 < found["mmlu"][1] < 2000


# --- tables -------------------------------------------------------------------------------------------------


def chapters(monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Return the plan of two chapters that share a run, of which one has tasks and writes text."""
    asked = Evaluation(sources=("c4", "code"), seq_len=13, n_windows=3, tasks=("piqa", "mmlu"), task_limit=400)
    plain = Evaluation(sources=("c4",), seq_len=13, n_windows=3)
    shared = run("wanda", evaluation=plain)
    runs = {
        "one": (run("dense", sparsity=0, evaluation=plain), shared),
        "two": (shared, run("wanda", evaluation=asked, seed=1), run("wanda", evaluation=asked, allocation=Owl())),
    }
    texts = {"one": {("text",): 100}, "two": {("text",): 100, ("other",): 60}}
    monkeypatch.setattr(paper_costs, "chapters_planned", lambda _: list(runs))
    monkeypatch.setattr(paper_costs, "planned", lambda slug, _: runs[slug])
    monkeypatch.setattr(paper_costs, "written", lambda slug, _: texts[slug])
    monkeypatch.setattr(paper_costs, "measured_forwards", lambda: FORWARDS)
    return plan_table("any", ITEMS)


def test_a_plan_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out tokens: 3 * 13 a text. Tasks: all 100 items of piqa, 30 tokens each, and 400 of mmlu, 800 each."""
    plan = chapters(monkeypatch).set_index(["chapter", "method"])
    columns = ["runs", "calibration", "forwards", "scored", "answered"]
    tasks = 100 * 30 + 400 * 800
    expected = {
        ("one", "dense"): [1, 0, 0, 39, 0],
        ("one", "wanda"): [1, 77, 154, 39, 0],
        ("two", "wanda"): [2, 154, 308, 39 + 78, tasks],
        ("two", "wanda+owl"): [1, 77, 231, 78, tasks],
        (ALL, "dense"): [1, 0, 0, 39, 0],
        (ALL, "wanda"): [2, 154, 308, 39 + 78, tasks],
        (ALL, "wanda+owl"): [1, 77, 231, 78, tasks],
    }
    assert list(plan.index) == list(expected)
    assert_allclose(plan[columns].to_numpy(float), np.array(list(expected.values()), float))


def test_the_counts_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = chapters(monkeypatch)
    table = runs_by_method(plan)
    assert table.loc["two"].to_dict() == {"dense": 0, "wanda": 2, "wanda+owl": 1, "all": 3}
    assert table.index.tolist() == ["one", "two", ALL] and table.loc[ALL, "all"] == 4
    tokens = tokens_by_chapter(plan.assign(scored=plan["scored"] * 1e6), "any")
    assert tokens["held-out text"].tolist() == [78, 39 + 78 + 78, 39 + 39 + 78 + 78]
    assert tokens_by_chapter(plan, "any")["own text"].tolist() == [0, 0, 0]  # 160 tokens at most, in millions


def test_hours_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of 525 weights in blocks and 55 in the head, as in `test_weights_by_hand`."""
    monkeypatch.setattr(paper_costs, "MODELS", {"small": Shape(3, 5, 7, 2, 11)})
    hours = hours_table(chapters(monkeypatch), "any").set_index("chapter")
    second, tasks = 3600, 2 * (100 * 30 + 400 * 800)
    two = hours.loc["two"]
    assert two["prune"] == pytest.approx(2 * 525 * (308 + 231) / (GPU_TFLOPS * 1e12) / second)
    assert two["score"] == pytest.approx(2 * 580 * (39 + 78 + 78) / (GPU_TFLOPS * 1e12) / second)
    assert two["answer"] == pytest.approx(2 * 580 * tasks / (GPU_TFLOPS * 1e12) / second)
    assert two["write"] == pytest.approx(160 / 32 * 580 * 2 / (GPU_TBYTES * 1e12) / second)
    assert two["total"] == pytest.approx(two[["prune", "score", "answer", "write"]].sum())
    assert hours.loc[ALL, "write"] == two["write"]  # a text that both chapters need is written once
    assert hours.loc[ALL, "total"] < hours.loc["one", "total"] + two["total"]


def test_the_real_plan_has_every_chapter_and_model() -> None:
    plan = plan_table(items=ITEMS)
    hours = hours_table(plan)
    slugs = paper_costs.chapters_planned()
    assert list(dict.fromkeys(hours["chapter"])) == [*slugs, ALL] and set(hours["model"]) == set(MODELS)
    assert np.isfinite(hours["total"]).all() and (hours["total"] > 0).all()
    alone = hours[hours["chapter"] != ALL].groupby("model")["total"].sum()
    together = hours[hours["chapter"] == ALL].set_index("model")["total"]
    assert (together < alone.loc[together.index]).all()  # chapters 1 and 11 share runs
    assert plan.loc[plan["chapter"] == ALL, "runs"].sum() < plan.loc[plan["chapter"] != ALL, "runs"].sum()


def test_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(ALL, name, 1.0, 2.0, 4.0, 1.0, 8.0) for name in ("A", "B")]
    hours = pd.DataFrame(rows, columns=["chapter", "model", "prune", "score", "answer", "write", "total"])
    assert describe_hours(hours) == (
        "All chapters, runs that several share counted once, take GPU hours of: A 8, B 8. Of these: pruning 12 %, "
        "held-out text 25 %, tasks 50 %, own text 12 %."
    )
    assert "312 TFLOPS" in describe_assumptions() and "40 %" in describe_assumptions()
    assert method_of(run("wanda", allocation=Owl())) == "wanda+owl"
