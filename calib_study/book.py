"""The book: executes the notebooks that are out of date, then renders book/ to HTML that reads offline."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from calib_study import paths
from calib_study.errors import DataError, StudyError, unknown
from calib_study.notebooks import (
    notebook_names,
    notebook_stamp,
    profile_names,
    profile_parameters,
    resolve_notebook,
    run_notebook,
    up_to_date,
)

PUBLISHED = "published"
MATHJAX_PACKAGE = "sphinx-mathjax-offline"
MATHJAX_PARTS = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2")  # 1.6 MB of its 24: what pages load
SHOWN_PROBLEMS = 15  # lines of jupyter-book's log, so that the error fits one screen


@dataclass(frozen=True)
class Layout:
    """Where one build reads and writes; every profile but the published one has a folder of its own."""

    source: Path  # the Sphinx source: prose, _toc.yml, and notebooks/ with the executed copies
    out: Path  # holds html/ and the build's log

    @property
    def notebooks(self) -> Path:
        """The executed notebooks."""
        return self.source / "notebooks"

    @property
    def index(self) -> Path:
        """The page to open."""
        return self.out / "html" / "index.html"


def build_book(
    *,
    profile: str | None = PUBLISHED,
    only: list[str] | None = None,
    force: bool = False,
    html: bool = True,
) -> Path:
    """Execute what is out of date, render the book, and return the path of its first page.

    The published profile, and None (each notebook's own defaults), are built in book/notebooks and
    _build/html; any other in _build/PROFILE, so that a trial leaves the book alone. `only` names the
    notebooks that may be executed again; the others are executed only if they never were. `force` executes
    and renders even what is up to date. With `html=False` the rendering is left out.

    Raises InputError for an unknown profile or notebook, StudyError if a notebook or the rendering failed.
    """
    slugs = book_notebooks()
    chosen = _chosen(slugs, only)
    _check_profile(profile, slugs)
    layout = _layout(profile)
    layout.out.mkdir(parents=True, exist_ok=True)
    with _turn(layout.out / "book.lock"):
        _stage(layout)
        for slug in slugs:
            output = layout.notebooks / f"{slug}.ipynb"
            if slug in chosen or not output.is_file():
                _bring_up_to_date(slug, profile, output, force=force)
        if html:
            render(layout, force=force)
    return layout.index


def book_notebooks() -> list[str]:
    """Return the slugs of the notebooks that book/_toc.yml lists, in reading order.

    Raises InputError if it lists one that does not exist.
    """
    toc = yaml.safe_load((paths.root() / "book" / "_toc.yml").read_text(encoding="utf-8"))
    slugs = [name.removeprefix("notebooks/") for name in _files(toc) if name.startswith("notebooks/")]
    for slug in slugs:
        if slug not in notebook_names():
            raise unknown("notebook in book/_toc.yml", slug, notebook_names())
    return slugs


def _files(node: Any) -> list[str]:
    """Return every `file:` of a table of contents, in order."""
    if isinstance(node, list):
        return [name for item in node for name in _files(item)]
    if not isinstance(node, dict):
        return []
    own = [str(node["file"])] if "file" in node else []
    return own + [name for value in node.values() for name in _files(value)]


def _chosen(slugs: list[str], only: list[str] | None) -> list[str]:
    """Return the slugs meant by `only`, all if None; InputError if one is no part of the book."""
    chosen = slugs if only is None else [resolve_notebook(name).stem for name in only]
    for slug in chosen:
        if slug not in slugs:
            raise unknown("notebook of the book", slug, slugs)
    return chosen


def _check_profile(profile: str | None, slugs: list[str]) -> None:
    """Raise InputError unless some notebook of the book has the profile, or it is the published one."""
    known = {PUBLISHED, *(name for slug in slugs for name in profile_names(slug))}
    if profile is not None and profile not in known:
        raise unknown("profile", profile, known)


def _layout(profile: str | None) -> Layout:
    root = paths.root()
    if profile in (None, PUBLISHED):
        return Layout(source=root / "book", out=root / "_build")
    return Layout(source=root / "_build" / profile / "book", out=root / "_build" / profile)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the build's lock; wait, and say so, while another build has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Another build of the book is running; waiting for it to end.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _stage(layout: Layout) -> None:
    """Copy the prose to the layout's source, unless it is the book's own folder, and add MathJax."""
    book = paths.root() / "book"
    if layout.source != book:
        for entry in layout.source.iterdir() if layout.source.is_dir() else ():
            if entry != layout.notebooks:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        made = shutil.ignore_patterns("notebooks", "_build", "mathjax")
        shutil.copytree(book, layout.source, ignore=made, dirs_exist_ok=True)
    layout.notebooks.mkdir(exist_ok=True)
    _copy_mathjax(layout.source / "assets" / "mathjax")


def _copy_mathjax(target: Path) -> None:
    """Copy the parts of MathJax that pages load out of the installed package, if they are not there yet."""
    spec = importlib.util.find_spec(MATHJAX_PACKAGE)
    if spec is None or spec.origin is None:
        raise DataError(f"the package {MATHJAX_PACKAGE} is not installed. Run `make book`, which installs it.")
    origin = Path(spec.origin).parent / "static" / "mathjax"
    script, fonts = (target / part for part in MATHJAX_PARTS)
    if script.is_file() and len(list(fonts.glob("*"))) == len(list((origin / MATHJAX_PARTS[1]).glob("*"))):
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(origin / MATHJAX_PARTS[1], fonts)
    shutil.copyfile(origin / MATHJAX_PARTS[0], script)


def _bring_up_to_date(slug: str, profile: str | None, output: Path, *, force: bool) -> None:
    """Execute a notebook into `output` unless it was, with the same everything."""
    parameters = profile_parameters(slug, profile) if profile and profile in profile_names(slug) else {}
    stamp = notebook_stamp(resolve_notebook(slug), parameters)
    if not force and up_to_date(output, stamp):
        print(f"notebook {slug}: up to date", flush=True)
        return
    run_notebook(slug, parameters, output)


# --- rendering --------------------------------------------------------------------------------------------


def render(layout: Layout, *, force: bool = False) -> None:
    """Render the layout's source to html/, unless nothing changed since; an old html/ stays until success.

    Every build starts afresh, since an incremental one keeps pages that are gone and forgets the warnings of
    pages that it does not read again. Raises StudyError, with the warnings, if there was any.
    """
    stamp_file = layout.out / "html.stamp"
    stamp = _source_stamp(layout.source)
    if not force and layout.index.is_file() and stamp_file.is_file() and stamp_file.read_text() == stamp:
        print("pages: up to date", flush=True)
        _say_where(layout)
        return
    work = layout.out / "rendering"
    shutil.rmtree(work, ignore_errors=True)
    print("rendering the pages", flush=True)
    _jupyter_book(layout.source, work, layout.out / "book.log")
    stamp_file.unlink(missing_ok=True)
    shutil.rmtree(layout.out / "html", ignore_errors=True)
    os.replace(work / "_build" / "html", layout.out / "html")
    shutil.rmtree(work)
    stamp_file.write_text(stamp)
    _say_where(layout)


def _source_stamp(source: Path) -> str:
    """Return a hash of all that the pages are made from."""
    root = paths.root()
    files = sorted(path for path in source.rglob("*") if path.is_file() and ".failed." not in path.name)
    digest = hashlib.sha256()
    for path in [root / "_config.yml", root / "requirements.txt", *files]:
        name = path.relative_to(source if path.is_relative_to(source) else root).as_posix()
        digest.update(f"\n{name}\n".encode())
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def _jupyter_book(source: Path, out: Path, log: Path) -> None:
    """Call jupyter-book with warnings as errors; keep its output in `log`, show the problems only."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)]
    command += ["--config", str(paths.root() / "_config.yml"), "--path-output", str(out)]
    command += ["-n", "-W", "--keep-going"]
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=paths.root())
    text = re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", done.stdout.decode("utf-8", errors="replace"))
    log.write_text(text, encoding="utf-8")
    if done.returncode == 0:
        return
    lines = text.splitlines()
    problems = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL|SEVERE)\b", line)]
    shown = "\n".join(f"    {line}" for line in (problems or lines[-SHOWN_PROBLEMS:])[:SHOWN_PROBLEMS])
    raise StudyError(f"the pages could not be rendered without warnings:\n{shown}\nThe whole log: {log}")


def _say_where(layout: Layout) -> None:
    print(f"The book is ready: open {layout.index}")
    if layout.source == paths.root() / "book":
        print("`make serve` shows it at an address on this machine, where its search gives excerpts too.")
