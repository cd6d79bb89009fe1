"""Training glass-box models: batches by hand, resuming to the last bit, what is refused, a model that can be pruned."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import tiny_source

from calib_study import glassbox, glassbox_training
from calib_study.errors import DataError, InputError
from calib_study.glassbox import REPORT, Recipe
from calib_study.glassbox_reports import Report, read_report
from calib_study.glassbox_training import (
    CHECKPOINT,
    GlassboxJob,
    Training,
    compared,
    initial_model,
    train_tokenizer,
    training_windows,
)
from calib_study.model_files import resolve_model
from calib_study.models import load_model
from calib_study.preflight import evaluation_of
from calib_study.records import Store
from calib_study.sources import load_documents, source_hash
from calib_study.specs import make_spec
from calib_study.study import run_grid
from calib_study.windows import separator_id, tokenized

pytestmark = pytest.mark.tiny


@pytest.fixture(autouse=True)
def frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint and a point of the curves every 25 steps."""
    monkeypatch.setattr(glassbox_training, "CHECKPOINT_STEPS", 25)
    monkeypatch.setattr(glassbox_training, "CURVE_STEPS", 25)


@pytest.fixture
def texts(tmp_path: Path, own_cache: Path) -> tuple[str, str]:
    """Two corpora of a user's own, of 60 documents each."""
    return (str(tiny_source(tmp_path / "one.txt")), str(tiny_source(tmp_path / "two.txt", seed=1)))


def tiny_recipe(texts: tuple[str, ...], **changes: Any) -> Recipe:
    small = {"hidden_size": 32, "intermediate_size": 48, "n_layers": 2, "vocab_size": 300, "context_length": 64}
    run = {"seq_len": 16, "batch_size": 4, "steps": 30, "warmup": 5}
    return Recipe(sources=texts, tokenizer_sources=texts, **{**small, **run, **changes})


def train(recipe: Recipe, folder: Path) -> tuple[Report, list[str]]:
    said: list[str] = []
    report = GlassboxJob.checked("tiny", recipe=recipe, out=folder).run(said.append)
    return report, said


def test_an_epoch_has_every_seen_document_once_and_no_unseen_one(texts: tuple[str, str]) -> None:
    recipe = tiny_recipe(texts[:1])
    tokenizer = train_tokenizer(recipe)
    seen = tokenized(load_documents(f"{texts[0]}@seen", "calibration"), tokenizer)
    length = sum(len(ids) + 1 for ids in seen)
    steps = length // (4 * 16) + 1  # a little more than one epoch
    stream = training_windows(tiny_recipe(texts[:1], steps=steps), tokenizer).reshape(-1)
    end = separator_id(tokenizer)
    epoch = stream[:length]
    assert epoch[-1] == end and (epoch == end).sum() == len(seen)
    documents = np.split(epoch, np.flatnonzero(epoch == end) + 1)[:-1]
    assert sorted(tuple(ids[:-1]) for ids in documents) == sorted(tuple(ids) for ids in seen)
    again = training_windows(tiny_recipe(texts[:1], steps=2 * steps), tokenizer).reshape(-1)
    np.testing.assert_array_equal(again[: stream.size], stream)  # more steps begin like fewer
    assert (again[length : 2 * length] != epoch).any()  # another order in the second epoch


def test_a_mixture_gives_each_source_the_same_share_of_every_batch(texts: tuple[str, str]) -> None:
    recipe = tiny_recipe(texts, steps=3)
    tokenizer = train_tokenizer(recipe)
    both = training_windows(recipe, tokenizer)
    assert both.shape == (3, 4, 16)
    alone = training_windows(tiny_recipe(texts[:1], steps=3, batch_size=2), tokenizer)
    np.testing.assert_array_equal(both[:, :2], alone)


def test_seeds_decide_weights_and_order(texts: tuple[str, str]) -> None:
    recipe, other = tiny_recipe(texts), tiny_recipe(texts, seed=1)
    tokenizer = train_tokenizer(recipe)
    assert tokenizer.get_vocab() == train_tokenizer(other).get_vocab() and len(tokenizer) == 300
    state = torch.random.get_rng_state()
    one, same, different = (initial_model(which).state_dict() for which in (recipe, recipe, other))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], different[name]) for name in one)
    assert (training_windows(recipe, tokenizer) != training_windows(other, tokenizer)).any()


def test_it_learns_and_what_it_wrote_is_a_model_with_its_report(texts: tuple[str, str], tmp_path: Path) -> None:
    report, _ = train(tiny_recipe(texts[:1], steps=60), tmp_path / "model")
    assert report.curve.steps == (25, 50, 60) and report.curve.loss[-1] < report.curve.loss[0] - 0.5
    held_out = report.held_out[texts[0]]
    assert held_out.loss[-1] == pytest.approx(np.log(report.perplexity[texts[0]]), abs=0.02)  # rounded to bfloat16
    assert read_report(tmp_path / "model") == report
    model = load_model(resolve_model(str(tmp_path / "model")))
    assert model.weights_sha256() == report.weights_sha256
    assert all(torch.equal(w, w.bfloat16().float()) for w in model.model.parameters())
    assert not (tmp_path / "model" / CHECKPOINT).exists()


def test_an_interrupted_training_ends_with_the_same_bits_and_can_be_pruned(
    texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(texts)
    whole, _ = train(recipe, tmp_path / "whole")
    advance = Training.advance

    def interrupted(self: Training, windows: Any) -> None:
        if self.step == 27:
            raise KeyboardInterrupt
        advance(self, windows)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "parts")
    assert (tmp_path / "parts" / CHECKPOINT).exists() and not (tmp_path / "parts" / REPORT).exists()
    resumed, said = train(recipe, tmp_path / "parts")
    assert said == ["goes on at step 25 of 30"]
    assert (resumed.weights_sha256, resumed.curve, resumed.held_out) == (
        whole.weights_sha256,
        whole.curve,
        whole.held_out,
    )
    assert train(recipe, tmp_path / "parts")[1] == [f"tiny is finished already: {tmp_path / 'parts'}"]

    ref = resolve_model(str(tmp_path / "parts"))
    source = f"{texts[0]}@unseen"
    spec = make_spec(
        model=ref.name,
        model_hash=ref.content_hash(),
        method="wanda",
        sparsity=0.5,
        source=source,
        source_hash=source_hash(source),
        n_samples=2,
        seq_len=16,
        seed=0,
        evaluation=evaluation_of([texts[0]], seq_len=16, n_windows=4),
    )
    (record,) = run_grid([spec], model=str(tmp_path / "parts"), store=Store(tmp_path / "records"), progress=False)
    assert record.sparsity.overall == 0.5


def test_a_killed_process_is_taken_over(texts: tuple[str, str], tmp_path: Path) -> None:
    recipe, folder = tiny_recipe(texts, steps=60), tmp_path / "killed"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from calib_study.glassbox import Recipe; from calib_study.glassbox_training import *\n"
        "from calib_study import glassbox_training; glassbox_training.CHECKPOINT_STEPS = 25\n"
        "advance = Training.advance\n"
        "def slow(self, windows):\n    time.sleep(60 if self.step == 30 else 0); advance(self, windows)\n"
        "Training.advance = slow\n"
        "recipe = Recipe.model_validate_json(sys.argv[1])\n"
        "GlassboxJob.checked('tiny', recipe=recipe, out=Path(sys.argv[2])).run(print)\n"
    )
    command = [sys.executable, "-c", script, recipe.model_dump_json(), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    while not (folder / CHECKPOINT).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    with pytest.raises(InputError, match="another process is training this model"):
        train(recipe, folder)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    report, said = train(recipe, folder)
    assert said == ["goes on at step 25 of 60"]
    assert report.weights_sha256 == train(recipe, tmp_path / "whole")[0].weights_sha256


def test_what_lies_there_already_is_never_overwritten(texts: tuple[str, str], tmp_path: Path) -> None:
    train(tiny_recipe(texts, steps=2), tmp_path / "model")
    with pytest.raises(InputError, match=r"of another recipe \(steps 2\)"):
        train(tiny_recipe(texts, steps=3), tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="full"):
        train(tiny_recipe(texts), tmp_path / "full")
    with pytest.raises(InputError, match="say with --out"):
        GlassboxJob.checked("tiny", recipe=tiny_recipe(texts))


def test_damaged_files_are_named(texts: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / CHECKPOINT).write_bytes(b"half a checkpoint")
    with pytest.raises(DataError, match=r"checkpoint.pt: not a checkpoint .* remove it"):
        train(tiny_recipe(texts), folder)
    (folder / REPORT).write_text("{}")
    with pytest.raises(DataError, match=r"training.json: not the report of a training"):
        train(tiny_recipe(texts), folder)
    with pytest.raises(DataError, match="cannot be read"):
        read_report(tmp_path / "nowhere")


def test_a_loss_that_is_no_number_stops_the_training(texts: tuple[str, str]) -> None:
    recipe = tiny_recipe(texts)
    training = Training(recipe, "cpu")
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="the loss is nan at step 0"):
        training.advance(training_windows(recipe, train_tokenizer(recipe))[0])


def test_a_trained_model_is_compared_with_the_published_one(
    texts: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(texts, steps=2)
    report, _ = train(recipe, tmp_path / "published" / "tiny")
    monkeypatch.setattr(glassbox_training, "published_glassbox", lambda: tmp_path / "published")
    assert compared("tiny", report) == ["its weights equal those of the project to the last bit"]
    worse = {**report.perplexity, texts[0]: report.perplexity[texts[0]] * 1.01}
    other = report.model_copy(update={"weights_sha256": "0" * 64, "perplexity": worse})
    assert compared("tiny", other) == ["its weights differ from those of the project; perplexities by 1.00% at most"]
    assert compared("else", report) == []
    assert compared("tiny", report.model_copy(update={"recipe": tiny_recipe(texts, steps=3)})) == []
    assert glassbox.published_glassbox().name == "glassbox"
