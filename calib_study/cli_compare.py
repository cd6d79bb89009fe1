"""The command that sets stored runs beside each other: `calib-study compare`."""

import json
from typing import Literal

import click


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--where", default="", metavar="CONDITIONS", help="For both sides, e.g. method=wanda,n_samples=32.")
@click.option(
    "--over",
    type=click.Choice(["seeds", "both"]),
    default="seeds",
    show_default=True,
    help="Intervals of groups: for new draws of text, or for new windows and items too.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampling.")
@click.option("--json", "machine", is_flag=True, help="Print JSON instead of tables.")
def compare(a: str, b: str, where: str, over: Literal["seeds", "both"], seed: int, machine: bool) -> None:
    """Print the differences between the stored runs A and B, with 95 % intervals.

    A and B are each a run id or its first digits (at least 4; see `calib-study list records`), the path of a record,
    of a pruned model or of a folder of records, or conditions on published and own records. Two single runs are
    paired by held-out window and task item, two groups by seed:

    \b
    calib-study compare 0088309a pruned/
    calib-study compare source=c4 source=code --where method=wanda,sparsity=0.5

    Names of conditions: model, method, sparsity, pattern, schedule, source, policy, n_samples, seq_len, seed, dtype,
    eval_seq_len, eval_n_windows, eval_tasks and the other fields of a specification. "none" is a value too.
    """
    from calib_study import compare as comparing
    from calib_study.selection import select_two

    one, two = select_two(a, b, where=where)
    for problem in dict.fromkeys([*one.problems, *two.problems]):
        click.echo(f"not readable: {problem}", err=True)
    found = comparing.compare(one, two, over=over, seed=seed)
    if machine:
        click.echo(json.dumps(comparing.as_json(found), indent=1, allow_nan=False))
        return
    for line in comparing.lines(found):
        click.echo(line)
