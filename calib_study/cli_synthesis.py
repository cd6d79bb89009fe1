"""The commands that make calibration text: `calib-study synthesize` and `calib-study filter`."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from calib_study.cli_options import device_option, dtype_option, model_option, remote_code_option


@click.command()
@model_option
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
@remote_code_option
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


@click.command("filter")
@click.argument("source")
@click.option("--drop", required=True, metavar="END:P", help="Per cent by perplexity: top:20, bottom:20 or random:20.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random.")
@click.option("--scorer", help="The model that scores.  [default: what the generator found as it wrote]")
@click.option("--max-tokens", type=int, help="Score this much of a text.  [default: 2048]")
@remote_code_option
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
