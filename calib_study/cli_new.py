"""The command that begins a study of one's own: `calib-study new`."""

import os
import shlex
from pathlib import Path

import click

from calib_study.errors import InputError


@click.command("new")
@click.argument("name")
@click.option("--from", "template", default="01_data_sources", show_default=True, help="A notebook: name or number.")
def new(name: str, template: str) -> None:
    """Copy a notebook of the book to NAME.py and NAME.ipynb, as the beginning of your own.

    NAME may be a path. The copy has the parameters and profiles of its chapter. Nothing is overwritten.
    """
    from calib_study.notebooks import notebook_names, parameter_defaults, resolve_notebook
    from calib_study.templates import new_study

    if template.endswith((".py", ".ipynb")) and resolve_notebook(template).stem not in notebook_names():
        raise InputError(f"--from {template}: name a notebook of the book; see `calib-study list notebooks`.")
    script, pair = (_near(path) for path in new_study(name, template))
    defaults = parameter_defaults(Path(script))
    example = "sparsity 0.6" if "sparsity" in defaults else f"{next(iter(defaults))} VALUE"
    click.echo(f"{script}\n{pair}\n")
    click.echo(f"Run it:             calib-study run {shlex.quote(script)} -p {example}")
    out = shlex.quote(str(Path(pair).with_suffix("")) + ".out.ipynb")
    click.echo(f"or:                 papermill {shlex.quote(pair)} {out} -p {example}")
    click.echo(f"After you edit one: jupytext --sync {shlex.quote(script)}")


def _near(path: Path) -> str:
    """Return a path as one would type it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
