"""Tests of calib_study.book, on two pages and one notebook under the project's own _config.yml."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from html_checks import broken_links, check_site, foreign_requests, pictures_without_words, read_pages
from pydantic import BaseModel

from calib_study import book, notebooks, paths
from calib_study.book import book_notebooks, build_book
from calib_study.errors import InputError, StudyError

TOC = """\
format: jb-book
root: intro
parts:
  - chapters:
    - file: notebooks/01_tiny
    - file: more
"""
INTRO = "# Tiny\n\nSee {ref}`more` and [the notebook](notebooks/01_tiny).\n\n$$a^2$$ (eq-a)\n\nBy {eq}`eq-a`.\n"
MORE = "(more)=\n# More\n\nAs {cite:t}`someone` wrote.\n\n```{bibliography}\n```\n"
BIB = "@article{someone, author={A. One}, title={T}, journal={J}, year={2020}}\n"
NOTEBOOK = """\
# %% [markdown]
# # A notebook
# %% tags=["parameters"]
n: int = 2  # how many
# %%
print("n is", n)
"""


class Cfg(BaseModel):
    """The parameters of NOTEBOOK."""

    n: int = 2


def make_project(root: Path) -> Path:
    """Write a small project that has the real configuration and assets; return its folder."""
    real = Path(__file__).resolve().parent.parent
    for folder in ("notebooks/profiles", "data/results", "book"):
        (root / folder).mkdir(parents=True)
    shutil.copyfile(real / "_config.yml", root / "_config.yml")
    shutil.copytree(real / "book" / "assets", root / "book" / "assets", ignore=shutil.ignore_patterns("mathjax"))
    texts = {
        "data/catalogue.toml": "",
        "requirements.txt": "",
        "book/_toc.yml": TOC,
        "book/intro.md": INTRO,
        "book/more.md": MORE,
        "book/references.bib": BIB,
        "notebooks/01_tiny.py": NOTEBOOK,
        "notebooks/profiles/01_tiny.published.yml": "n: 3\n",
        "notebooks/profiles/01_tiny.smoke.yml": "n: 1\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small project, its book built once."""
    root = make_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "root", lambda: root)
        patch.setattr(notebooks, "PACKAGE", root / "package")
        patch.setattr(book, "run_notebook", partial(notebooks.run_notebook, validate=lambda _, given: Cfg(**given)))
        build_book()
        yield root


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to execute a notebook or to render."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this should have been up to date")

    monkeypatch.setattr(book, "run_notebook", refuse)
    monkeypatch.setattr(book, "_jupyter_book", refuse)


# --- a build ----------------------------------------------------------------------------------------------


def test_the_built_book_passes_every_check_and_shows_the_run(project: Path) -> None:
    site = project / "_build" / "html"
    assert check_site(site) == []
    page = (site / "notebooks" / "01_tiny.html").read_text(encoding="utf-8")
    assert "n is 3" in page  # the published profile's value, not the default 2
    assert "notebooks/01_tiny.ipynb" in page  # the launch buttons
    assert "2026" in page
    assert 'data-default-mode="auto"' in page or "document.documentElement.dataset.mode" in page


def test_mathjax_is_served_from_beside_the_pages_and_little_of_it(project: Path) -> None:
    site = project / "_build" / "html"
    assert "_static/mathjax/tex-mml-chtml.js" in (site / "index.html").read_text() + (site / "intro.html").read_text()
    copied = [path for path in (site / "_static" / "mathjax").rglob("*") if path.is_file()]
    assert (site / "_static" / "mathjax" / "tex-mml-chtml.js") in copied
    assert any(path.suffix == ".woff" for path in copied)
    assert sum(path.stat().st_size for path in copied) < 3_000_000  # bytes; the whole package has 24 MB


@pytest.mark.usefixtures("nothing_runs")
def test_a_second_build_with_nothing_changed_does_nothing(project: Path) -> None:
    assert build_book() == project / "_build" / "html" / "index.html"


def test_a_warning_fails_the_build_and_the_old_pages_stay(project: Path) -> None:
    page = project / "book" / "intro.md"
    before = page.read_text()
    index = project / "_build" / "html" / "index.html"
    page.write_text(before + "\nBut {ref}`nowhere`.\n")
    try:
        with pytest.raises(StudyError, match="nowhere") as caught:
            build_book()
        assert "book.log" in str(caught.value)
        assert index.is_file()
    finally:
        page.write_text(before)


def test_another_profile_is_built_apart(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = (project / "book" / "notebooks" / "01_tiny.ipynb").read_bytes()
    (project / "_build" / "smoke" / "book").mkdir(parents=True)
    (project / "_build" / "smoke" / "book" / "gone.md").write_text("a page of an earlier build")
    index = build_book(profile="smoke", html=False)
    assert index == project / "_build" / "smoke" / "html" / "index.html"
    staged = project / "_build" / "smoke" / "book"
    assert "n is 1" in (staged / "notebooks" / "01_tiny.ipynb").read_text()
    assert (staged / "more.md").is_file() and not (staged / "gone.md").exists()
    assert (staged / "assets" / "mathjax" / "tex-mml-chtml.js").is_file()
    assert (project / "book" / "notebooks" / "01_tiny.ipynb").read_bytes() == published


# --- what is executed -------------------------------------------------------------------------------------


@pytest.fixture
def ran(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The (slug, parameters) executed during a test, without executing them."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def note(slug: str, parameters: dict[str, Any], output: Path) -> Path:
        calls.append((slug, parameters))
        return output

    monkeypatch.setattr(book, "run_notebook", note)
    return calls


def test_only_and_force_decide_what_is_executed(project: Path, ran: list[tuple[str, dict[str, Any]]]) -> None:
    build_book(only=[], html=False)
    build_book(only=["01"], html=False)
    assert ran == []
    build_book(only=["01"], force=True, html=False)
    assert ran == [("01_tiny", {"n": 3})]
    (project / "data" / "results" / "00ff.json").write_text("{}")
    try:
        build_book(only=[], html=False)
        assert len(ran) == 1
        build_book(html=False)
        assert len(ran) == 2
    finally:
        (project / "data" / "results" / "00ff.json").unlink()


def test_unknown_names_are_refused(project: Path, ran: list[tuple[str, dict[str, Any]]]) -> None:
    with pytest.raises(InputError, match="Did you mean 'published'"):
        build_book(profile="publshed")
    with pytest.raises(InputError, match="unknown notebook"):
        build_book(only=["02_no"])
    (project / "notebooks" / "02_apart.py").write_text(NOTEBOOK)
    try:
        with pytest.raises(InputError, match="unknown notebook of the book"):
            build_book(only=["02_apart"])
    finally:
        (project / "notebooks" / "02_apart.py").unlink()
    assert ran == []


def test_a_table_of_contents_names_existing_notebooks_only(project: Path) -> None:
    assert book_notebooks() == ["01_tiny"]
    toc = project / "book" / "_toc.yml"
    toc.write_text(TOC.replace("01_tiny", "01_tyni"))
    try:
        with pytest.raises(InputError, match=r"_toc\.yml 'notebooks/01_tyni'|_toc\.yml '01_tyni'"):
            book_notebooks()
    finally:
        toc.write_text(TOC)


def test_a_second_build_waits_and_says_so(
    project: Path, ran: list[tuple[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = FileLock(project / "_build" / "book.lock")
    first.acquire()
    second = threading.Thread(target=lambda: build_book(force=True, html=False))
    second.start()
    second.join(timeout=0.3)
    assert second.is_alive() and ran == []
    first.release()
    second.join(timeout=10)
    assert not second.is_alive() and len(ran) == 1
    assert "waiting" in capsys.readouterr().err


# --- the checks of built pages ----------------------------------------------------------------------------


def test_the_checks_find_what_they_should(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1> <a href="#top">fine</a> <a href="#low">wrong</a> <a href="b.html#there">fine</a>'
        '<a href="b.html#away">wrong</a> <a href="c.html">wrong</a> <a href="https://example.org/">fine</a>'
        '<script src="https://example.org/x.js"></script> <link rel="stylesheet" href="//example.org/x.css">'
        '<link rel="canonical" href="https://example.org/a.html">'
        '<img src="p.png" alt="Three bars"> <img src="p.png"> <img src="p.png" alt="_images/p.png">'
    )
    (tmp_path / "b.html").write_text('<p id="there">B</p>')
    (tmp_path / "p.png").write_bytes(b"")
    (tmp_path / "s.css").write_text(
        "/* url(https://example.org/comment) */ @import 'https://example.org/f.css';p { background: url(p.png) }"
    )
    pages = read_pages(tmp_path)
    assert [line.split()[1] for line in broken_links(pages)] == ["#low", "b.html#away", "c.html"]
    assert [line.split()[-1] for line in foreign_requests(pages, tmp_path)] == [
        "https://example.org/x.js",
        "//example.org/x.css",
        "https://example.org/f.css",
    ]
    assert len(pictures_without_words(pages)) == 2
    assert len(check_site(tmp_path)) == 3 + 3 + 2


def test_an_empty_folder_is_no_book(tmp_path: Path) -> None:
    assert check_site(tmp_path) == [f"{tmp_path} holds no page"]
