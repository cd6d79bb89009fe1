"""Synthesis end to end with a tiny model: the source it makes, resuming, refusals before anything slow."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import END_OF_TEXT, tiny_model_directory
from tiny_synthesis import N_TEXTS, NEW_TOKENS, tiny_job

from calib_study import generation, models, synthesis
from calib_study.errors import InputError
from calib_study.generated import DOCUMENTS, generated_home, generated_names, named_folder, read_generated
from calib_study.manifests import Manifest, Synthesis, TextFacts
from calib_study.model_files import resolve_model
from calib_study.models import load_model
from calib_study.preflight import check_specs
from calib_study.sources import is_held_out, load_documents, source_hash
from calib_study.specs import make_spec
from calib_study.synthesis import SynthesisJob, summary, usable
from calib_study.text_parts import Parts, Row
from calib_study.windows import draw_windows

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("own_cache")]
Files = tuple[Path, Path]


def run(files: Files, **changes: Any) -> Manifest:
    said: list[str] = []
    return tiny_job(*files, **changes).run(said.append)


def documents(name: str = "tiny") -> list[dict[str, Any]]:
    lines = (named_folder(name) / DOCUMENTS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# --- the source that is made ------------------------------------------------------------------------------


def test_the_source_holds_texts_that_continue_calibration_documents(tiny_files: Files) -> None:
    manifest = run(tiny_files, prefix_len=4, end_of_text="ban")
    assert manifest.counts == {"asked": 12, "kept": 12, "end_of_text": 0, "empty": 0, "broken": 0, "repeated": 0}
    assert read_generated(named_folder("tiny")) == (manifest, list(load_documents("selfgen:tiny", "calibration")))
    beginnings = {" ".join(text.split()[:4]) for text in load_documents(str(tiny_files[1]), "calibration")}
    for row, facts in zip(documents(), manifest.texts, strict=True):
        assert len(row["ids"]) == facts.n_tokens == facts.n_scored == 4 + NEW_TOKENS
        if "<unk>" not in row["text"]:
            assert " ".join(row["text"].split()[:4]) in beginnings
    assert any(is_held_out(row["text"]) for row in documents())  # and yet it is there for calibration


def test_the_manifest_has_what_a_model_finds_that_reads_the_texts(tiny_files: Files) -> None:
    manifest = run(tiny_files)
    dense = load_model(resolve_model(str(tiny_files[0])))
    assert manifest.weights_sha256 == dense.weights_sha256()
    assert isinstance(manifest.request, Synthesis)
    assert manifest.request.model_hash == dense.ref.content_hash()
    assert manifest.environment["versions"]["torch"] == torch.__version__
    for row, facts in zip(documents(), manifest.texts, strict=True):
        ids = torch.tensor([[0, *row["ids"]]])
        with torch.no_grad():
            loss = dense.model(ids, labels=ids).loss.item()
        assert facts.perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_it_calibrates_pinned_by_its_hash(tiny_files: Files) -> None:
    run(tiny_files)
    ref = resolve_model(str(tiny_files[0]))
    name = "selfgen:tiny"
    spec = make_spec(
        model=ref.name,
        model_hash=ref.content_hash(),
        method="wanda",
        sparsity=0.5,
        source=name,
        source_hash=source_hash(name),
        n_samples=4,
        seq_len=16,
        evaluation=None,
    )
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"sources": ()})})
    check_specs([spec], ref)
    for policy in ("packed", "document"):
        tokens = draw_windows(
            name, models.load_tokenizer(ref), n_samples=4, seq_len=16, seed=0, policy=policy, part="calibration"
        ).tokens
        assert tokens.shape == (4, 16)
    run(tiny_files, seed=1, name="other")
    for file in named_folder("tiny").iterdir():
        file.write_bytes((named_folder("other") / file.name).read_bytes())
    with pytest.raises(InputError, match="Has the text changed"):
        check_specs([spec], ref)


def test_an_end_inside_a_text_becomes_the_separator_again(tiny_files: Files) -> None:
    manifest = run(tiny_files, end_of_text="continue", repetition_penalty=1.0, temperature=2.0, top_k=0, n_texts=30)
    inside = [row for row in documents() if 0 in row["ids"][:-1]]
    assert manifest.counts["end_of_text"] >= len(inside) > 0
    assert all(END_OF_TEXT in row["text"] for row in inside)
    tokenizer = models.load_tokenizer(resolve_model(str(tiny_files[0])))
    known = [row for row in inside if 1 not in row["ids"] and row["ids"][-1] != 0]  # <unk> is not written
    assert known
    for row in known:
        assert tokenizer(row["text"], add_special_tokens=False)["input_ids"] == row["ids"]


def test_without_a_prefix_texts_begin_after_the_start_token(tiny_files: Files) -> None:
    manifest = run(tiny_files, prefix_source=None, prefix_len=0, end_of_text="ban")
    assert len({tuple(row["ids"]) for row in documents()}) == manifest.counts["kept"] == N_TEXTS
    assert all(facts.n_scored == facts.n_tokens == NEW_TOKENS for facts in manifest.texts)


def test_texts_that_end_early_are_kept_and_counted(tiny_files: Files) -> None:
    manifest = run(tiny_files, n_texts=30)
    shorter = [facts for facts in manifest.texts if (facts.n_tokens or 0) < 2 + NEW_TOKENS]
    assert manifest.counts["end_of_text"] == len(shorter) > 0
    assert all(facts.ends == (facts in shorter) for facts in manifest.texts)


# --- what makes no difference -----------------------------------------------------------------------------


def test_neither_the_batch_nor_more_texts_change_any(tiny_files: Files) -> None:
    safe = {facts.index for facts in run(tiny_files).texts if (facts.margin or 0) > 1e-5}
    first = {facts.index: row for facts, row in zip(run(tiny_files).texts, documents(), strict=True)}
    assert len(safe) > 5
    for name, changes in (("one", {"batch_size": 1}), ("all", {"batch_size": None}), ("more", {"n_texts": 20})):
        if name != "more":
            for file in (Parts(tiny_job(*tiny_files).request).folder).glob("*.jsonl"):
                file.unlink()
        texts = run(tiny_files, name=name, **changes).texts
        again = {facts.index: row for facts, row in zip(texts, documents(name), strict=True)}
        assert {index: again[index] for index in safe} == {index: first[index] for index in safe}


def test_another_seed_makes_other_texts(tiny_files: Files) -> None:
    run(tiny_files)
    run(tiny_files, name="again", seed=0)
    run(tiny_files, name="other", seed=1)
    assert documents() == documents("again")
    assert not {row["text"] for row in documents()} & {row["text"] for row in documents("other")}


# --- stopping, going on, and doing nothing ----------------------------------------------------------------


def test_what_was_finished_is_not_written_again(tiny_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    put, write = Parts.put, generation.write
    asked: list[list[int]] = []

    def interrupted(parts: Parts, rows: list[Row]) -> None:
        put(parts, rows)
        if len(parts.read()) >= 6:
            raise KeyboardInterrupt

    def noted(model: Any, prompts: list[Any], **options: Any) -> Any:
        asked.append([prompt.index for prompt in prompts])
        return write(model, prompts, **options)

    monkeypatch.setattr(generation, "write", noted)
    monkeypatch.setattr(Parts, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_files)
    assert generated_names() == []
    there = sorted(Parts(tiny_job(*tiny_files).request).read())
    monkeypatch.setattr(Parts, "put", put)
    manifest = run(tiny_files)
    assert asked == [list(range(12)), [index for index in range(12) if index not in there]]
    assert [facts.index for facts in manifest.texts] == list(range(12))
    run(tiny_files, n_texts=14, name="more")
    assert asked[2] == [12, 13]


def test_a_finished_source_is_left_as_it_is_without_loading_a_model(
    tiny_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = run(tiny_files)
    monkeypatch.setattr(models, "load_model", None)
    assert run(tiny_files) == manifest
    with pytest.raises(InputError, match="was generated otherwise"):
        tiny_job(*tiny_files, seed=1)


def start(files: Files, pause: float) -> "subprocess.Popen[str]":
    script = Path(__file__).parent / "tiny_synthesis.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script), *map(str, files), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_process_is_taken_over_by_two_that_do_not_disturb_each_other(tiny_files: Files) -> None:
    folder = Parts(tiny_job(*tiny_files).request).folder
    killed = start(tiny_files, pause=60)
    while not list(folder.glob("*.jsonl")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    finished = len(Parts(tiny_job(*tiny_files).request).read())
    assert 0 < finished < N_TEXTS and generated_names() == []
    both = [start(tiny_files, pause=0.05) for _ in range(2)]
    for process in both:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "12 texts (12 asked" in output
    assert sorted(path.name for path in generated_home().iterdir()) == [".parts", "tiny"]
    taken_over = documents()
    for file in folder.glob("*.jsonl"):
        file.unlink()
    manifest = run(tiny_files, name="alone")
    alone = zip(documents("alone"), taken_over, manifest.texts, strict=True)
    assert all(a == b for a, b, facts in alone if (facts.margin or 0) > 1e-5)


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prefix_source": "c5"}, "unknown source 'c5'. Did you mean 'c4'"),
        ({"prefix_source": "c4:1,code:1"}, "is a mixture"),
        ({"prefix_source": "random"}, "source 'random' has no documents"),
        ({"model": "smollm"}, "unknown model 'smollm'. Did you mean 'smollm2-135m'"),
        ({"n_texts": 1000}, "calibration documents, and each begins one text: 1000 texts were asked"),
        ({"new_tokens": 62}, "start token + prefix + new tokens = 65 is longer than the context of tiny: 64 tokens"),
        ({"end_of_text": "bann"}, "unknown end-of-text policy 'bann'. Did you mean 'ban'"),
        ({"temperature": 0}, "temperature = 0: Input should be greater than 0"),
        ({"tempreature": 1}, "unknown parameter 'tempreature'. Did you mean 'temperature'"),
        ({"batch_size": 0}, "--batch-size 0: at least 1"),
        ({"dtype": "float16"}, "dtype 'float16': allowed are"),
        ({"name": "a/b"}, "name 'a/b': use letters"),
        ({"out": Path("somewhere")}, "give --name or --out, not both"),
    ],
)
def test_bad_requests(tiny_files: Files, change: dict[str, Any], said: str) -> None:
    fields: dict[str, Any] = {"model": str(tiny_files[0]), "prefix_source": str(tiny_files[1]), "name": "x"}
    with pytest.raises(InputError) as caught:
        SynthesisJob.checked(**({**fields, "n_texts": 3, "new_tokens": 5} | change))
    assert said in str(caught.value)
    assert not generated_home().exists()


def test_nothing_usable_is_an_error_that_keeps_the_texts(tmp_path: Path, tiny_files: Files) -> None:
    job = tiny_job(*tiny_files, prefix_source=None, prefix_len=0, n_texts=1, new_tokens=1, end_of_text="stop")
    ends = Row((), TextFacts(index=0, n_scored=0, ends=1))
    Parts(job.request).put([ends])
    with pytest.raises(InputError, match="none of the 1 texts can be used"):
        job.run(print)
    assert generated_names() == []


def test_names_say_what_was_asked_and_paths_are_taken_as_they_are(tiny_files: Files, tmp_path: Path) -> None:
    first, other = (tiny_job(*tiny_files, name=None, seed=seed) for seed in (0, 1))
    assert first.source.startswith("selfgen:tiny-own-2-") and first.source != other.source
    assert first.folder.parent == generated_home()
    job = tiny_job(*tiny_files, name=None, out=tmp_path / "there")
    assert job.source == str(tmp_path / "there")
    job.run(print)
    assert load_documents(job.source, "calibration")
    model = tiny_model_directory(tmp_path / "odd name")
    odd = tiny_job(model, tiny_files[1], name=None, prefix_len=0, prefix_source=None)
    assert odd.source.startswith("selfgen:odd-name-start-0-")


# --- by hand ----------------------------------------------------------------------------------------------


def test_unusable_texts_are_counted_by_hand() -> None:
    def row(perplexity: float | None = 2.0, ends: int = 0) -> Row:
        return Row((1,), TextFacts(index=0, n_scored=1, perplexity=perplexity, ends=ends))

    texts = ["\none  two ", " \n", "bro\ufffdken", "one two", "three", "four"]
    rows = [row(), row(ends=1), row(), row(), row(ends=2), row(perplexity=None)]
    kept, counts = usable(rows, texts)
    assert [text for text, _ in kept] == ["one  two", "three"]
    assert counts == {"asked": 6, "kept": 2, "end_of_text": 2, "empty": 2, "broken": 1, "repeated": 1}


def test_a_summary_tells_loops_from_text(tiny_files: Files) -> None:
    manifest = run(tiny_files)
    loops = manifest.texts[0].model_copy(update={"repeated": 0.9})
    lines = summary(manifest.model_copy(update={"texts": (loops, *manifest.texts[1:])}))
    assert lines[0].startswith("12 texts (12 asked, 12 kept")
    assert lines[1].startswith("perplexity of a text: median ")
    assert lines[2].endswith("more than half in 1 texts")
    assert synthesis.content_of(resolve_model(str(tiny_files[0]))) is not None
