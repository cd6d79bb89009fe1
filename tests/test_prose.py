"""The prose: what pages cite, glue and tell readers to type exists; worked examples are what the code computes."""

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from calib_study import __version__, masks, scores
from calib_study.dsnot import dsnot, output_shift
from calib_study.methods import Pattern
from calib_study.owl import allocate
from calib_study.paths import root
from calib_study.sparsegpt import inverse_factor, reconstruction_error, sparsegpt

CHAPTER = "notebooks/01_data_sources"
# What chapter 1 glues for the prose. Add a key here, in the notebook, and then on a page.
GLUE_KEYS = {
    "best_source",
    "crossed_by_method",
    "crossed_by_text",
    "crossed_difference",
    "dense_ppl_c4",
    "front_page",
    "magnitude_ppl_c4",
    "method_gap",
    "n_crossed",
    "n_records",
    "n_seeds",
    "n_sources",
    "null_q95",
    "share_interaction",
    "share_method",
    "share_seed",
    "share_source",
    "source_range",
    "sparsity",
    "verdict_crossed",
    "verdict_source",
    "verdict_vs_method",
    "wanda_c4_ppl_c4",
    "worst_source",
}
PAGES = sorted((root() / "book").glob("*.md"))
DOCUMENTS = [*PAGES, root() / "README.md", root() / "CONTRIBUTING.md"]
NOTEBOOKS = sorted((root() / "notebooks").glob("[0-9][0-9]_*.py"))
COPY = {"my_study.py", "my_study.ipynb"}  # that pages let a reader make of chapter 1, by `calib-study new`


def by_name(path: Path) -> str:
    return path.name


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def glued(text: str) -> set[str]:
    """Return the keys that a page takes from chapter 1, inline or as a block."""
    inline = re.findall(r"\{glue:text\}`([^`]+)`", text)
    blocks = re.findall(r"```\{glue\} (\w+)\n:doc: (\S+)", text)
    given = [item.partition("::")[::2] for item in inline] + [(doc, key) for key, doc in blocks]
    assert {doc for doc, _ in given} <= {f"{CHAPTER}.ipynb"}
    assert all(item.endswith(":s") for item in inline)  # without a format myst-nb misreads a key of another page
    return {key.partition(":")[0] for _, key in given}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_pages_use_known_glue_keys(page: Path) -> None:
    assert glued(read(page)) <= GLUE_KEYS


def test_every_known_glue_key_is_used() -> None:
    assert set().union(*(glued(read(page)) for page in PAGES)) == GLUE_KEYS


def test_the_notebook_glues_what_the_prose_needs() -> None:
    """The keys are literals of the notebook: `glue("key", ...)`, a dict's key, or a keyword argument."""
    tree = ast.parse(read(root() / f"{CHAPTER}.py"))
    literals = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    literals |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert literals >= GLUE_KEYS


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=by_name)
def test_citations_are_in_the_bibliography(page: Path) -> None:
    entries = re.findall(r"^@\w+\{([^,\s]+),", read(root() / "book" / "references.bib"), re.MULTILINE)
    assert len(entries) == len(set(entries))
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", read(page)) for key in keys.split(",")}
    assert cited <= set(entries)


@pytest.mark.parametrize("page", [*DOCUMENTS, *NOTEBOOKS], ids=by_name)
def test_fences_are_fences(page: Path) -> None:
    """A caption with a backtick turns a directive of backticks into running text, without a warning."""
    opening = re.findall(r"^(?:# )?```+\{.*$", read(page), re.MULTILINE)
    assert [line for line in opening if "`" in line.lstrip("# ").lstrip("`")] == []


def shell_lines(text: str) -> list[str]:
    """Return the commands of a document's shell blocks, continued lines joined, and those in `code`."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`((?:calib-study|papermill|make) [^`\n]+)`", text)


def commands(program: str) -> list[Any]:
    """Return each command that documents show for a program, split as a shell would, as pytest parameters."""
    return [
        pytest.param(words[1:], id=f"{path.name}: {line[:60]}")
        for path in DOCUMENTS
        for line in dict.fromkeys(shell_lines(read(path)))
        if (words := shlex.split(line.removeprefix("$ "), comments=True)) and Path(words[0]).name == program
    ]


@pytest.mark.parametrize("words", commands("calib-study"))
def test_calib_study_commands_exist(words: list[str]) -> None:
    """Subcommand and options exist; values are not run."""
    from calib_study.cli import app

    assert words[0] in app.commands
    command = app.commands[words[0]]
    if command.context_settings.get("ignore_unknown_options"):  # `bench` hands all but a name to a program
        words = words[:1]
    options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    assert {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)} <= options


@pytest.mark.parametrize("words", commands("calib-study") + commands("papermill"))
def test_shown_parameters_and_notebooks_exist(words: list[str]) -> None:
    from calib_study.notebooks import profile_names, resolve_notebook
    from calib_study.parameters import SCHEMAS

    notebooks = [word for word in words if re.match(r"(?:notebooks/)?\d\d_\w+(?:\.ipynb)?$", word)]
    for name in notebooks:
        assert resolve_notebook(name).stem in SCHEMAS
    if not notebooks and COPY.intersection(words):
        notebooks = ["01_data_sources"]
    for flag, name in pairwise(words):
        if flag == "-p":
            assert name in SCHEMAS[Path(notebooks[0]).stem].model_fields
        if flag == "-y":
            assert set(yaml.safe_load(name)) <= set(SCHEMAS[Path(notebooks[0]).stem].model_fields)
        if flag == "--profile":
            assert name in profile_names(Path(notebooks[0]).stem)


@pytest.mark.parametrize("words", commands("make"))
def test_make_targets_exist(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", read(root() / "Makefile"), re.MULTILINE)
    assert words[0] in targets


def test_parameter_table_is_complete() -> None:
    from calib_study.parameters import SCHEMAS

    table = read(root() / "book" / "rerun.md").partition(":name: tab-parameters")[2].partition("\n```")[0]
    named = {name for row in re.findall(r"^\* - (.+)$", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(SCHEMAS["01_data_sources"].model_fields)


def test_worked_row() -> None:
    """W = [4, -3, 2, 1], norms [1, 2, 8, 8]: |W| * norm = 4, 6, 16, 8, of which columns 0 and 1 are lowest."""
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0]])
    worth = scores.wanda(weight, torch.tensor([1.0, 2.0, 8.0, 8.0]))
    assert worth.tolist() == [[4, 6, 16, 8]]
    by_wanda = masks.lowest_per_row(worth, 2)
    by_size = masks.lowest_per_row(scores.magnitude(weight), 2)
    assert by_wanda.tolist() == [[True, True, False, False]]
    assert by_size.tolist() == [[False, False, True, True]]
    # cost of each choice, squared scores of what goes: 16 + 36 = 52 and 256 + 64 = 320
    assert [worth[removed].square().sum().item() for removed in (by_wanda, by_size)] == [52, 320]
    # the class question: norms [8, 8, 2, 1] give 32, 24, 4, 1
    other = scores.wanda(weight, torch.tensor([8.0, 8.0, 2.0, 1.0]))
    assert other.tolist() == [[32, 24, 4, 1]]


def test_worked_groups_and_pattern() -> None:
    """The lowest 4 of 8 by layer are the small row; 2:4 removes two of each four: 16 + 36 + 1 + 4 = 57, not 30."""
    size = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.4, 0.3, 0.2, 0.1]])
    assert masks.lowest_per_row(size.reshape(1, -1), 4).reshape(2, 4).tolist() == [[False] * 4, [True] * 4]
    assert masks.lowest_per_row(size, 2).tolist() == [[False, False, True, True]] * 2
    row = torch.tensor([[4.0, 6.0, 16.0, 8.0, 9.0, 1.0, 2.0, 3.0]])
    anywhere, two_of_four = masks.lowest_per_row(row, 4), masks.lowest_n_of_m(row, 2, 4)
    assert anywhere.nonzero()[:, 1].tolist() == [0, 5, 6, 7]
    assert two_of_four.nonzero()[:, 1].tolist() == [0, 1, 5, 6]
    assert [row[removed].square().sum().item() for removed in (anywhere, two_of_four)] == [30, 57]


def test_worked_sparsegpt() -> None:
    """W = [1, 2], G = [[4, 2], [2, 4]]: U = [[1/sqrt 3, -1/sqrt 12], [0, 1/2]], so S = [sqrt 3, 4].

    Column 0 goes; its neighbour becomes 2 + sqrt 3 / sqrt 12 = 2.5. Error: 1 * 4 - 2 * 1 * 0.5 * 2 + 0.25 * 4 = 3.
    """
    weight, gram = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[4.0, 2.0], [2.0, 4.0]]).double()
    factor = inverse_factor(gram, 0, "row")
    torch.testing.assert_close(factor, torch.tensor([[3**-0.5, -(12**-0.5)], [0, 0.5]]).double())
    torch.testing.assert_close(weight.abs() / factor.diagonal(), torch.tensor([[3**0.5, 4.0]]).double())
    [(new, removed)] = sparsegpt([weight], gram, 0.5, Pattern(), damping=0, layer="row")
    assert removed.tolist() == [[True, False]]
    torch.testing.assert_close(new, torch.tensor([[0, 2.5]]).double())
    assert reconstruction_error(weight, new, gram) == pytest.approx(3)
    assert reconstruction_error(weight, weight.masked_fill(removed, 0), gram) == 4


def test_worked_exchange() -> None:
    """W = [1, 2, 3, -4, 5, 6], all else 1: 1 + 2 + 3 = 6; 3 comes back and -4 goes: 6 - 3 - 4 = -1, and no more."""
    weight, ones = torch.tensor([[1.0, 2.0, 3.0, -4.0, 5.0, 6.0]]), torch.ones(6)
    first = masks.lowest_per_row(scores.wanda(weight, ones), 3)
    assert first.tolist() == [[True, True, True, False, False, False]]
    refined = dsnot(weight, first, weight.abs(), ones, ones, pattern=Pattern())
    assert refined.tolist() == [[True, True, False, True, False, False]]
    assert [output_shift(weight, removed, ones).item() for removed in (first, refined)] == [6, -1]


def test_worked_allocation() -> None:
    """Shares [1, 2, 5] scaled: [0, 0.25, 1], mean 0.4167; 0.7 + 0.16 * [0.4167, 0.1667, -0.5833]."""
    assert [round(share, 4) for share in allocate([1, 2, 5], 0.7, lam=0.08)] == [0.7667, 0.7267, 0.6067]


def test_option_table_is_complete() -> None:
    from calib_study.methods import METHODS

    table = read(root() / "book" / "rerun.md").partition(":name: tab-options")[2].partition("\n```")[0]
    named = re.findall(r"^  - `(\w+)`\n  - ([^\n]+)", table, re.MULTILINE)
    expected = {name for method in METHODS.values() for name in method.options}
    assert {name for name, _ in named if name in expected} == expected
    defaults = {name: value for method in METHODS.values() for name, value in method.options.items()}
    shown = {name: text.strip("`") for name, text in named if name in expected}
    assert shown.pop("threshold") == "0.1 / 2048"
    assert defaults.pop("threshold") == 0.1 / 2048
    assert shown == {name: str(value) for name, value in defaults.items()}


def test_citation_file_agrees_with_the_package() -> None:
    citation = yaml.safe_load(read(root() / "CITATION.cff"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["authors"]
    bibliography = read(root() / "book" / "references.bib")
    for work in citation["references"]:
        assert f"{{{work['title']}}}" in bibliography


@pytest.mark.parametrize("path", DOCUMENTS, ids=by_name)
def test_documents_name_files_that_exist(path: Path) -> None:
    """Files and modules of the project in `code` exist, patterns such as NN_slug apart."""
    named = re.findall(r"`((?:book|notebooks|calib_study|data|tests)/[\w./-]+\.\w+)`", read(path))
    assert [name for name in named if not (root() / name).exists() and "NN_" not in name] == []
    modules = re.findall(r"`calib_study\.(\w+)", read(path))
    assert [name for name in modules if not (root() / "calib_study" / f"{name}.py").is_file()] == []
