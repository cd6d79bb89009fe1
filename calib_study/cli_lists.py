"""The command `calib-study list`: what there is to name in the others."""

from collections.abc import Callable

import click

from calib_study.errors import unknown


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


def _list_measurements() -> list[tuple[str, str]]:
    from calib_study.measurements import MeasurementStore

    found, problems = MeasurementStore.default().scan()
    for problem in problems:
        click.echo(f"not readable: {problem}", err=True)
    return [(one.key, f"{one.request.model}: {one.request.title}") for one in found]


LISTS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "sources": _list_sources,
    "models": _list_models,
    "methods": _list_methods,
    "tasks": _list_tasks,
    "notebooks": _list_notebooks,
    "profiles": _list_profiles,
    "records": _list_records,
    "measurements": _list_measurements,
}


@click.command("list")
@click.argument("what")
def list_(what: str) -> None:
    """List sources, models, methods, tasks, notebooks, profiles, records or measurements."""
    if what not in LISTS:
        raise unknown("list", what, LISTS)
    rows = LISTS[what]()
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")
