"""Runs counted from parameters are those that the chapters would run, for every profile, `paper` too.

The model hub is replaced by a stand-in, and so are the texts of the hub and those that the model would write.
"""

from collections import Counter
from typing import Any

import pytest

from calib_study import grids, parameters, plans, synthesis
from calib_study.errors import InputError
from calib_study.grids import Grid
from calib_study.model_files import ModelRef
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_names, profile_parameters
from calib_study.paper_costs import method_of
from calib_study.parameters import DataSources, Filtering, SelfGeneration, validate
from calib_study.plans import PAPER, chapters_planned, planned, written
from calib_study.specs import RunSpec, parse_spec

HUB = ModelRef("meta-llama/Llama-2-7b-hf", "hub", "meta-llama/Llama-2-7b-hf", "c" * 40, 4096, 32000)
CHAPTERS = chapters_planned()
CASES = [(slug, profile) for slug in CHAPTERS for profile in profile_names(slug)]
REAL = 4 * 20  # texts x draws of the paper's protocol


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub have the model, and every text be there: those of the hub, and those that the model would write."""
    known, named = grids.resolve_model, grids.resolve_source
    for module in (grids, parameters, synthesis):
        monkeypatch.setattr(module, "resolve_model", lambda name, **_: HUB if name == HUB.name else known(name))
    monkeypatch.setattr(grids, "source_hash", lambda source: f"hash of {source}")
    monkeypatch.setattr(synthesis, "content_of", lambda _: "d" * 40)
    monkeypatch.setattr(synthesis, "load_documents", lambda *_: ["a text"] * 5000)
    monkeypatch.setattr(parameters, "resolve_source", lambda name: name if "selfgen:" in name else named(name))


@pytest.fixture
def filter_stand_ins(stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let filters be named by what they are asked, without the text that they would be made from."""

    class Job:
        def __init__(self, **asked: Any) -> None:
            self.source = f"selfgen:{asked['source']} {asked['drop']} {asked['seed']}"

    monkeypatch.setattr(parameters.FilterJob, "checked", classmethod(lambda _, **asked: Job(**asked)))


def checked(slug: str, profile: str) -> Any:
    defaults = parameter_defaults(notebooks_dir() / f"{slug}.py")
    return validate(slug, {**defaults, **profile_parameters(slug, profile)})


def specified(cfg: Any) -> list[RunSpec]:
    """Return the runs of checked parameters, as the chapters ask for them."""
    specs = list(cfg.specs())
    return specs + cfg.crossed().specs() if isinstance(cfg, DataSources) else specs


def unpinned(spec: RunSpec) -> RunSpec:
    """Return a specification without hashes of content."""
    text = spec.calibration and spec.calibration.model_copy(update={"source_hash": None})
    return spec.model_copy(update={"model_hash": None, "calibration": text})


def shape(spec: RunSpec) -> tuple[Any, ...]:
    """Return all of a specification but the name of its text."""
    text = spec.calibration
    size = text and (text.policy, text.n_samples, text.seq_len, text.min_tokens)
    return method_of(spec), spec.sparsity, spec.pattern, spec.schedule, size, spec.seed, spec.dtype, spec.evaluation


@pytest.mark.parametrize(("slug", "profile"), CASES)
def test_what_is_planned_is_what_would_be_run(slug: str, profile: str, filter_stand_ins: None) -> None:
    cfg = checked(slug, profile)
    asked = specified(cfg)
    plan = planned(slug, profile)
    assert len({spec.run_id for spec in asked}) == len(set(asked)) == len(plan)
    assert len({spec.run_id for spec in plan}) == len(plan)
    if isinstance(cfg, SelfGeneration | Filtering):  # own texts have other names there
        assert Counter(map(shape, dict.fromkeys(asked))) == Counter(map(shape, plan))
    else:
        assert {unpinned(spec) for spec in asked} == set(plan)


@pytest.mark.parametrize("slug", CHAPTERS)
def test_every_run_at_the_papers_scale_is_a_valid_specification(slug: str, filter_stand_ins: None) -> None:
    for spec in specified(checked(slug, PAPER)):
        again = parse_spec(spec.model_dump())
        assert again == spec and again.run_id == spec.run_id
        assert (spec.model, spec.model_hash, spec.dtype) == (HUB.name, HUB.revision, "bfloat16")


@pytest.mark.parametrize("profile", ["smoke", PAPER])
@pytest.mark.parametrize("slug", ["05_self_generation", "06_filtering"])
def test_what_is_written_is_what_the_jobs_ask_for(slug: str, profile: str, stand_ins: None) -> None:
    jobs = checked(slug, profile).jobs()
    tokens = [job.request.n_texts * job.request.new_tokens for job in {job.source: job for job in jobs}.values()]
    assert sorted(written(slug, profile).values()) == sorted(tokens)


# Counts at the paper's scale, as products of the axes: 4 texts, 20 draws; one dense run of each evaluation.
BY_HAND: dict[str, dict[str, int]] = {
    # 2 methods, and the crossed grid of 5 with another evaluation
    "01_data_sources": {
        "dense": 2, "magnitude": 2, "wanda": 2 * REAL, "sparsegpt": REAL, "dsnot": REAL, "wanda+owl": REAL,
    },
    # 6 sparsities and 2 patterns; a random mask has draws, and no text
    "02_sparsity_scaling": {
        "dense": 1, "magnitude": 8, "random": 8 * 20,
        **{name: 8 * REAL for name in ("wanda", "sparsegpt", "dsnot", "wanda+owl")},
    },
    # 7 amounts; with the first method 6 lengths, of which 128 windows of 2,048 tokens are among the amounts
    "03_amount": {"dense": 1, "wanda": (7 + 6 - 1) * REAL, "sparsegpt": 7 * REAL, "dsnot": 7 * REAL},
    # 2 policies, all documents or long ones
    "04_packing": {"dense": 1, **{name: 4 * REAL for name in ("wanda", "sparsegpt", "dsnot")}},
    # 4 real and 4 own texts; 6 more lengths of prefix; one text twice as long, and mixed with its own
    "05_self_generation": {"dense": 1, "wanda": (8 + 6 + 2) * 20, "dsnot": 8 * 20, "wanda+owl": 8 * 20},
    # the whole text, and 4 shares of 3 ends
    "06_filtering": {"dense": 1, "wanda": (1 + 4 * 3) * 20},
    # 3 schedules, 5 draws
    "10_schedules": {"dense": 1, "wanda": 3 * 4 * 5, "sparsegpt": 3 * 4 * 5},
    # 5 methods; 2 milder sparsities with magnitude and with Wanda on the first text
    "11_measuring": {
        "dense": 1, "magnitude": 1 + 2, "wanda": REAL + 2, "sparsegpt": REAL, "dsnot": REAL, "wanda+owl": REAL,
    },
}  # fmt: skip


@pytest.mark.parametrize("slug", CHAPTERS)
def test_counts_are_products_of_the_axes(slug: str) -> None:
    assert Counter(map(method_of, planned(slug))) == BY_HAND[slug]


def test_texts_that_are_written_at_the_papers_scale() -> None:
    """5,000 texts of 2,048 tokens: after 4 sources, and after 6 more lengths of prefix; one of them is filtered."""
    assert list(written("05_self_generation").values()) == [5000 * 2048] * 10
    assert list(written("06_filtering").values()) == [5000 * 2048]
    assert set(written("06_filtering")) < set(written("05_self_generation"))
    assert written("11_measuring") == {}


def test_every_chapter_with_a_grid_is_planned() -> None:
    assert set(CHAPTERS) == {slug for slug, schema in parameters.SCHEMAS.items() if issubclass(schema, Grid)}
    assert chapters_planned("nothing") == []


def test_a_chapter_without_a_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"chapter '00_data' runs no grid\. Chapters that do: 01_data_sources"):
        planned("00_data")


def test_counting_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grids, parameters):
        monkeypatch.setattr(module, "resolve_model", lambda *_, **__: pytest.fail("the model was looked up"))
    monkeypatch.setattr(grids, "source_hash", lambda *_: pytest.fail("a text was looked up"))
    plans.planned.cache_clear()
    assert len(planned("10_schedules")) == 121
