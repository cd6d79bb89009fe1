"""Parameters of the chapter on likeness: the runs and measurements that they ask for, what is refused, the verdicts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_glassbox import own_text, tiny_glassboxes

from calib_study.errors import InputError
from calib_study.likeness import arrays_of, measure_likeness
from calib_study.measurements import MeasurementStore
from calib_study.records import Store
from calib_study.similarity_judgements import judge, stored_scores
from calib_study.similarity_parameters import Similarity
from calib_study.specs import problem_lines
from calib_study.study import run_grid

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[str]]:
    """Three glass-box models and their corpora. Read only."""
    return tiny_glassboxes(tmp_path_factory.mktemp("boxes"))


def checked(**given: Any) -> Similarity:
    """Return the parameters. Raises InputError as `parameters.validate` does."""
    try:
        return Similarity.model_validate(given)
    except ValidationError as error:
        raise InputError(problem_lines(error)) from error


def parameters(boxes: tuple[dict[str, Path], list[str]], **changes: Any) -> dict[str, Any]:
    models, corpora = boxes
    measured: dict[str, Any] = {
        "model": str(models["both"]),
        "sources": [*corpora, "selfgen:mine"],
        "methods": ["wanda"],
    }
    measured |= {"sparsity": 0.5, "pattern": "unstructured", "schedule": "dense", "policy": "packed"}
    measured |= {"n_samples": 2, "seq_len": 16, "n_seeds": 3, "dtype": "float32", "device": "cpu"}
    measured |= {"eval_sources": corpora, "eval_seq_len": 16, "eval_windows": 2, "n_spot_checks": 0}
    scored = {"reference": corpora[0], "score_windows": 3, "score_seq_len": 16, "own_sources": ["selfgen:mine"]}
    glass: dict[str, Any] = {"glass_models": [str(path) for path in models.values()], "corpora": corpora}
    glass |= {"glass_methods": ["wanda", "sparsegpt"], "glass_sparsities": [0.5, 0.7], "glass_samples": 2}
    glass |= {"glass_seq_len": 16, "glass_windows": 3, "glass_seeds": 3, "own_texts": 4, "own_tokens": 24}
    return measured | scored | glass | changes


@pytest.fixture
def written(own_cache: Path, boxes: tuple[dict[str, Path], list[str]]) -> None:
    own_text(boxes[0]["both"])


@pytest.mark.usefixtures("written")
def test_every_model_meets_every_corpus(boxes: tuple[dict[str, Path], list[str]]) -> None:
    models, corpora = boxes
    cfg: Any = checked(**parameters(boxes))
    grids = cfg.grids()
    assert list(grids) == [str(models["both"]), str(models["one"]), str(models["two"])]
    # dense, then 2 corpora x 2 sparsities x 3 seeds x (2 methods unseen + 1 seen)
    crossed = grids[str(models["one"])]
    assert len(crossed) == 1 + 2 * 2 * 3 * 3
    assert {spec.model for spec in crossed} == {"one"} and all(spec.model_hash for spec in crossed)
    seen = [spec for spec in crossed if spec.calibration and spec.calibration.source.endswith("@seen")]
    assert {spec.method for spec in seen} == {"wanda"} and len(seen) == 2 * 2 * 3
    assert {s.calibration.source for s in crossed if s.calibration and s not in seen} == {
        f"{c}@unseen" for c in corpora
    }
    # the model of both is in both parts: 3 texts x 3 seeds with 2 windows, scored in another way
    assert len(grids[str(models["both"])]) == 1 + 9 + 1 + 36
    assert cfg.specs() == [spec for specs in grids.values() for spec in specs]
    assert {name: list(texts) for name, texts in cfg.trained().items()} == {
        "one": corpora[:1],
        "two": corpora[1:],
        "both": corpora,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"glass_models": ["smollm2-135m", "glassbox-chatt"]}, "unknown model 'glassbox-chatt'"),
        ({"own_sources": ["selfgen:other"]}, "unknown generated source"),
        ({"glass_methods": ["magnitude"]}, "magnitude reads none"),
        ({"glass_seeds": 2}, "greater than or equal to 3"),
        ({"glass_sparsities": []}, "at least 1 item"),
        ({"reference": "c5"}, "unknown source 'c5'"),
    ],
)
@pytest.mark.usefixtures("written")
def test_bad_parameters(boxes: tuple[dict[str, Path], list[str]], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(**parameters(boxes, **changes))
    assert said in str(caught.value)


@pytest.mark.usefixtures("written")
def test_models_must_be_of_known_text_and_fit_the_corpora(
    boxes: tuple[dict[str, Path], list[str]], tiny_files: tuple[Path, Path]
) -> None:
    models, corpora = boxes
    for changes, said in (
        ({"glass_models": [str(models["one"]), str(tiny_files[0])]}, "it is not known what it was trained on"),
        ({"glass_models": [str(models["one"]), str(models["both"])]}, "one of `glass_models` must be trained on each"),
        ({"own_sources": [corpora[0]]}, "name texts that the model wrote"),
    ):
        with pytest.raises(InputError) as caught:
            checked(**parameters(boxes, **changes))
        assert said in str(caught.value)


@pytest.mark.usefixtures("written")
def test_the_whole_chapter_in_miniature(boxes: tuple[dict[str, Path], list[str]], tmp_path: Path) -> None:
    models, _ = boxes
    changes = {"glass_methods": ["wanda"], "glass_sparsities": [0.5]}
    cfg: Any = checked(**parameters(boxes, **changes))
    for job in cfg.jobs().values():
        job.run(lambda line: None)
    store, measured = Store(tmp_path / "records"), MeasurementStore(tmp_path / "measurements")
    records = []
    for name, specs in cfg.grids().items():
        records += run_grid(specs, model=name, store=store, progress=False)
    assert stored_scores(cfg.requests(), measured) is None
    assert [one.claim for one in judge(cfg, records, measured)] == ["J7"]
    for name, asked in cfg.requests().items():
        measure_likeness(asked, model=name, store=measured, progress=False)
    both = cfg.requests()[str(models["both"])]  # its texts as `model`, then those of a model of known text
    assert [request.draw.text.source.rpartition("@")[2] for request in both[3:7]] == [
        "seen",
        "seen",
        "unseen",
        "unseen",
    ]
    judged = judge(cfg, records, measured)
    assert [one.claim for one in judged] == ["J7", "J11"]
    assert all(one.verdict in ("supported", "not supported", "inconclusive") for one in judged)


@pytest.mark.usefixtures("written")
def test_scores_of_a_draw(boxes: tuple[dict[str, Path], list[str]], tmp_path: Path) -> None:
    models, corpora = boxes
    cfg: Any = checked(**parameters(boxes, model=str(models["one"])))
    store = MeasurementStore(tmp_path)
    for job in cfg.jobs().values():
        job.run(lambda line: None)
    asked = cfg.requests()[str(models["one"])]
    # its three texts as `model`; then, as a model of known text, what it saw, did not see, and wrote
    assert [request.reference is None for request in asked] == [False] * 3 + [True] * 3
    requests = [cfg._scores(cfg.model, source, cfg._draw(corpora[0], 0)) for source in corpora]
    same, other = measure_likeness(requests, model=cfg.model, store=store, progress=False)
    arrays = arrays_of(same, store)
    assert {name: array.shape for name, array in arrays.items() if name in ("nll", "min_k", "min_k_plus_plus")} == {
        "nll": (3,),
        "min_k": (3,),
        "min_k_plus_plus": (3,),
    }
    # 2 blocks with 4 inputs each; the reference is the draw itself
    assert arrays["inputs"].tolist()[:2] == ["0.self_attn.q_proj", "0.self_attn.o_proj"]
    assert len(arrays["norm_distance"]) == 8 and not arrays["norm_distance"].any()
    assert [metric.value for metric in same.metrics] == [0.0, 0.0]
    assert all(metric.value > 0 and metric.dataset == corpora[0] for metric in other.metrics)
