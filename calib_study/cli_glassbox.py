"""The command that trains models whose training text is known: `calib-study train-glassbox`."""

from functools import partial
from pathlib import Path

import click

from calib_study.cli_options import device_option


@click.command("train-glassbox")
@click.argument("name")
@click.option(
    "--source", "sources", multiple=True, metavar="TEXT", help="Of a recipe of your own; repeat for a mixture."
)
@click.option(
    "--set", "pairs", type=(str, int), multiple=True, metavar="FIELD N", help="Of a recipe of your own, e.g. steps 30."
)
@click.option("--out", type=click.Path(path_type=Path), help="Where a model of your own recipe shall lie.")
@device_option
def train_glassbox(
    name: str, sources: tuple[str, ...], pairs: tuple[tuple[str, int], ...], out: Path | None, device: str
) -> None:
    """Train the glass-box model NAME: one of glassbox-chat, -math, -leads, -french, -mixture, or your own.

    The project's recipes take 25 minutes each on one core, 2 GB of memory and 60 MB of disk while they run (a
    checkpoint every 100 steps), then 12 MB. Started again after it was stopped, training goes on where it was, to the
    last bit. A finished model is used by its name or its folder wherever a model is asked for, and compared with the
    one that comes with the project.

    A recipe of your own takes the project's numbers but for those you set, and needs --out:
    calib-study train-glassbox mine --source my-text.txt --set steps 200 --out models/mine
    """
    from calib_study.glassbox import check_recipe, glassbox_recipe
    from calib_study.glassbox_training import GlassboxJob, compared

    recipe = None
    if sources or pairs:
        given = {"sources": sources or glassbox_recipe(name).sources, **dict(pairs)}
        recipe = check_recipe(**given)
    job = GlassboxJob.checked(name, recipe=recipe, out=out, device=device)
    report = job.run(echo=partial(click.echo, err=True))
    for source, perplexity in report.perplexity.items():
        click.echo(f"perplexity on held-out {source}: {perplexity:.2f}")
    for line in compared(name, report):
        click.echo(line)
    click.echo(job.folder)
