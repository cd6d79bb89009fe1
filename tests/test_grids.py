"""Axes of grids: which runs a chapter's parameters ask for, and which values are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from calib_study.grids import Cuts, Levels, Sizes
from calib_study.parameters import Amount, Filtering, Packing, SelfGeneration, SparsityScaling
from calib_study.specs import RunSpec

COMMON: dict[str, Any] = {
    "model": "smollm2-135m",
    "sources": ["c4", "code"],
    "methods": ["wanda", "sparsegpt"],
    "n_seeds": 3,
    "dtype": "float32",
    "device": "cpu",
    "eval_sources": ["c4"],
    "eval_seq_len": 64,
    "eval_windows": 2,
    "n_spot_checks": 0,
}
ONE_LEVEL = {"sparsity": 0.5, "pattern": "unstructured", "schedule": "dense"}
ONE_SIZE = {"policy": "packed", "n_samples": 4, "seq_len": 32}
LEVELS = {
    "methods": ["magnitude", "random", "wanda", "dsnot"],
    "sparsities": [0.3, 0.5],
    "patterns": ["2:4"],
    "compared_sparsities": [0.5],
    "compared_patterns": [],
    "schedule": "dense",
}
SIZES = {"policy": "packed", "amounts": [1, 4], "seq_len": 32, "lengths": [32, 64], "n_tokens": 128}
CUTS = {"policies": ["packed", "document"], "n_samples": 4, "seq_len": 32, "long_tokens": 96}
TEXT = {
    "n_texts": 8,
    "new_tokens": 32,
    "prefix_len": 2,
    "temperature": 0.6,
    "top_k": 50,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "end_of_text": "continue",
    "text_seed": 0,
}


def scaling(**given: Any) -> SparsityScaling:
    return SparsityScaling(**{**COMMON, **ONE_SIZE, **LEVELS, **given})


def amount(**given: Any) -> Amount:
    return Amount(**{**COMMON, **ONE_LEVEL, **SIZES, **given})


def packing(**given: Any) -> Packing:
    return Packing(**{**COMMON, **ONE_LEVEL, **CUTS, **given})


def settings_of(specs: list[RunSpec], method: str) -> set[tuple[float, str]]:
    return {(spec.sparsity, spec.pattern) for spec in specs if spec.method == method}


def test_the_first_reader_and_the_floors_run_at_every_level_and_others_where_compared() -> None:
    specs = scaling().specs()
    everywhere = {(0.3, "unstructured"), (0.5, "unstructured"), (0.5, "2:4")}
    for method in ("magnitude", "random", "wanda"):
        assert settings_of(specs, method) == everywhere
    assert settings_of(specs, "dsnot") == {(0.5, "unstructured")}
    # 3 levels: magnitude once, random each seed, wanda each seed and text; dsnot at one level; the dense model
    assert len(specs) == len({spec.run_id for spec in specs}) == 3 * (1 + 3 + 3 * 2) + 3 * 2 + 1
    assert all(spec.evaluation.divergence for spec in specs)
    assert {spec.schedule for spec in specs if spec.calibration} == {"dense"}


def test_more_windows_run_with_all_methods_and_longer_ones_with_the_first() -> None:
    specs = amount().specs()
    sizes = {
        name: {(s.calibration.n_samples, s.calibration.seq_len) for s in specs if s.calibration and s.method == name}
        for name in ("wanda", "sparsegpt")
    }
    assert sizes["wanda"] == {(1, 32), (4, 32), (2, 64)}  # 4 windows of 32 are 128 tokens, too: one setting
    assert sizes["sparsegpt"] == {(1, 32), (4, 32)}
    assert len(specs) == 1 + 2 * 3 * (3 + 2)


def test_every_cut_is_of_all_documents_and_of_long_ones() -> None:
    specs = packing(methods=["wanda"]).specs()
    cuts = {(s.calibration.policy, s.calibration.min_tokens) for s in specs if s.calibration}
    assert cuts == {("packed", None), ("packed", 96), ("document", None), ("document", 96)}
    assert len(specs) == 1 + 2 * 3 * 4


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (scaling, {"patterns": ["unstructured"]}, "name N:M patterns such as '2:4'; unstructured runs are in `sparsities`"),
    (scaling, {"methods": ["wanda", "wanda_variant"]}, "method 'wanda_variant' has no N:M form"),
    (scaling, {"compared_sparsities": [0.4]}, "each must be one of `sparsities`; not so 0.4."),
    (scaling, {"compared_patterns": ["4:8"]}, "each must be one of `patterns`; not so 4:8."),
    (scaling, {"sparsities": [0.5], "compared_sparsities": []}, "at least two are needed to see a trend."),
    (scaling, {"methods": ["magnitude", "random"]}, "at least one that uses calibration text is needed"),
    (amount, {"lengths": [32, 48]}, "must be a multiple of each of `lengths`; not so of 48."),
    (amount, {"lengths": [32, 16384]}, "lengths 16,384 is longer than the context of smollm2-135m"),
    (amount, {"amounts": [1]}, "at least 2 items"),
    (amount, {"amounts": [0, 4]}, "greater than or equal to 1"),
    (amount, {"methods": ["magnitude"]}, "this chapter compares calibration texts; magnitude reads none."),
    (packing, {"policies": ["packed"]}, "at least 2 items"),
    (packing, {"long_tokens": 32}, "must be above `seq_len`"),
    (packing, {"methods": []}, "at least one is needed"),
]


@pytest.mark.parametrize(("chapter", "given", "message"), BAD)
def test_a_bad_axis_is_explained(chapter: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        chapter(**given)
    assert message in str(raised.value)


def test_axes_multiply() -> None:
    """Two levels of sparsity and one pattern, one schedule, one size."""
    assert len(scaling().settings()) == 3
    assert scaling().settings()[0] == {
        "sparsity": 0.3,
        "pattern": "unstructured",
        "schedule": "dense",
        "policy": "packed",
        "n_samples": 4,
        "seq_len": 32,
    }
    for axis in (Levels, Sizes, Cuts):
        assert axis.axes is not axis.__mro__[1].axes


# --- texts of the model's own -----------------------------------------------------------------------------


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs be their names, and every text be there."""

    def job(_: Any, model: str, source: str, prefix_len: int, dtype: str, device: str) -> SimpleNamespace:
        return SimpleNamespace(source=f"selfgen:{source if prefix_len else 'start'}-{prefix_len}")

    def checked(*, source: str, drop: str, seed: int, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(source=f"{source}-{drop.replace(':', '-')}-{seed}")

    monkeypatch.setattr("calib_study.parameters.OwnText.written_after", job)
    monkeypatch.setattr("calib_study.parameters.FilterJob.checked", checked)
    monkeypatch.setattr("calib_study.grids.source_hash", lambda source: None)
    monkeypatch.setattr("calib_study.parameters.resolve_source", lambda source: source)


def self_generation(**given: Any) -> SelfGeneration:
    own = {"prefix_sources": ["c4"], "prefix_lens": [0, 2, 8], "added_sources": ["c4"]}
    tasks = {"tasks": ["piqa"], "task_limit": 3}
    return SelfGeneration(**{**COMMON, **ONE_LEVEL, **ONE_SIZE, **TEXT, **tasks, **own, **given})


def filtering(**given: Any) -> Filtering:
    own = {"drops": [20.0, 40.0], "ends": ["top", "random"], "scorer": "", "methods": ["wanda"]}
    return Filtering(**{**COMMON, **ONE_LEVEL, **ONE_SIZE, **TEXT, "sources": ["c4"], **own, **given})


@pytest.mark.usefixtures("named")
def test_own_texts_stand_beside_real_ones_and_each_is_written_once() -> None:
    chapter = self_generation()
    assert [job.source for job in chapter.jobs()] == ["selfgen:c4-2", "selfgen:start-0", "selfgen:c4-8"]
    assert chapter.own() == {"c4": "selfgen:c4-2"}
    assert list(chapter.by_length()) == [0, 2, 8]
    assert chapter.mixed() == {"c4": "c4:1,selfgen:c4-2:1"}
    specs = chapter.specs()
    texts = [(s.method, s.calibration.source, s.calibration.n_samples) for s in specs if s.calibration]
    expected = {(m, source, 4) for m in ("wanda", "sparsegpt") for source in ("c4", "code", "selfgen:c4-2")}
    expected |= {("wanda", source, 4) for source in ("selfgen:start-0", "selfgen:c4-8")}
    expected |= {("wanda", source, 8) for source in ("c4", "c4:1,selfgen:c4-2:1")}
    assert set(texts) == expected and len(texts) == 3 * len(expected)


@pytest.mark.usefixtures("named")
def test_a_random_filter_is_drawn_anew_for_each_seed() -> None:
    chapter = filtering()
    assert len(chapter.filters()) == 2 + 2 * 3
    runs = [(s.calibration.source, s.seed) for s in chapter.specs() if s.calibration]
    expected = [("selfgen:c4-2", seed) for seed in range(3)]
    expected += [(f"selfgen:c4-2-top-{drop}-0", seed) for drop in (20, 40) for seed in range(3)]
    expected += [(f"selfgen:c4-2-random-{drop}-{seed}", seed) for drop in (20, 40) for seed in range(3)]
    assert sorted(runs) == sorted(expected)


BAD_TEXTS: list[tuple[Any, dict[str, Any], str]] = [
    (self_generation, {"prefix_sources": ["math"]}, "each must be one of `sources`, to be compared with; not so math."),
    (self_generation, {"added_sources": ["code"]}, "each must be one of `prefix_sources`; not so code."),
    (self_generation, {"temperature": 0}, "greater than 0"),
    (self_generation, {"end_of_text": "stopp"}, "'stop', 'continue' or 'ban'"),
    (filtering, {"ends": ["top"]}, "'random' is the control"),
    (filtering, {"ends": ["top", "upper"]}, "'top', 'bottom' or 'random'"),
    (filtering, {"drops": [100]}, "less than 100"),
    (filtering, {"scorer": "smollm2-135"}, "unknown model 'smollm2-135'. Did you mean 'smollm2-135m'?"),
    (filtering, {"sources": ["random"]}, "name at least one text that the model continues"),
]


@pytest.mark.parametrize(("chapter", "given", "message"), BAD_TEXTS)
def test_a_bad_request_for_text_is_explained(chapter: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        chapter(**given)
    assert message in str(raised.value)
