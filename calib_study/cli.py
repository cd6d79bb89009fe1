"""The command line, `calib-study`. Each command checks what it was given before anything slow is imported."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from calib_study import __version__, cli_compare, cli_glassbox, cli_lists, cli_new, cli_synthesis, paths
from calib_study.cli_options import device_option, dtype_option, model_option, remote_code_option
from calib_study.errors import InputError, StudyError, unknown
from calib_study.yaml_values import read_yaml

BENCHMARKS = {"prune": "prune_cost.py", "scaling": "scaling.py", "harness": "harness.py", "synthesis": "synthesis.py"}


class Group(click.Group):
    """A click group whose errors for an unknown command name its near matches."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def app() -> None:
    """Which calibration text decides what pruning does to a language model? Fetch, prune, measure, read."""


for command in (
    cli_lists.list_,
    cli_synthesis.synthesize,
    cli_synthesis.filter_,
    cli_glassbox.train_glassbox,
    cli_compare.compare,
    cli_new.new,
):
    app.add_command(command)


@app.command()
@click.argument("names", nargs=-1)
@click.option("--accept", multiple=True, metavar="TERMS", help="Accept terms of use by name, e.g. gemma.")
@click.option("--from", "from_dir", type=click.Path(path_type=Path), help="Take the files from a folder instead.")
def fetch(names: tuple[str, ...], accept: tuple[str, ...], from_dir: Path | None) -> None:
    """Fetch and verify the pinned archives (all, or NAMES), about 200 MB. A no-op when they are there."""
    from calib_study import fetch as fetching

    files = fetching.fetch(names or None, accept=accept, from_dir=from_dir)
    click.echo(f"{len(files)} archives are in {paths.cache_dir() / 'archives'}, and their hashes are right.")


@app.command()
@model_option
@click.option("--method", required=True, help="See `calib-study list methods`.")
@click.option("--sparsity", type=float, help="Fraction of zeros in [0, 1); N:M patterns imply it.")
@click.option("--pattern", default="unstructured", show_default=True, help="unstructured, or N:M with N kept.")
@click.option("--schedule", default="block", show_default=True, help="block, sequential or dense statistics.")
@click.option(
    "--option", "pairs", type=(str, str), multiple=True, metavar="NAME VALUE", help="Of the method, e.g. damping 0.1."
)
@click.option("--owl", is_flag=True, help="Let OWL share the sparsity among blocks.")
@click.option("--owl-lam", type=float, help="Half the range of the blocks' sparsities.  [default: 0.08; N:M 2]")
@click.option("--owl-multiple", type=float, help="Scores above this multiple of the mean are outliers.  [default: 5]")
@click.option("--source", help="Calibration text: see `calib-study list sources`, or a path.")
@click.option("--n-samples", type=int, help="Calibration windows.  [default: 32]")
@click.option("--seq-len", type=int, help="Tokens in a window.  [default: 256]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--policy", default="packed", show_default=True, help="How windows are cut: packed or document.")
@click.option(
    "--calibration-tokens", type=click.Path(path_type=Path), help="Windows saved as .npy, instead of --source."
)
@click.option("--evaluate", default="", metavar="SOURCES", help="Perplexity on held-out text, e.g. c4,wikipedia.")
@remote_code_option
@dtype_option
@device_option
@click.option("--offload", is_flag=True, help="Keep the model in CPU memory; one block at a time visits the device.")
@click.option(
    "--hidden",
    type=click.Choice(["device", "cpu", "file"]),
    default="device",
    show_default=True,
    help="Where the hidden states of all windows wait.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the pruned model.")
def prune(**options: Any) -> None:
    """Prune a model and write it, with its record and its calibration tokens, to a directory.

    The directory loads with AutoModelForCausalLM.from_pretrained.
    """
    from calib_study.export import PruneJob

    owl = {"lam": options.pop("owl_lam"), "outlier_multiple": options.pop("owl_multiple")}
    given = {name: value for name, value in owl.items() if value is not None}
    if not options.pop("owl"):
        if given:
            raise InputError("--owl-lam and --owl-multiple go with --owl.")
        allocation = None
    else:
        allocation = {"lam": 0.08 if options["pattern"] == "unstructured" else 2.0} | given
    chosen = {name: _literal(value) for name, value in options.pop("pairs")}
    job = PruneJob.checked(**options, options=chosen, owl=allocation)
    job.run(echo=partial(click.echo, err=True))
    click.echo(str(job.out))


@app.command()
@click.argument("model")
@click.option("--tasks", default="", metavar="NAMES", help="E.g. piqa,arc_easy; see `calib-study list tasks`.")
@click.option("--limit", type=int, help="Score this many items of each task, the same for every model.  [default: all]")
@click.option("--shots", type=int, help="Examples before each item.  [default: the task's own number]")
@click.option("--perplexity", "texts", default="", metavar="SOURCES", help="Held-out text, e.g. c4,wikipedia.")
@click.option("--divergence-from", metavar="DENSE", help="Compare predictions with those of this model.")
@click.option("--seq-len", type=int, default=512, show_default=True, help="Tokens in a window of held-out text.")
@click.option("--windows", "n_windows", type=int, default=8, show_default=True, help="Windows of each text.")
@remote_code_option
@dtype_option
@device_option
def evaluate(tasks: str, texts: str, **options: Any) -> None:
    """Score MODEL (a name, a directory, a GGUF file or a hub id) as it is; print a table and keep a record."""
    from calib_study.evaluate import EvaluateJob

    EvaluateJob.checked(tasks=_names(tasks), sources=_names(texts), **options).run(echo=click.echo)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
@click.argument("notebook")
@click.option("-p", "--parameter", "pairs", type=(str, str), multiple=True, metavar="NAME VALUE")
@click.option("-f", "--file", "file", type=click.Path(path_type=Path), help="YAML file of parameters.")
@click.option("--profile", help="A set of parameters kept with the notebook: smoke, laptop, published, paper.")
@click.option("--out", type=click.Path(path_type=Path), help="Executed notebook.  [default: NAME.executed.ipynb]")
def run(
    notebook: str, pairs: tuple[tuple[str, str], ...], file: Path | None, profile: str | None, out: Path | None
) -> None:
    """Execute a notebook with other parameters: profile, then file, then -p, each over the one before.

    NOTEBOOK is a name or number of the book's, or the path of a copy that `calib-study new` made.
    """
    from calib_study.notebooks import profile_parameters, resolve_notebook, run_notebook, study_slug

    source = resolve_notebook(notebook)
    given: dict[str, Any] = dict(profile_parameters(study_slug(source), profile)) if profile else {}
    if file is not None:
        given |= _yaml_mapping(file)
    given |= {name: _literal(value) for name, value in pairs}
    output = run_notebook(notebook, given, out or Path(f"{source.stem}.executed.ipynb"))
    click.echo(str(output))


def _yaml_mapping(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"parameter file {file}: no such file.")
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"parameter file {file} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"parameter file {file}: expected one `name: value` a line.")
    return content


def _literal(text: str) -> Any:
    """Return a command line value as YAML reads it: numbers, true, [a, b]; otherwise the text itself."""
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


@app.command()
@click.option("--profile", default="published", show_default=True, help="Parameters for every notebook.")
@click.option("--only", multiple=True, metavar="NOTEBOOK", help="Execute only these again.")
@click.option("--force", is_flag=True, help="Execute and render even what is up to date.")
def book(profile: str, only: tuple[str, ...], force: bool) -> None:
    """Execute the notebooks that are out of date and render the book."""
    from calib_study.book import build_book

    index = build_book(profile=profile, only=list(only) or None, force=force)
    click.echo(f"The book is in {index}")


@app.command()
@click.option("--sample", type=click.IntRange(min=1), default=3, show_default=True, help="How many, at random.")
@click.option("--all", "everything", is_flag=True, help="All published records.")
@click.option("--chapter", metavar="NOTEBOOK", help="Of the records that one chapter uses: its name or number.")
@click.option("--seed", type=int, help="Choose the same sample again.  [default: random]")
@click.option(
    "--tolerance", type=float, help="Largest relative difference of a metric.  [default: 0.03; SparseGPT 0.15]"
)
@device_option
def verify(
    sample: int, everything: bool, chapter: str | None, seed: int | None, tolerance: float | None, device: str
) -> None:
    """Compute published records again on this machine and compare. Exits with 1 if any number differs."""
    from calib_study.chapters import chapter_slug, published_records

    among = published_records(chapter_slug(chapter)) if chapter else None
    from calib_study.verification import choose, report  # loads torch

    records, seed = choose(None if everything else sample, seed, among)
    click.echo(f"{len(records)} records, sample seed {seed}", err=True)
    text, agrees = report(records, device=device, tolerance=tolerance)
    click.echo(text)
    if not agrees:
        raise StudyError("some numbers could not be reproduced; see the lines marked DIFFERS.")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str, arguments: tuple[str, ...]) -> None:
    """Measure speed and memory: prune, scaling, harness, synthesis. ARGUMENTS go to the benchmark; see NAME --help.

    One thread, so that figures compare; a few minutes.
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    script = paths.root() / "benchmarks" / BENCHMARKS[name]
    finished = subprocess.run(
        [sys.executable, str(script), *arguments], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, check=False
    )
    sys.exit(finished.returncode)


def main() -> None:
    """Run the command line; a StudyError becomes one message on stderr and its exit code."""
    try:
        app(prog_name="calib-study")
    except StudyError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
