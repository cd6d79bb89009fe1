"""Notebooks copied for a study of one's own: whole, paired, never over something, run by the rules of their chapter."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_notebooks import check, project

from calib_study.errors import InputError
from calib_study.notebooks import (
    notebook_names,
    notebooks_dir,
    parameter_defaults,
    read_notebook,
    resolve_notebook,
    run_notebook,
    study_slug,
)
from calib_study.parameters import SCHEMAS, validate
from calib_study.templates import new_study

__all__ = ["project"]  # a fixture
HEADER = "# ---\n# jupyter:\n#   jupytext:\n#     text_representation:\n#       extension: .py\n# ---\n\n"
CHECKED = '# %%\nfrom elsewhere import check\ncfg = check("01_alpha", globals())\n'


@pytest.fixture
def beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where one works."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("slug", notebook_names())
def test_a_copy_keeps_everything(slug: str, beginning: Path) -> None:
    script, pair = new_study("mine", slug)
    assert (script, pair) == (beginning / "mine.py", beginning / "mine.ipynb")
    source = notebooks_dir() / f"{slug}.py"
    added = set(script.read_text().splitlines()) - set(source.read_text().splitlines())
    assert added == {"#     formats: ipynb,py:percent"}
    cells = [(cell.cell_type, cell.source, cell.metadata) for cell in read_notebook(source).cells]
    for path in (script, pair):
        assert [(cell.cell_type, cell.source, cell.metadata) for cell in read_notebook(path).cells] == cells
        assert study_slug(path) == slug
        assert parameter_defaults(path) == parameter_defaults(source)
        assert set(parameter_defaults(path)) == set(SCHEMAS[slug].model_fields)
        assert resolve_notebook(path) == path
        validate(study_slug(path), parameter_defaults(path))
    nbformat.validate(nbformat.read(pair, as_version=4))


@pytest.mark.parametrize("name", ["mine", "mine.py", "mine.ipynb"])
def test_a_name_may_be_a_path_with_or_without_suffix(name: str, beginning: Path) -> None:
    assert new_study(f"studies/{name}", "1")[0] == beginning / "studies" / "mine.py"
    assert sorted(path.name for path in (beginning / "studies").iterdir()) == ["mine.ipynb", "mine.py"]


@pytest.mark.parametrize("there", ["mine.py", "mine.ipynb"])
def test_nothing_is_overwritten(there: str, beginning: Path) -> None:
    (beginning / there).write_text("my work")
    with pytest.raises(InputError, match=f"{there} is there already, and is not overwritten"):
        new_study("mine", "01")
    assert [path.name for path in beginning.iterdir()] == [there]
    assert (beginning / there).read_text() == "my work"


def test_what_cannot_be_is_refused(beginning: Path) -> None:
    with pytest.raises(InputError, match="Did you mean '01_data_sources'"):
        new_study("mine", "01_data_source")
    for unfit in ("", "a b", "{mine}", "mine.txt", "."):
        with pytest.raises(InputError, match="of a notebook: use letters"):
            new_study(unfit, "01")
    with pytest.raises(InputError, match="holds the chapters of the book"):
        new_study(str(notebooks_dir() / "12_mine"), "01")
    (beginning / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        new_study("file/mine", "01")


def test_jupytext_knows_the_pair(beginning: Path) -> None:
    script, pair = new_study("mine", "01")
    script.write_text(script.read_text() + "\n# %%\nmine = 1\n")
    done = subprocess.run([sys.executable, "-m", "jupytext", "--sync", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert nbformat.read(pair, as_version=4).cells[-1].source == "mine = 1"


def test_a_copy_runs_with_the_parameters_of_its_chapter(project: Path, beginning: Path) -> None:
    chapter = project / "notebooks" / "01_alpha.py"
    stub = "import sys\n\n\nclass stub:\n    check = staticmethod(lambda slug, given: slug)\n\n\n"
    stub += "sys.modules['elsewhere'] = stub"
    chapter.write_text(HEADER + chapter.read_text() + f"\n# %%\n{stub}\n{CHECKED}\n# %%\ncfg\n")
    script, _ = new_study("mine", "01_alpha")
    asked: list[str] = []

    def checked(slug: str, given: dict[str, Any]) -> Any:
        asked.append(slug)
        return check(slug, given)

    output = run_notebook(script, {"factor": 3}, beginning / "out.ipynb", validate=checked, progress=False)
    assert asked == ["01_alpha"]
    executed = nbformat.read(output, as_version=4)
    assert executed.cells[-1].outputs[0]["data"]["text/plain"] == "'01_alpha'"
    assert executed.metadata["papermill"]["input_path"] == "mine.ipynb"
    assert executed.metadata["calib_study"]["notebook"] == "mine"


def test_a_notebook_without_a_check_has_its_own_name(project: Path) -> None:
    assert study_slug(project / "notebooks" / "01_alpha.py") == "01_alpha"
