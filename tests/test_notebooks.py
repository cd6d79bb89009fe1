"""Tests of calib_study.notebooks, on tiny notebooks in a project folder made for each test; no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from calib_study import notebooks, paths
from calib_study.errors import InputError, StudyError
from calib_study.notebooks import (
    notebook_names,
    notebook_stamp,
    profile_names,
    profile_parameters,
    read_notebook,
    resolve_notebook,
    run_notebook,
    sync,
    up_to_date,
)

SOURCE = """\
# %% [markdown]
# # Does it run?

# %% tags=["parameters"]
factor: int = 2  # what 21 is multiplied with
flag: bool = False  # does nothing

# %%
import sys
answer = factor * 21
print(sys.executable, flush=True)

# %%
{last}
"""


class Cfg(BaseModel):
    """The parameters of SOURCE."""

    model_config = ConfigDict(extra="forbid")
    factor: int = 2
    flag: bool = False


def check(slug: str, given: dict[str, Any]) -> BaseModel:
    """Stand in for `parameters.validate`."""
    try:
        return Cfg(**given)
    except ValidationError as error:
        raise InputError(f"bad parameters of {slug}: {error}") from error


def test_the_projects_pairs_agree_and_carry_no_outputs() -> None:
    names = notebook_names()
    assert names, "the project has no notebooks"
    assert sync(write=False) == [], "run `make sync`: these .ipynb differ from their .py"
    for slug in names:
        for cell in json.loads((notebooks.notebooks_dir() / f"{slug}.ipynb").read_text())["cells"]:
            assert cell.get("outputs", []) == []
            assert cell.get("execution_count") is None


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the notebooks 01_alpha and 02_beta and one profile."""
    for folder in ("notebooks/profiles", "data/results", "package"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "catalogue.toml").write_text("")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "notebooks" / "01_alpha.py").write_text(SOURCE.format(last="answer"))
    (tmp_path / "notebooks" / "02_beta.py").write_text(SOURCE.format(last="answer"))
    (tmp_path / "notebooks" / "profiles" / "01_alpha.smoke.yml").write_text("factor: 3\n")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setattr(notebooks, "PACKAGE", tmp_path / "package")
    return tmp_path


# --- names and profiles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["01_alpha", "01", "1", "01_alpha.ipynb", "notebooks/01_alpha.py"])
def test_a_notebook_is_found_by_slug_number_or_file_name(project: Path, name: str) -> None:
    assert resolve_notebook(name) == project / "notebooks" / "01_alpha.py"


def test_a_path_means_that_very_file(project: Path) -> None:
    sync()
    given = project / "notebooks" / "01_alpha.ipynb"
    assert resolve_notebook(given) == given.resolve()


@pytest.mark.parametrize("name", ["01_alpa", "03", "elsewhere/05_no.ipynb", ""])
def test_an_unknown_notebook_is_refused_with_the_known_ones(project: Path, name: str) -> None:
    with pytest.raises(InputError, match="unknown notebook") as caught:
        resolve_notebook(name)
    assert "01_alpha, 02_beta" in str(caught.value)


def test_near_matches_of_an_unknown_notebook(project: Path) -> None:
    with pytest.raises(InputError, match="Did you mean '01_alpha'"):
        resolve_notebook("01_alhpa")


def test_profiles(project: Path) -> None:
    assert profile_names("01_alpha") == ["smoke"]
    assert profile_names("02_beta") == []
    assert profile_parameters("01_alpha", "smoke") == {"factor": 3}
    with pytest.raises(InputError, match="Did you mean 'smoke'"):
        profile_parameters("01_alpha", "smoek")


def test_a_profile_that_is_no_mapping_is_refused(project: Path) -> None:
    (project / "notebooks" / "profiles" / "02_beta.odd.yml").write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="name: value"):
        profile_parameters("02_beta", "odd")


# --- pairs ------------------------------------------------------------------------------------------------


def test_sync_writes_once_and_only_what_changed(project: Path) -> None:
    folder = project / "notebooks"
    assert sync(write=False) == [folder / "01_alpha.ipynb", folder / "02_beta.ipynb"]
    assert not (folder / "01_alpha.ipynb").exists()
    assert len(sync()) == 2
    assert sync() == []
    before = json.loads((folder / "01_alpha.ipynb").read_text())["cells"]
    source = folder / "01_alpha.py"
    source.write_text(source.read_text().replace("factor * 21", "factor * 22"))
    assert sync() == [folder / "01_alpha.ipynb"]
    after = json.loads((folder / "01_alpha.ipynb").read_text())["cells"]
    # Of the four cells only the third was edited; the others keep their ids.
    assert [a["id"] == b["id"] for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_a_pair_is_a_valid_notebook_with_unique_ids_and_the_parameters_tag(project: Path) -> None:
    source = project / "notebooks" / "01_alpha.py"
    source.write_text(source.read_text() + "\n# %%\nanswer\n")  # the same text as the cell before
    notebook = read_notebook(source)
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells) == 5
    assert notebook.cells[1].metadata["tags"] == ["parameters"]
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_a_file_that_is_no_notebook_is_refused(project: Path) -> None:
    (project / "odd.ipynb").write_text("hello")
    with pytest.raises(InputError, match="is not a notebook"):
        read_notebook(project / "odd.ipynb")


# --- stamps -----------------------------------------------------------------------------------------------


def test_the_stamp_follows_everything_a_run_depends_on(project: Path) -> None:
    source = project / "notebooks" / "01_alpha.py"
    stamps = [notebook_stamp(source, {"factor": 3})]
    assert stamps[0] == notebook_stamp(source, {"factor": 3})
    stamps.append(notebook_stamp(source, {"factor": 4}))
    (project / "data" / "catalogue.toml").write_text("# another\n")
    stamps.append(notebook_stamp(source, {"factor": 3}))
    (project / "data" / "results" / "0123456789abcdef.json").write_text("{}")
    stamps.append(notebook_stamp(source, {"factor": 3}))
    (project / "package" / "prune.py").write_text("x = 1\n")
    stamps.append(notebook_stamp(source, {"factor": 3}))
    (project / "requirements.txt").write_text("torch==3\n")
    stamps.append(notebook_stamp(source, {"factor": 3}))
    source.write_text(source.read_text() + "\n")
    stamps.append(notebook_stamp(source, {"factor": 3}))
    assert len(set(stamps)) == len(stamps) == 7


def test_an_output_without_stamp_is_out_of_date(project: Path) -> None:
    output = project / "out.ipynb"
    assert not up_to_date(output, "s")
    output.write_text("{")
    assert not up_to_date(output, "s")
    output.write_text('{"metadata": {"calib_study": {"stamp": "s"}}}')
    assert up_to_date(output, "s")
    assert not up_to_date(output, "t")


# --- runs -------------------------------------------------------------------------------------------------


def no_kernel(*_: Any) -> str:
    raise AssertionError("a kernel was started")


@pytest.mark.parametrize("given", [{"facter": 3}, {"factor": "three"}])
def test_wrong_parameters_stop_before_a_kernel_starts(
    project: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(notebooks, "_execute", no_kernel)
    with pytest.raises(InputError, match=next(iter(given))):
        run_notebook("01_alpha", given, project / "out.ipynb", validate=check)
    assert not (project / "out.ipynb").exists()


def test_an_output_that_cannot_be_written_stops_before_a_kernel_starts(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebooks, "_execute", no_kernel)
    (project / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        run_notebook("01_alpha", {}, project / "file" / "out.ipynb", validate=check)
    with pytest.raises(InputError, match=r"\*\.ipynb"):
        run_notebook("01_alpha", {}, project / "out.html", validate=check)


def test_a_clean_run_injects_the_checked_values_in_this_interpreter(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A kernel named python3 installed elsewhere must not be taken.
    decoy = tmp_path_factory.mktemp("jupyter")
    (decoy / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": ["/no/such/python", "{connection_file}"], "display_name": "decoy", "language": "python"}
    (decoy / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(decoy))
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    output = project / "{braces}" / "out.ipynb"
    given = {"factor": "3", "flag": "true"}  # as a command line would give them
    assert run_notebook("01", given, output, validate=check, progress=False) == output
    notebook = nbformat.read(output, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "factor = 3\nflag = True" in code[1].source
    assert code[2].outputs[0]["text"].strip() == sys.executable
    assert code[3].outputs[0]["data"]["text/plain"] == "63"  # 3 x 21
    assert notebook.metadata["calib_study"]["parameters"] == {"factor": 3, "flag": True}
    assert str(project) not in output.read_text()
    assert up_to_date(output, notebook_stamp(project / "notebooks" / "01_alpha.py", given))
    assert [path.name for path in output.parent.iterdir()] == ["out.ipynb"]
    assert list(temporary.iterdir()) == []  # neither the working copy nor the kernel's sockets stay


def test_a_failed_cell_is_reported_and_its_copy_kept(project: Path) -> None:
    (project / "notebooks" / "01_alpha.py").write_text(
        SOURCE.format(last="raise ValueError('too big: ' + str(answer))")
    )
    output = project / "out.ipynb"
    with pytest.raises(StudyError, match="ValueError: too big: 42") as caught:
        run_notebook("01_alpha", {}, output, validate=check, progress=False)
    kept = project / "out.failed.ipynb"
    assert str(kept) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= notebooks.SHOWN_LINES + 2
    assert "\x1b" not in str(caught.value)
    assert kept.is_file() and not output.exists()


def test_a_killed_kernel_leaves_no_output_and_an_old_one_untouched(project: Path) -> None:
    (project / "notebooks" / "01_alpha.py").write_text(SOURCE.format(last="import os; os._exit(1)"))
    output = project / "out.ipynb"
    output.write_text("the old one")
    with pytest.raises(StudyError, match="lost its kernel"):
        run_notebook("01_alpha", {}, output, validate=check, progress=False)
    assert output.read_text() == "the old one"


def test_leaving_early_without_an_error_is_a_failure(project: Path) -> None:
    (project / "notebooks" / "01_alpha.py").write_text(SOURCE.format(last="raise SystemExit(0)\n# %%\nanswer"))
    with pytest.raises(StudyError, match="stopped before its last cell"):
        run_notebook("01_alpha", {}, project / "out.ipynb", validate=check, progress=False)


def test_progress_bars_are_shown_while_running_and_not_kept(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = "import sys; print('\\rhalf', end='\\rdone', file=sys.stderr, flush=True); answer"
    (project / "notebooks" / "01_alpha.py").write_text(SOURCE.format(last=bar))
    output = run_notebook("01_alpha", {}, project / "out.ipynb", validate=check)
    shown = capsys.readouterr().err
    assert "01_alpha" in shown and "half" in shown
    assert "half" not in "".join(str(cell.get("outputs")) for cell in nbformat.read(output, 4).cells)


def test_importing_the_runner_starts_nothing_heavy() -> None:
    code = (
        "import sys, calib_study.notebooks\n"
        "heavy = {'torch', 'papermill', 'jupytext', 'nbformat', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr
