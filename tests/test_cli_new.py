"""The command `new`, and a run of what it made: which parameters and profiles hold, before a kernel starts."""

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli import run

from calib_study import notebooks
from calib_study.cli import app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_says_the_next_commands_and_they_can_be_typed(folder: Path) -> None:
    result = CliRunner().invoke(app, ["new", "studies/mine"], catch_exceptions=False)
    assert result.output.splitlines() == [
        "studies/mine.py",
        "studies/mine.ipynb",
        "",
        "Run it:             calib-study run studies/mine.py -p sparsity 0.6",
        "or:                 papermill studies/mine.ipynb studies/mine.out.ipynb -p sparsity 0.6",
        "After you edit one: jupytext --sync studies/mine.py",
    ]
    assert (folder / "studies" / "mine.ipynb").is_file()


def test_a_parameter_that_the_chapter_has_is_shown(folder: Path) -> None:
    shown = CliRunner().invoke(app, ["new", "mine", "--from", "07"], catch_exceptions=False).output
    assert "calib-study run mine.py -p profile VALUE" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "mine", "--from", "01_data_source"], "Did you mean '01_data_sources'"),
        (["new", "mine", "--from", "other.py"], "name a notebook of the book"),
        (["new", "a b"], "use letters, digits"),
        (["new", "there"], "is not overwritten"),
        (["run", "there.py", "-p", "sparsty", "0.6"], "unknown parameter 'sparsty'. Did you mean 'sparsity'?"),
        (["run", "there.py", "-p", "sparsity", "1.5"], "sparsity = 1.5: Input should be less than 1"),
        (["run", "there.py", "--profile", "smoek"], "unknown profile of 01_data_sources 'smoek'"),
    ],
)
def test_bad_requests(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    CliRunner().invoke(app, ["new", "there"], catch_exceptions=False)
    (folder / "other.py").write_text("# %%\n1\n")
    assert run(monkeypatch, arguments) == 2
    assert message in capsys.readouterr().err


def test_a_copy_is_run_with_its_chapters_profile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CliRunner().invoke(app, ["new", "mine"], catch_exceptions=False)
    seen: list[tuple[str, dict[str, object]]] = []

    def pretend(name: str, given: dict[str, object], output: Path) -> Path:
        seen.append((name, given))
        return output

    monkeypatch.setattr(notebooks, "run_notebook", pretend)
    line = "run mine.py --profile smoke -p sparsity 0.6"
    result = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
    assert result.output == "mine.executed.ipynb\n"
    ((name, given),) = seen
    expected = notebooks.profile_parameters("01_data_sources", "smoke") | {"sparsity": 0.6}
    assert (name, given) == ("mine.py", expected)
