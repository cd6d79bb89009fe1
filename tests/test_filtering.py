"""The perplexity filter: which texts are kept, by hand and beside numpy, and the sources that it makes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import tiny_model_directory, tiny_source
from tiny_synthesis import tiny_job

from calib_study import models
from calib_study.errors import InputError
from calib_study.filtering import FilterJob, kept, text_perplexities
from calib_study.generated import named_folder, read_manifest
from calib_study.manifests import Filter, Manifest
from calib_study.model_files import resolve_model
from calib_study.models import load_model
from calib_study.sources import load_documents

pytestmark = pytest.mark.usefixtures("own_cache")
Files = tuple[Path, Path]

# --- the rule ---------------------------------------------------------------------------------------------

VALUES = [50.0, 10, 40, 20, 30, 60, 90, 80, 70, 100]  # in order 10, 20 ... 100


def left(drop: str, values: list[float] = VALUES, seed: int = 0) -> list[float]:
    chosen, _ = kept(values, drop, seed)
    return [value for value, stays in zip(values, chosen, strict=True) if stays]


def test_percentiles_by_hand() -> None:
    # The 80th percentile of 10 values: place 9 * 0.8 = 7.2 from 0, so 80 + 0.2 * 10 = 82. Strictly below: eight.
    assert kept(VALUES, "top:20")[1] == pytest.approx(82)
    assert left("top:20") == [50, 10, 40, 20, 30, 60, 80, 70]
    # The 20th: place 1.8, so 20 + 0.8 * 10 = 28. Strictly above: eight.
    assert kept(VALUES, "bottom:20")[1] == pytest.approx(28)
    assert left("bottom:20") == [50, 40, 30, 60, 90, 80, 70, 100]
    # Of 11 values the 80th percentile is a value, the ninth, and goes too: three are dropped.
    assert kept([*VALUES, 110.0], "top:20")[1] == pytest.approx(90)
    assert len(left("top:20", [*VALUES, 110.0])) == 8
    # Equal values stay or go together.
    assert left("top:20", [1, 2, 2, 2, 2]) == [1]


def test_the_papers_rule_is_top_20() -> None:
    values = np.random.default_rng(0).lognormal(2, 1, 5_000)
    expected = values < np.percentile(values, 80)
    assert np.array_equal(kept(values, "top:20")[0], expected) and expected.sum() == 4_000


@pytest.mark.parametrize("n", [2, 9, 10, 11, 100, 101])
@pytest.mark.parametrize("percent", [1, 20, 33.3, 50])
def test_random_drops_as_many_as_the_top(n: int, percent: float) -> None:
    values = np.random.default_rng(1).random(n)
    chosen, threshold = kept(values, f"random:{percent}")
    assert chosen.sum() == kept(values, f"top:{percent}")[0].sum() == kept(values, f"bottom:{percent}")[0].sum()
    assert threshold is None


def test_random_follows_the_seed_and_not_the_values() -> None:
    assert left("random:20") == left("random:20")
    assert len({tuple(left("random:20", seed=seed)) for seed in range(20)}) > 10
    nan = [math.nan] * 10
    assert np.array_equal(kept(nan, "random:20")[0], kept(VALUES, "random:20")[0])


# --- sources ----------------------------------------------------------------------------------------------


@pytest.fixture
def parent(tiny_files: Files) -> Manifest:
    return tiny_job(*tiny_files, n_texts=30).run(lambda line: None)


def run(source: str = "selfgen:tiny", drop: str = "top:20", name: str = "left", **changes: Any) -> Manifest:
    return FilterJob.checked(source=source, drop=drop, name=name, **changes).run(lambda line: None)


@pytest.mark.tiny
def test_a_generated_source_is_filtered_by_what_its_manifest_has(
    parent: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load_model", None)
    manifest = run()
    texts = dict(zip(load_documents("selfgen:tiny", "calibration"), parent.texts, strict=True))
    cut = float(np.percentile([facts.perplexity or 0 for facts in parent.texts], 80))
    expected = {text: facts for text, facts in texts.items() if (facts.perplexity or 0) < cut}
    found = load_documents("selfgen:left", "calibration")
    assert dict(zip(found, manifest.texts, strict=True)) == expected and list(found) == list(expected)
    assert (manifest.threshold, manifest.parents, manifest.weights_sha256) == (cut, (parent.request,), None)
    assert manifest.counts == {"before": 30, "kept": 24}
    assert isinstance(manifest.request, Filter) and manifest.request.parent == "selfgen:tiny"
    # A filter of a filter names both.
    again = run("selfgen:left", "bottom:50", "rest")
    assert again.parents == (manifest.request, parent.request) and again.counts == {"before": 24, "kept": 12}
    assert run("selfgen:left", "bottom:50", "rest") == again


@pytest.mark.tiny
def test_another_model_can_score_any_source(tmp_path: Path) -> None:
    """Real text: its calibration part, read by the model in plain forwards."""
    model, source = tiny_model_directory(tmp_path / "scorer"), str(tiny_source(tmp_path / "own.txt"))
    manifest = run(source, scorer=str(model), drop="bottom:30", max_tokens=25)
    dense = load_model(resolve_model(str(model)))
    documents = load_documents(source, "calibration")
    scores = []
    for text in documents:
        ids = torch.tensor([[0, *dense.tokenizer(text)["input_ids"][:25]]])
        with torch.no_grad():
            scores.append(math.exp(dense.model(ids, labels=ids).loss.item()))
    cut = float(np.percentile(scores, 30))
    expected = [text for text, score in zip(documents, scores, strict=True) if score > cut]
    assert list(load_documents("selfgen:left", "calibration")) == expected
    assert manifest.threshold == pytest.approx(cut, rel=1e-4)
    assert [facts.perplexity for facts in manifest.texts] == pytest.approx([s for s in scores if s > cut], rel=1e-4)
    assert {facts.n_scored for facts in manifest.texts} <= set(range(20, 26))
    assert manifest.weights_sha256 == dense.weights_sha256() and manifest.parents == ()
    assert text_perplexities(dense, documents[:1], max_tokens=25)[0][0] == pytest.approx(scores[0], rel=1e-5)


@pytest.mark.tiny
def test_dropping_at_random_needs_no_scores(tmp_path: Path) -> None:
    source = str(tiny_source(tmp_path / "own.txt"))
    first, other = run(source, "random:20"), run(source, "random:20", "other", seed=1)
    assert first.counts == other.counts and first.texts != other.texts
    with pytest.raises(InputError, match="no model has scored the texts of 'selfgen:left': name a --scorer"):
        run("selfgen:left", "top:20", "third")
    assert read_manifest(named_folder("left")) == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "c5"}, "unknown source 'c5'. Did you mean 'c4'"),
        ({"source": "selfgen:x"}, "unknown generated source 'selfgen:x'"),
        ({"source": "OWN"}, "no model has scored the texts of"),
        ({"source": "OWN", "drop": "tpo:20"}, "unknown end to drop 'tpo'. Did you mean 'top'"),
        ({"source": "OWN", "drop": "top:120"}, "a percentage between 0 and 100, like 'top:20'"),
        ({"source": "OWN", "seed": 1}, "--seed is for random:P"),
        ({"source": "OWN", "max_tokens": 9}, "--max-tokens is for --scorer"),
        ({"source": "OWN", "scorer": "smollm"}, "unknown model 'smollm'. Did you mean 'smollm2-135m'"),
        ({"source": "OWN", "scorer": "MODEL", "max_tokens": 64}, "= 65 is longer than the context of tiny: 64"),
        ({"source": "OWN", "scorer": "MODEL", "max_tokens": 1}, "max_tokens = 1"),
        ({"source": "OWN", "scorer": "MODEL", "dtype": "float16"}, "dtype 'float16'"),
        ({"source": "OWN", "drop": "random:20", "name": "a b"}, "name 'a b': use letters"),
        ({"source": "OWN", "drop": "random:20", "seed": -1}, "seed = -1"),
    ],
)
def test_bad_requests(tiny_files: Files, change: dict[str, Any], said: str) -> None:
    paths = {"OWN": str(tiny_files[1]), "MODEL": str(tiny_files[0])}
    fields = {"drop": "top:20", "name": "x", **change}
    with pytest.raises(InputError) as caught:
        FilterJob.checked(**{key: paths.get(str(value), value) for key, value in fields.items()})
    assert said in str(caught.value)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    text = next(text for text in ("one", "two", "four") if load_one(tmp_path, text))
    with pytest.raises(InputError, match=r"random:20 leaves none of the 1 texts"):
        run(str(tmp_path / f"{text}.txt"), "random:20")


def load_one(folder: Path, text: str) -> bool:
    """Write a text of one document; return whether it is a calibration text."""
    (folder / f"{text}.txt").write_text(text)
    try:
        return bool(load_documents(str(folder / f"{text}.txt"), "calibration"))
    except InputError:
        return False
