"""How ways of measuring a pruned model compare: which agree on the texts, what each adds, how noisy each is.

Tables come from `measures.measure_table`, of one model and pattern; a layout names the texts, the methods that use
text, and the seeds of its crossed grid. The rules behind the verdicts are in words at each function.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from calib_study.association import mean_rank_correlation, partial_rank_correlation
from calib_study.components import VarianceComponents
from calib_study.crossed import Layout, stack_seeds
from calib_study.errors import InputError
from calib_study.frames import cells
from calib_study.measures import DAMAGE_ON, Answers
from calib_study.resampling import hierarchical_bootstrap, item_table, noise_in_differences, paired_bootstrap
from calib_study.statistics import Interval, mean_interval
from calib_study.verdicts import Verdict

KEPT_RISE = 0.10  # perplexity "is kept" if it rises by less than a tenth
POINT = 0.01  # of accuracy: losses below one point are too small to matter
POWER = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))  # a two-sided 5 % test with 80 % power


# --- which measures agree on the texts --------------------------------------------------------------------


def agreement_table(table: pd.DataFrame, layout: Layout, measures: Sequence[str]) -> pd.DataFrame:
    """Return how far each pair of measures ranks the texts alike: one, other, mean, low, high.

    Spearman's correlation over texts within a method and seed, averaged over methods; limits over seeds.
    """
    values = {name: stack_seeds(cells(table, *layout, name)) for name in measures}
    rows = []
    for one, other in product(measures, measures):
        found = mean_rank_correlation(values[one], values[other])
        rows.append((one, other, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=["one", "other", "mean", "low", "high"])


def home_table(table: pd.DataFrame, layout: Layout, tasks: Sequence[str]) -> pd.DataFrame:
    """Return, for each held-out text, whether damage on it ranks the calibration texts as the tasks do.

    Columns: text, best (the calibration text with the least damage on it), at_home (whether it is that text itself),
    task (a measure of tasks), mean, low, high of the rank correlation, verdict on "ranks them the other way round".
    """
    rows = []
    for column in [name for name in table.columns if name.startswith(DAMAGE_ON)]:
        damage, text = cells(table, *layout, column), column.removeprefix(DAMAGE_ON)
        best = layout[0][int(damage.mean(axis=(1, 2)).argmin())]
        for task in tasks:
            found = mean_rank_correlation(stack_seeds(damage), stack_seeds(cells(table, *layout, task)))
            rows.append((text, best, best == text, task, found.mean, found.low, found.high, opposite(found)))
    columns = ["text", "best", "at_home", "task", "mean", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def opposite(found: Interval) -> Verdict:
    """Return whether two measures rank the other way round: "supported" if the whole interval is below zero.

    "not supported" if it is above, else "inconclusive".
    """
    if found.low is None or found.high is None:
        return "inconclusive"
    return "supported" if found.high < 0 else "not supported" if found.low > 0 else "inconclusive"


# --- what a measure adds to another -----------------------------------------------------------------------


def reveal_table(table: pd.DataFrame, layout: Layout, measures: Sequence[str], outcome: str) -> pd.DataFrame:
    """Return what each measure tells of the loss on tasks, alone and beyond damage, within methods.

    Columns: measure, n (runs), alone, alone_low, alone_high (rank correlation with `outcome`), beyond, beyond_low,
    beyond_high (partial, given damage; NaN for damage itself), verdict on "reveals what perplexity hides": "supported"
    if the partial correlation's interval is above zero, "not supported" if below, else "inconclusive".
    """
    texts, methods, seeds = layout
    runs = table[
        table["source"].isin(list(texts)) & table["method"].isin(list(methods)) & table["seed"].isin(list(seeds))
    ]
    draws = runs["source"].astype(str) + "/" + runs["seed"].astype(str)
    same: dict[str, Any] = {"clusters": draws.to_numpy(str), "groups": runs["method"].to_numpy(str)}
    rows = []
    for name in measures:
        alone = partial_rank_correlation(runs[name], runs[outcome], **same)
        row: list[object] = [name, len(runs), alone.mean, alone.low, alone.high]
        if name == "damage":
            rows.append([*row, np.nan, np.nan, np.nan, ""])
            continue
        beyond = partial_rank_correlation(runs[name], runs[outcome], runs["damage"], **same)
        opposed = opposite(Interval(-beyond.mean, _minus(beyond.high), _minus(beyond.low), beyond.n))
        rows.append([*row, beyond.mean, beyond.low, beyond.high, opposed])
    columns = ["measure", "n", "alone", "alone_low", "alone_high", "beyond", "beyond_low", "beyond_high", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


# --- perplexity kept, tasks degraded ----------------------------------------------------------------------


def keep_table(table: pd.DataFrame, answers: Answers, *, seed: int) -> pd.DataFrame:
    """Return, for each method and sparsity, how far perplexity rises and accuracy falls, and the verdict on K1.

    Columns: method, sparsity, n_seeds, rise, rise_low, rise_high (perplexity over the dense one's, minus 1: geometric
    mean over texts and seeds, Student's interval), loss, loss_low, loss_high (accuracy of the dense model minus that
    of the pruned, over seeds and items), verdict of `keeps_while`. A method without draws has one run: its rise has no
    interval over draws, and its limits are the value itself.

    Args:
        table: runs of one source, and the dense one. seed: of the resampling.
    """
    dense = answers.of([str(table.loc[table["method"] == "dense", "run_id"].iloc[0])])[0]
    rows = []
    pruned = table[table["method"] != "dense"].sort_values("sparsity", kind="stable")
    for (method, sparsity), runs in pruned.groupby(["method", "sparsity"], sort=False):
        found = mean_interval(runs["damage"])
        rise = [float(np.expm1(found.mean if v is None else v)) for v in (found.mean, found.low, found.high)]
        right = answers.of(list(runs["run_id"]))
        compared = (
            paired_bootstrap(dense, right[0], seed=seed, groups=answers.tasks)
            if len(right) == 1
            else hierarchical_bootstrap(-right, -dense, seed=seed, groups=answers.tasks)
        )
        loss = Interval(compared.mean, compared.low, compared.high, compared.n)
        rows.append([method, sparsity, len(runs), *rise, loss.mean, loss.low, loss.high, keeps_while(rise, loss)])
    columns = [
        "method",
        "sparsity",
        "n_seeds",
        "rise",
        "rise_low",
        "rise_high",
        "loss",
        "loss_low",
        "loss_high",
        "verdict",
    ]
    return pd.DataFrame(rows, columns=columns)


def keeps_while(rise: Sequence[float], loss: Interval) -> Verdict:
    """Return whether perplexity keeps while tasks degrade.

    "supported" if the rise of perplexity lies wholly below `KEPT_RISE` and the loss of accuracy wholly above zero;
    "not supported" if the rise lies wholly above `KEPT_RISE`, or the loss wholly below `POINT`; else "inconclusive".

    Args:
        rise: mean, low, high.
    """
    _, low, high = rise
    if loss.low is None or loss.high is None:
        return "inconclusive"
    if high < KEPT_RISE and loss.low > 0:
        return "supported"
    return "not supported" if low > KEPT_RISE or loss.high < POINT else "inconclusive"


# --- noise ------------------------------------------------------------------------------------------------


def noise_table(
    table: pd.DataFrame, layout: Layout, components: Mapping[str, VarianceComponents], measures: Sequence[str]
) -> pd.DataFrame:
    """Return by measure how far texts, draws and the evaluation move it, as standard deviations.

    Columns: measure, loss (mean over the grid), text, draw, evaluation (in the measure's unit), draw_low, draw_high
    (limits of draw), and signal: s.d. between texts over that between draws and evaluations of single runs.

    Args:
        components: from `crossed.crossed_components`.
    """
    rows = []
    for name in measures:
        found = components[name].clipped
        draw = [_root_sum(found, "seed", limit, "seed x method") for limit in ("mean", "low", "high")]
        text, evaluation = _root_sum(found, "source", "mean"), _root_sum(found, "evaluation", "mean")
        noise = np.hypot(draw[0], evaluation)
        signal = float(text / noise) if noise > 0 else np.inf
        rows.append((name, float(cells(table, *layout, name).mean()), text, *draw, evaluation, signal))
    columns = ["measure", "loss", "text", "draw", "draw_low", "draw_high", "evaluation", "signal"]
    return pd.DataFrame(rows, columns=columns)


def _root_sum(found: Mapping[str, Interval], part: str, limit: str, *others: str) -> float:
    """Return the square root of a component, or of several together; NaN where it has no such limit."""
    values = [getattr(found[name], limit) for name in (part, *others)]
    return float(np.sqrt(sum(values))) if None not in values else float("nan")


def steadier(noise: pd.DataFrame, one: str = "damage", other: str = "accuracy_loss") -> Verdict:
    """Return whether draws move the second measure more than the first, each relative to its mean loss.

    Evaluation noise is not counted. "supported" if the second's lower limit is above the first's upper one, "not
    supported" if its upper limit is below the first's lower one, else "inconclusive".
    """
    rows = noise.set_index("measure")
    relative = rows[["draw_low", "draw_high"]].div(rows["loss"], axis=0).loc[[one, other]].to_numpy(np.float64)
    (one_low, one_high), (low, high) = relative.tolist()
    if not np.isfinite(relative).all():
        return "inconclusive"
    return "supported" if low > one_high else "not supported" if high < one_low else "inconclusive"


def item_noise(answers: Answers, run_ids: Sequence[str]) -> dict[str, float]:
    """Return how far the choice of items moves accuracy, and how many items a difference of one point needs.

    Returns: `one`, the standard error of one run's accuracy; `difference`, that of the difference of two runs that
    answer the same items; `unpaired`, the same if they answered different ones; `n_items`, how many there are;
    `needed`, how many are needed to find a difference of one point with 80 % power at 5 %, the same items for both.

    Raises InputError for fewer than two runs.
    """
    if len(run_ids) < 2:
        raise InputError(f"item_noise compares runs: at least 2 are needed, got {len(run_ids)}.")
    right = answers.of(run_ids)
    one = float(np.sqrt((item_table(right, answers.tasks).noise ** 2).sum(axis=1).mean()))
    difference = float(np.sqrt(2 * noise_in_differences(right, answers.tasks)))
    n_items = right.shape[1]
    needed = n_items * (POWER * difference / POINT) ** 2
    return {"one": one, "difference": difference, "unpaired": one * 2**0.5, "n_items": n_items, "needed": needed}
