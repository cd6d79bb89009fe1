"""The page on one's own model, text and method: its blocks are run in their order, on a tiny model."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_study import tiny_model_directory, tiny_source

from calib_study.cli import app
from calib_study.paths import root
from calib_study.records import Store

PAGE = (root() / "book" / "your_own.md").read_text(encoding="utf-8")
SMALLER = {
    "N_SAMPLES, SEQ_LEN = 32, 256": "N_SAMPLES, SEQ_LEN = 4, 16",
    "EVAL_WINDOWS, EVAL_SEQ_LEN = 8, 512": "EVAL_WINDOWS, EVAL_SEQ_LEN = 4, 16",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page calls `my-model` and `my-texts.txt`, and a cache and records of its own."""
    tiny_model_directory(tmp_path / "my-model")
    tiny_source(tmp_path / "my-texts.txt", n_documents=200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALIB_STUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALIB_STUDY_RECORDS", str(tmp_path / "records"))
    return tmp_path


@pytest.mark.tiny
def test_the_pages_script_runs_and_its_runs_are_stored(folder: Path) -> None:
    script = "\n\n".join(blocks("python"))
    for old, new in SMALLER.items():
        assert script.count(old) == 1
        script = script.replace(old, new)
    (folder / "page.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"], capture_output=True, text=True, env=dict(os.environ), timeout=300
    )
    assert done.returncode == 0, done.stderr
    records, problems = Store(folder / "records").scan()  # here the method is not registered
    assert problems == []
    kinds = sorted((one.spec.method, Path(one.spec.calibration.source).name) for one in records if one.spec.calibration)
    texts = [("root-norm", "my-texts.txt"), ("wanda", "backwards"), ("wanda", "my-texts.txt")]
    assert kinds == [kind for kind in texts for _ in range(3)]
    assert len(records) == len(kinds) + 2  # the dense model, and magnitude
    assert {one.spec.method_hash is not None for one in records if one.spec.method == "root-norm"} == {True}
    assert re.search(r"^method +root-norm +wanda$", done.stdout, re.MULTILINE)
    assert re.search(r"^source +backwards +\S+my-texts.txt$", done.stdout, re.MULTILINE)
    assert re.search(r"^perplexity +\S*my-texts.txt .* 3 seeds ", done.stdout, re.MULTILINE)


@pytest.mark.tiny
def test_the_pages_prune_command_runs(folder: Path) -> None:
    (line,) = [one for one in blocks("bash")[0].replace("\\\n", " ").splitlines() if one]
    smaller = line.replace("--n-samples 32", "--n-samples 4").replace("--seq-len 256", "--seq-len 16")
    result = CliRunner().invoke(app, shlex.split(smaller)[1:], catch_exceptions=False)
    assert result.exit_code == 0
    assert (folder / "pruned-mine" / "record.json").is_file()
    compared = CliRunner().invoke(app, ["compare", "pruned-mine", "pruned-mine/record.json"])
    assert "A and B are the same" in str(compared.exception)


def test_the_pages_comparisons_of_published_records_run() -> None:
    """Together a few seconds, most of them for reading all records."""
    block = next(block for block in blocks("bash") if "calib-study compare" in block)
    for line in block.replace("\\\n", " ").splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0
        assert "perplexity" in result.output


def test_the_page_makes_the_notebook_that_it_runs(folder: Path) -> None:
    lines = next(block for block in blocks("bash") if "calib-study new" in block).splitlines()
    result = CliRunner().invoke(app, shlex.split(lines[0])[1:], catch_exceptions=False)
    assert result.exit_code == 0
    for line in lines[1:]:
        (name,) = re.findall(r"\bmy_study\.(?:py|ipynb)\b", line)
        assert (folder / name).is_file()
