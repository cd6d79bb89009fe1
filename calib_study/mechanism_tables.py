"""Where a calibration text shows: measurements of layers and of swapped blocks as tables, and the rules on them.

A pair of *texts* is two masks of one seed made from two texts; a pair of *draws*, the null that it is held against, is
two masks made from two draws of one text. Blocks count from 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calib_study.array_files import Array
from calib_study.association import mean_rank_correlation
from calib_study.errors import InputError
from calib_study.measurements import BlockSwap, Draw, LayerProfile, Measurement, MeasurementStore
from calib_study.norm_distance import norm_distance
from calib_study.statistics import Interval, mean_interval
from calib_study.verdicts import Judgement, Verdict, at_least, shifted, text_of

Arrays = Mapping[str, Array]
Profiles = Mapping[tuple[str, int], Arrays]  # arrays of `LayerProfile` by text and seed
TEXTS, DRAWS, ALONE = "texts", "draws", "alone"
FEW = 0.2  # of the blocks are few
MOST = 0.5  # of the cost is most of it


# --- measurements -----------------------------------------------------------------------------------------


def profiles_of(found: Iterable[Measurement], store: MeasurementStore) -> dict[tuple[str, int], Arrays]:
    """Return the arrays of all profiles of layers, by text and seed."""
    return {
        (one.request.draw.text.source, one.request.draw.seed): store.arrays(one)
        for one in found
        if isinstance(one.request, LayerProfile)
    }


def swap_table(found: Iterable[Measurement], store: MeasurementStore) -> pd.DataFrame:
    """Return one row for each swapped block and held-out text: what the swap changes there.

    Columns: swap ("alone": this block pruned, the rest dense; "texts": pruned by another text; "draws": by another draw
    of the same text), base (the text of the rest, None if dense), other (the text of the block), seed (that of the
    base, or of the block if it is alone), block, dataset, rise (of the loss, nats per token), cost (KL from the model
    all of whose blocks are alike, nats per token), base_nll.
    """
    rows = []
    for one in found:
        request = one.request
        if not isinstance(request, BlockSwap) or request.other is None:
            continue
        arrays = store.arrays(one)
        base, other, drawn = _source(request.base), request.other.text.source, request.base or request.other
        swap = ALONE if base is None else DRAWS if base == other else TEXTS
        for name in dict.fromkeys(arrays["datasets"].tolist()):
            here = arrays["datasets"] == name
            before = float(arrays["base_nll"][here].mean())
            rise = arrays["nll"][:, here].mean(axis=1) - before
            cost = arrays["divergence"][:, here].mean(axis=1)
            for row, block in enumerate(arrays["blocks"].tolist()):
                rows.append((swap, base, other, drawn.seed, block, name, rise[row], cost[row], before))
    columns = ["swap", "base", "other", "seed", "block", "dataset", "rise", "cost", "base_nll"]
    return pd.DataFrame(rows, columns=columns)


def _source(draw: Draw | None) -> str | None:
    return None if draw is None else draw.text.source


# --- layers -----------------------------------------------------------------------------------------------


def pair_table(profiles: Profiles) -> pd.DataFrame:
    """Return how far two profiles are apart in each layer, for each pair of texts of a seed and each pair of draws.

    Columns: differs ("texts" or "draws"), one, other (texts, equal if draws differ), seed (draws: that of the first;
    the second is the next seed), block, kind (name of the layer inside its block, without what it is part of), size
    (weights), apart (1 - |removed in both| / |removed in either|), distance (of activation norms, `norm_distance`).
    Raises InputError unless every text has the same seeds, at least two.
    """
    from calib_study.mask_samples import MaskSample, jaccard

    texts, seeds = _balanced(profiles)
    masks = {key: MaskSample.of_arrays(arrays) for key, arrays in profiles.items()}
    norms = {key: _norms_by_layer(arrays) for key, arrays in profiles.items()}
    following = dict(zip(seeds, [*seeds[1:], seeds[0]], strict=True))
    tables = []
    for seed in seeds:
        asked = [(TEXTS, (one, seed), (other, seed)) for one, other in combinations(texts, 2)]
        asked += [(DRAWS, (text, seed), (text, following[seed])) for text in texts]
        for differs, first, second in asked:
            distances = norm_distance(norms[first], norms[second]).by_layer
            table = pd.DataFrame({"differs": differs, "one": first[0], "other": second[0], "seed": seed}, index=[0])
            layers = _layer_columns(profiles[first], masks[first].sizes)
            layers["apart"] = 1 - jaccard(masks[first], masks[second])
            layers["distance"] = [distances[name] for name in profiles[first]["layers"].tolist()]
            tables.append(table.merge(layers, how="cross"))
    return pd.concat(tables, ignore_index=True)


def _balanced(profiles: Profiles) -> tuple[list[str], list[int]]:
    """Return texts and seeds. Raises InputError unless every text has the same seeds, at least two."""
    texts, seeds = list(dict.fromkeys(text for text, _ in profiles)), sorted({seed for _, seed in profiles})
    if len(seeds) < 2 or len(profiles) != len(texts) * len(seeds):
        raise InputError(
            f"pairs need the same seeds of every text, at least two; got {len(profiles)} profiles of {len(texts)} "
            f"texts and {len(seeds)} seeds."
        )
    return texts, seeds


def _norms_by_layer(arrays: Arrays) -> dict[str, Array]:
    """Return the norms of each layer's input, by the layer's name."""
    inputs = np.split(arrays["norms"], np.cumsum(arrays["widths"])[:-1])
    return {str(name): inputs[i] for name, i in zip(arrays["layers"], arrays["inputs"], strict=True)}


def _layer_columns(arrays: Arrays, sizes: Array) -> pd.DataFrame:
    kinds = [str(name).rpartition(".")[2] for name in arrays["kinds"]]
    return pd.DataFrame({"block": arrays["blocks"].astype(int), "kind": kinds, "size": sizes})


def excess_table(pairs: pd.DataFrame, value: str = "apart", by: Sequence[str] = ("block",)) -> pd.DataFrame:
    """Return how much farther two texts are apart than two draws of either of them are, block by block.

    Columns: one, other (texts), seed, those of `by`, texts, draws (mean of the two texts), excess (their difference).
    Layers of a block count by their size.

    Args:
        pairs: from `pair_table`. value: "apart" or "distance". by: "block", or "block" and "kind".
    """
    weighted = pairs.assign(total=pairs[value] * pairs["size"])
    sums = weighted.groupby(["differs", "one", "other", "seed", *by], sort=False)[["total", "size"]].sum()
    means = (sums["total"] / sums["size"]).rename("mean").reset_index()
    draws = means[means["differs"] == DRAWS].drop(columns=["differs", "other"])
    table = means[means["differs"] == TEXTS].drop(columns="differs").rename(columns={"mean": TEXTS})
    for text in ("one", "other"):
        its = draws.rename(columns={"one": text, "mean": f"draws_{text}"})
        table = table.merge(its, on=[text, "seed", *by], how="left")
    table[DRAWS] = (table["draws_one"] + table["draws_other"]) / 2
    table["excess"] = table[TEXTS] - table[DRAWS]
    return table.drop(columns=["draws_one", "draws_other"])


def outlier_table(profiles: Profiles) -> pd.DataFrame:
    """Return OWL's share of outlying scores: source, seed, block, outliers (per cent)."""
    rows = [
        (source, seed, block, float(share))
        for (source, seed), arrays in profiles.items()
        for block, share in enumerate(arrays["outliers"])
    ]
    return pd.DataFrame(rows, columns=["source", "seed", "block", "outliers"])


def error_table(profiles: Profiles) -> pd.DataFrame:
    """Return the relative error of every layer's output: source (of the mask), seed, dataset, own, block, kind, error.

    `own` says whether the held-out text is of the source that the mask was made from. Texts that made no mask are left
    out: of them nothing is own.
    """
    sources, tables = {source for source, _ in profiles}, []
    for (source, seed), arrays in profiles.items():
        layers = _layer_columns(arrays, np.ones(len(arrays["layers"]))).drop(columns="size")
        for column, name in enumerate(arrays["datasets"].tolist()):
            if name in sources:
                errors = arrays["errors"][:, column].astype(np.float64)  # missing in blocks that were left out
                tables.append(layers.assign(source=source, seed=seed, dataset=name, own=name == source, error=errors))
    columns = ["source", "seed", "dataset", "own", "block", "kind", "error"]
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return found.loc[found["error"].notna(), columns].reset_index(drop=True)


def foreign_ratios(errors: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return, on one and the same held-out text, the error of a foreign mask over that of its own: a ratio.

    Columns: dataset, source (of the foreign mask), seed, `by`, ratio: exp of the mean over layers of the logarithm.

    Args:
        errors: from `error_table`. by: "block" or "kind".
    """
    key = ["dataset", "seed", "block", "kind"]
    own = errors.loc[errors["own"], [*key, "error"]]
    both = errors[~errors["own"]].merge(own, on=key, suffixes=("", "_own"))
    both["log"] = np.log(both["error"]) - np.log(both["error_own"])
    table = both.groupby(["dataset", "source", "seed", by], sort=False)["log"].mean().reset_index()
    return table.assign(ratio=np.exp(table["log"])).drop(columns="log")


# --- rules ------------------------------------------------------------------------------------------------


def late_blocks(excess: pd.DataFrame) -> Interval:
    """Return how the excess of a pair of texts goes with depth: Spearman's rho over blocks, above 0 if late blocks
    show more; the mean over pairs of texts, with Student's interval over seeds.

    Args:
        excess: from `excess_table`, by block.
    """
    values = _cube(excess, ["one", "other"], "excess")
    depth = np.broadcast_to(np.arange(values.shape[2], dtype=np.float64), values.shape)
    return mean_rank_correlation(depth, values)


def top_share(costs: NDArray[np.float64], share: float = FEW) -> float:
    """Return how much of the cost the costliest blocks carry on each held-out text, averaged over the texts.

    Which blocks are the costliest is told by the other texts, so that chance on this one does not choose them. Of n
    blocks, n * share rounded up.

    Args:
        costs: (n_blocks, n_texts), at least two texts.

    >>> top_share(np.array([[3.0, 3.0], [1.0, 1.0], [0.0, 0.0]]), 1 / 3)
    0.75
    """
    n_blocks, n_texts = costs.shape
    if n_texts < 2:
        raise InputError(f"top_share needs at least 2 held-out texts, one to choose blocks for another; got {n_texts}.")
    n_top = int(np.ceil(share * n_blocks - 1e-9))
    found = []
    for text in range(n_texts):
        others = np.delete(costs, text, axis=1).mean(axis=1)
        top = np.argsort(-others, kind="stable")[:n_top]
        found.append(costs[top, text].sum() / costs[:, text].sum())
    return float(np.mean(found))


def few_blocks(swaps: pd.DataFrame) -> Interval:
    """Return the share of the cost that `FEW` of the blocks carry when each is pruned alone, mean over texts, with
    Student's interval over seeds.

    Args:
        swaps: from `swap_table`.
    """
    alone = swaps[swaps["swap"] == ALONE]
    by_draw = alone.groupby(["seed", "other"])[["block", "dataset", "cost"]]
    shares = {key: top_share(rows.pivot(index="block", columns="dataset", values="cost").to_numpy(np.float64))
              for key, rows in by_draw}  # fmt: skip
    return mean_interval(pd.Series(shares).groupby(level=0).mean().to_numpy(np.float64))


def swap_costs(swaps: pd.DataFrame, value: str = "cost") -> pd.DataFrame:
    """Return a value of `swap_table`, mean over held-out texts: swap, base, other, seed, block, and the value."""
    key = ["swap", "base", "other", "seed", "block"]
    return swaps.groupby(key, sort=False, dropna=False)[value].mean().reset_index()


def same_blocks(excess: pd.DataFrame, swaps: pd.DataFrame) -> Interval:
    """Return whether blocks in which two masks differ more cost more when swapped: Spearman's rho over blocks.

    The mean over pairs of texts, with Student's interval over seeds. The masks compared are those that are swapped.

    Args:
        excess: from `excess_table`, by block; its column `texts` is used. swaps: from `swap_table`.
    """
    costs = swap_costs(swaps[swaps["swap"] == TEXTS])
    turned = excess.rename(columns={"one": "other", "other": "one"})
    masks = pd.concat([excess, turned])[["one", "other", "seed", "block", TEXTS]].rename(columns={"one": "base"})
    both = costs.merge(masks, on=["base", "other", "seed", "block"], how="left", validate="one_to_one")
    pair = ["base", "other"]
    return mean_rank_correlation(_cube(both, pair, TEXTS), _cube(both, pair, "cost"))


def judge(excess: pd.DataFrame, swaps: pd.DataFrame) -> list[Judgement]:
    """Return the verdicts on the questions of the chapter.

    Args:
        excess: from `excess_table`, by block. swaps: from `swap_table`.
    """
    late, few, same = late_blocks(excess), few_blocks(swaps), same_blocks(excess, swaps)
    n_blocks = int(swaps["block"].nunique())
    n_few = int(np.ceil(FEW * n_blocks - 1e-9))
    rows: list[tuple[str, str, Verdict, str]] = [
        ("late blocks show more", f"Spearman's ρ {text_of(late, 2)}", at_least(late), "fig-overlap"),
        (
            "few blocks carry most",
            f"{n_few} of {n_blocks} blocks carry {text_of(few, 2)} of the cost",
            at_least(shifted(few, -MOST)),
            "fig-block-costs",
        ),
        ("masks tell the costly blocks", f"Spearman's ρ {text_of(same, 2)}", at_least(same), "fig-slide"),
    ]
    return [Judgement(*row) for row in rows]


def _cube(table: pd.DataFrame, pair: list[str], value: str) -> NDArray[np.float64]:
    """Return a value as an array (n_seeds, n_pairs, n_blocks). Raises InputError if a cell is missing."""
    wide = table.pivot(index=["seed", *pair], columns="block", values=value).sort_index()
    n_seeds = int(table["seed"].nunique())
    values = wide.to_numpy(np.float64)
    if np.isnan(values).any() or len(values) % n_seeds:
        raise InputError(f"some blocks, pairs of texts or seeds have no {value!r}.")
    return values.reshape(n_seeds, -1, values.shape[1])
