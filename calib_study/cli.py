"""The command line, `calib-study`. Each command checks what it was given before anything slow is imported."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from calib_study import __version__, paths
from calib_study.errors import InputError, StudyError, unknown
from calib_study.yaml_values import read_yaml

BENCHMARKS = {"prune": "prune_cost.py", "scaling": "scaling.py", "harness": "harness.py", "synthesis": "synthesis.py"}
LISTS = ("sources", "models", "methods", "tasks", "notebooks", "profiles", "records")
dtype_option = click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or auto.")
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps ...")


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


@app.command()
@click.argument("names", nargs=-1)
@click.option("--accept", multiple=True, metavar="TERMS", help="Accept terms of use by name, e.g. gemma.")
@click.option("--from", "from_dir", type=click.Path(path_type=Path), help="Take the files from a folder instead.")
def fetch(names: tuple[str, ...], accept: tuple[str, ...], from_dir: Path | None) -> None:
    """Fetch and verify the pinned archives (all, or NAMES), about 200 MB. A no-op when they are there."""
    from calib_study import fetch as fetching

    files = fetching.fetch(names or None, accept=accept, from_dir=from_dir)
    click.echo(f"{len(files)} archives are in {paths.cache_dir() / 'archives'}, and their hashes are right.")


@app.command("list")
@click.argument("what")
def list_(what: str) -> None:
    """List sources, models, methods, tasks, notebooks, profiles or records."""
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    rows = _LISTERS[what]()
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")


def _list_sources() -> list[tuple[str, str]]:
    from calib_study.catalogue import load_catalogue
    from calib_study.generated import generated_summaries
    from calib_study.sources import hub_names

    rows = [(source.name, source.summary) for source in load_catalogue().sources.values()]
    rows += [(name, "a data set of the hub; needs a network") for name in hub_names()]
    rows += generated_summaries()
    rows.append(("A:0.7,B:0.3", "a mixture of sources, by share of the windows"))
    return [*rows, ("PATH", "your own text: a .txt or .md file, a folder of them, or a .jsonl")]


def _list_models() -> list[tuple[str, str]]:
    from calib_study.catalogue import load_catalogue

    rows = [(model.name, f"{model.summary} ({model.licence})") for model in load_catalogue().models.values()]
    return [*rows, ("PATH", "a transformers directory or a GGUF file"), ("OWNER/NAME", "a model of the hub")]


def _list_methods() -> list[tuple[str, str]]:
    from calib_study.methods import METHODS

    return [
        (name, method.summary + (f" [{method.reference}]" if method.reference else ""))
        for name, method in METHODS.items()
    ]


def _list_tasks() -> list[tuple[str, str]]:
    from calib_study.catalogue import load_catalogue

    rows = [(task.name, f"{task.summary} ({task.licence})") for task in load_catalogue().tasks.values()]
    return [*rows, ("hub:NAME", "any other task of lm-evaluation-harness; needs a network")]


def _list_notebooks() -> list[tuple[str, str]]:
    from calib_study.notebooks import notebook_names, profile_names

    return [(slug, "profiles: " + (", ".join(profile_names(slug)) or "none")) for slug in notebook_names()]


def _list_profiles() -> list[tuple[str, str]]:
    from calib_study.notebooks import notebook_names, profile_names, profile_parameters

    return [
        (f"{slug} {profile}", ", ".join(f"{k}={v}" for k, v in profile_parameters(slug, profile).items()))
        for slug in notebook_names()
        for profile in profile_names(slug)
    ]


def _list_records() -> list[tuple[str, str]]:
    from calib_study.records import Store

    records, problems = Store.default().scan()
    for problem in problems:
        click.echo(f"not readable: {problem}", err=True)
    return [(record.run_id, f"{record.spec.model}: {record.spec.title}") for record in records]


_LISTERS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "sources": _list_sources,
    "models": _list_models,
    "methods": _list_methods,
    "tasks": _list_tasks,
    "notebooks": _list_notebooks,
    "profiles": _list_profiles,
    "records": _list_records,
}


@app.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, directory, GGUF file or hub id.")
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
@click.option("--remote-code", is_flag=True, help="Run the Python code that the model brings. Read it first.")
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
@click.option("--remote-code", is_flag=True, help="Run the Python code that the model brings. Read it first.")
@dtype_option
@device_option
def evaluate(tasks: str, texts: str, **options: Any) -> None:
    """Score MODEL (a name, a directory, a GGUF file or a hub id) as it is; print a table and keep a record."""
    from calib_study.evaluate import EvaluateJob

    EvaluateJob.checked(tasks=_names(tasks), sources=_names(texts), **options).run(echo=click.echo)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
@click.option("--model", default="smollm2-135m", show_default=True, help="Name, directory, GGUF file or hub id.")
@click.option("--prefix-source", help="Text whose first tokens are continued: see `calib-study list sources`.")
@click.option("--prefix-len", type=int, default=2, show_default=True, help="Tokens of it; 0 needs no source.")
@click.option("--start-token/--no-start-token", default=True, show_default=True, help="Before the prefix.")
@click.option("--n-texts", type=int, default=200, show_default=True, help="Each continues another document.")
@click.option("--new-tokens", type=int, default=512, show_default=True, help="Of each text, after the prefix.")
@click.option("--temperature", type=float, default=0.6, show_default=True)
@click.option("--top-k", type=int, default=50, show_default=True, help="0: all tokens.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="1: all of top-k.")
@click.option("--repetition-penalty", type=float, default=1.2, show_default=True, help="1: none.")
@click.option("--end-of-text", default="stop", show_default=True, help="stop, continue or ban.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--batch-size", type=int, help="Texts at once; changes speed, not texts.  [default: what fits, up to 128]"
)
@click.option("--remote-code", is_flag=True, help="Run the Python code that the model brings. Read it first.")
@dtype_option
@device_option
@click.option("--name", help="Use it as selfgen:NAME.  [default: made from the request]")
@click.option("--out", type=click.Path(path_type=Path), help="A directory instead of a name.")
def synthesize(**options: Any) -> None:
    """Let a model write calibration text of its own, and print how the new source is called.

    Started again after it was stopped, it goes on where it was.
    """
    from calib_study.synthesis import SynthesisJob

    job = SynthesisJob.checked(**options)
    job.run(echo=partial(click.echo, err=True))
    click.echo(job.source)


@app.command("filter")
@click.argument("source")
@click.option("--drop", required=True, metavar="END:P", help="Per cent by perplexity: top:20, bottom:20 or random:20.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random.")
@click.option("--scorer", help="The model that scores.  [default: what the generator found as it wrote]")
@click.option("--max-tokens", type=int, help="Score this much of a text.  [default: 2048]")
@click.option("--remote-code", is_flag=True, help="Run the Python code that the model brings. Read it first.")
@dtype_option
@device_option
@click.option("--name", help="Use it as selfgen:NAME.  [default: made from the request]")
@click.option("--out", type=click.Path(path_type=Path), help="A directory instead of a name.")
def filter_(**options: Any) -> None:
    """Drop one end of the perplexities of SOURCE, and print how the new source is called."""
    from calib_study.filtering import FilterJob

    job = FilterJob.checked(**options)
    job.run(echo=partial(click.echo, err=True))
    click.echo(job.source)


@app.command()
@click.argument("notebook")
@click.option("-p", "--parameter", "pairs", type=(str, str), multiple=True, metavar="NAME VALUE")
@click.option("-f", "--file", "file", type=click.Path(path_type=Path), help="YAML file of parameters.")
@click.option("--profile", help="A set of parameters kept with the notebook: smoke, laptop, published, paper.")
@click.option("--out", type=click.Path(path_type=Path), help="Executed notebook.  [default: NAME.executed.ipynb]")
def run(
    notebook: str, pairs: tuple[tuple[str, str], ...], file: Path | None, profile: str | None, out: Path | None
) -> None:
    """Execute a notebook with other parameters: profile, then file, then -p, each over the one before."""
    from calib_study.notebooks import profile_parameters, resolve_notebook, run_notebook

    slug = resolve_notebook(notebook).stem
    given: dict[str, Any] = dict(profile_parameters(slug, profile)) if profile else {}
    if file is not None:
        given |= _yaml_mapping(file)
    given |= {name: _literal(value) for name, value in pairs}
    output = run_notebook(notebook, given, out or Path(f"{slug}.executed.ipynb"))
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
@click.option("--seed", type=int, help="Choose the same sample again.  [default: random]")
@click.option(
    "--tolerance", type=float, help="Largest relative difference of a metric.  [default: 0.03; SparseGPT 0.15]"
)
@device_option
def verify(sample: int, everything: bool, seed: int | None, tolerance: float | None, device: str) -> None:
    """Compute published records again on this machine and compare. Exits with 1 if any number differs."""
    from calib_study.verification import choose, report

    records, seed = choose(None if everything else sample, seed)
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
