"""A study notebook as a template: a copy in a folder of the user's, which runs with the parameters of its chapter."""

import re
from pathlib import Path

from calib_study.errors import InputError
from calib_study.notebooks import notebooks_dir, read_notebook, resolve_notebook
from calib_study.paths import atomic_path

HEADER = "#   jupytext:\n"
PAIRED = HEADER + "#     formats: ipynb,py:percent\n"  # so that `jupytext --sync` knows the pair in any folder


def new_study(target: str, template: str) -> tuple[Path, Path]:
    """Copy a notebook of the project to `target`.py, write its .ipynb beside it, and return both paths.

    Everything is kept, its call of `check` too, by which the copy has the chapter's parameters and profiles.

    Args:
        target: name or path, with or without .py or .ipynb. template: slug or number of a notebook.
    Raises InputError for an unknown template, an unfit name, a folder of the project's, or a file that is there.
    """
    import nbformat

    source = resolve_notebook(template)
    path = Path(target).expanduser()
    stem = path.stem if path.suffix in (".py", ".ipynb") else path.name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", stem):
        raise InputError(f"name {stem!r} of a notebook: use letters, digits, - and _, like 'my_study'.")
    folder = path.parent.absolute()
    if folder.resolve() == notebooks_dir().resolve():
        raise InputError(f"{folder} holds the chapters of the book; choose another folder for a study of your own.")
    script, pair = folder / f"{stem}.py", folder / f"{stem}.ipynb"
    for file in (script, pair):
        if file.exists():
            raise InputError(f"{file} is there already, and is not overwritten. Choose another name.")
    text = source.with_suffix(".py").read_text(encoding="utf-8")
    with atomic_path(script) as part:
        part.write_text(text.replace(HEADER, PAIRED, 1), encoding="utf-8")
    with atomic_path(pair) as part:
        part.write_text(nbformat.writes(read_notebook(script)) + "\n", encoding="utf-8")
    return script, pair
