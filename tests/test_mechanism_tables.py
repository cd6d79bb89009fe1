"""Where a text shows, in tables: pairs and excess by hand, the rules on made-up blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from test_measurements import ALIKE, measurement

from calib_study.errors import InputError
from calib_study.measurements import BlockSwap, Draw, LayerProfile, MeasurementStore
from calib_study.mechanism_tables import (
    ALONE,
    DRAWS,
    TEXTS,
    error_table,
    excess_table,
    few_blocks,
    foreign_ratios,
    judge,
    late_blocks,
    outlier_table,
    pair_table,
    profiles_of,
    same_blocks,
    swap_costs,
    swap_table,
    top_share,
)
from calib_study.specs import Calibration

N_BLOCKS, SEEDS, NAMES = 5, (0, 1, 2), ("c4", "code", "math")


def draw(source: str, seed: int) -> Draw:
    return Draw(text=Calibration(source=source, n_samples=4, seq_len=16), seed=seed)


def arrays(bits: list[list[int]], norms: list[float], errors: list[list[float]], texts: list[str]) -> dict[str, Any]:
    """Return a profile of two layers, in blocks 0 and 1, each reading an input of two channels."""
    return {
        "layers": np.array(["b.0.attn.q_proj", "b.1.mlp.up_proj"]),
        "kinds": np.array(["attn.q_proj", "mlp.up_proj"]),
        "blocks": np.array([0, 1]),
        "inputs": np.array([0, 1]),
        "widths": np.array([2, 2]),
        "norms": np.array(norms),
        "outliers": np.array([1.0, 2.0]),
        "errors": np.array(errors),
        "datasets": np.array(texts),
        "mask_layers": np.array(["b.0.attn.q_proj", "b.1.mlp.up_proj"]),
        "mask_sizes": np.array([100, 300]),
        "mask_bits": np.packbits(np.array(bits, dtype=bool), axis=1),
    }


# Four positions of each of two masks, twice; removed in c4's two draws: {0, 1} and {0, 2}; in both of code's: {2, 3}.
FIRST, SECOND, THIRD = [1, 1, 0, 0] * 2, [1, 0, 1, 0] * 2, [0, 0, 1, 1] * 2
PROFILES = {
    ("c4", 0): arrays([FIRST, FIRST], [1, 1, 1, 1], [[0.1, 0.2], [0.1, 0.2]], ["c4", "code"]),
    ("code", 0): arrays([THIRD, FIRST], [1, np.e**2, 1, 1], [[0.2, 0.1], [0.4, 0.1]], ["c4", "code"]),
    ("c4", 1): arrays([SECOND, FIRST], [1, 1, 1, 1], [[0.1, 0.2], [0.1, 0.2]], ["c4", "code"]),
    ("code", 1): arrays([THIRD, FIRST], [1, np.e**2, 1, 1], [[0.2, 0.1], [0.4, 0.1]], ["c4", "code"]),
}


def test_pairs_by_hand() -> None:
    table = pair_table(PROFILES)
    assert len(table) == 2 * (1 + 2) * 2  # seeds x (a pair of texts, two of draws) x layers
    first = table[table["block"] == 0].set_index(["differs", "one", "other", "seed"])["apart"]
    # c4 and code: nothing in common in draw 0, {2} of {0, 2, 3} in draw 1; c4's draws {0} of {0, 1, 2}
    assert first[TEXTS, "c4", "code", 0] == 1
    assert first[TEXTS, "c4", "code", 1] == pytest.approx(2 / 3)
    assert first[DRAWS, "c4", "c4", 0] == first[DRAWS, "c4", "c4", 1] == pytest.approx(2 / 3)
    assert first[DRAWS, "code", "code", 0] == 0
    assert table.loc[table["block"] == 1, "apart"].eq(0).all()
    assert set(table["kind"]) == {"q_proj", "up_proj"}
    # ln norms differ by 0 and 2: each 1 from their mean
    distances = table[(table["differs"] == TEXTS) & (table["block"] == 0)]["distance"]
    assert_allclose(distances, 1)


def test_excess_by_hand() -> None:
    table = excess_table(pair_table(PROFILES)).set_index(["seed", "block"])
    # texts 1; draws (2/3 + 0) / 2
    assert table.loc[(0, 0), TEXTS] == 1
    assert table.loc[(0, 0), DRAWS] == pytest.approx(1 / 3)
    assert table.loc[(0, 0), "excess"] == pytest.approx(2 / 3)
    assert table.loc[(1, 0), "excess"] == pytest.approx(1 / 3)
    by_kind = excess_table(pair_table(PROFILES), by=("block", "kind"))
    assert set(by_kind["kind"]) == {"q_proj", "up_proj"}


def test_layers_of_a_block_count_by_size() -> None:
    one_block = {key: {**found, "blocks": np.array([0, 0])} for key, found in PROFILES.items()}
    table = excess_table(pair_table(one_block)).set_index("seed")
    assert table.loc[0, TEXTS] == pytest.approx((100 * 1 + 300 * 0) / 400)


@pytest.mark.parametrize("lost", [("c4", 0), ("code", 1)])
def test_every_text_needs_the_same_seeds(lost: tuple[str, int]) -> None:
    with pytest.raises(InputError, match="got 3 profiles of 2 texts and 2 seeds"):
        pair_table({key: found for key, found in PROFILES.items() if key != lost})


def test_errors_and_ratios_by_hand() -> None:
    table = error_table(PROFILES)
    assert set(table.loc[table["own"], "error"]) == {0.1}
    ratios = foreign_ratios(table, "block").set_index(["dataset", "source", "seed", "block"])["ratio"]
    assert ratios["c4", "code", 0, 0] == pytest.approx(2)
    assert ratios["c4", "code", 0, 1] == pytest.approx(4)
    assert ratios["code", "c4", 1, 1] == pytest.approx(2)
    by_kind = foreign_ratios(table, "kind")
    assert len(by_kind) == 8


def test_blocks_and_texts_without_an_error_of_their_own_are_left_out() -> None:
    left_out = {
        key: {**found, "errors": np.array([found["errors"][0], [np.nan] * 2])} for key, found in PROFILES.items()
    }
    assert set(error_table(left_out)["block"]) == {0}
    only = {key: found for key, found in PROFILES.items() if key[0] == "c4"}
    assert set(error_table(only)["dataset"]) == {"c4"}


def test_outliers() -> None:
    table = outlier_table(PROFILES)
    assert len(table) == 8 and table[table["block"] == 1]["outliers"].eq(2).all()


# --- swaps ------------------------------------------------------------------------------------------------


def test_swaps_are_read_from_the_store(tmp_path: Path) -> None:
    store = MeasurementStore(tmp_path)
    requests = [
        LayerProfile(draw=draw("c4", 0), **ALIKE),
        BlockSwap(base=None, other=draw("c4", 1), **ALIKE),
        BlockSwap(base=draw("c4", 1), other=draw("code", 1), **ALIKE),
        BlockSwap(base=draw("c4", 1), other=draw("c4", 2), **ALIKE),
        BlockSwap(base=draw("c4", 1), other=None, **ALIKE),
    ]
    swapped = {
        "blocks": np.array([0, 3]),
        "datasets": np.array(["c4", "c4", "code"]),
        "base_nll": np.array([1.0, 3.0, 5.0]),
        "nll": np.array([[2.0, 3.0, 5.0], [1.0, 3.0, 4.0]]),
        "divergence": np.array([[0.5, 1.5, 0.0], [1.0, 1.0, 1.0]]),
    }
    for request in requests:
        store.put(measurement(request), {"norms": np.ones(1)} if isinstance(request, LayerProfile) else swapped)
    found = [one for request in requests if (one := store.get(request.measurement_id))]
    assert list(profiles_of(found, store)) == [("c4", 0)]
    table = swap_table(found, store)
    assert table.groupby("swap").size().to_dict() == {ALONE: 4, TEXTS: 4, DRAWS: 4}
    assert set(table["seed"]) == {1} and set(table["block"]) == {0, 3}
    row = table[(table["swap"] == TEXTS) & (table["block"] == 0) & (table["dataset"] == "c4")].iloc[0]
    # windows 1 and 2: the loss 2 to 2.5, the divergence 1
    assert (row["base"], row["other"], row["rise"], row["cost"], row["base_nll"]) == ("c4", "code", 0.5, 1.0, 2.0)
    means = swap_costs(table[table["swap"] == ALONE])
    assert means.set_index("block")["cost"].to_dict() == {0: 0.5, 3: 1.0}


# --- rules ------------------------------------------------------------------------------------------------

Shape = Callable[[int], float]


def excess(shape: Shape) -> pd.DataFrame:
    """Return the excess of three pairs of texts, by a function of the block; a little another for each seed."""
    rows = [
        (one, other, seed, block, shape(block) + 0.01 * seed, shape(block))
        for one, other in (("c4", "code"), ("c4", "math"), ("code", "math"))
        for seed in SEEDS
        for block in range(N_BLOCKS)
    ]
    return pd.DataFrame(rows, columns=["one", "other", "seed", "block", TEXTS, "excess"])


def swaps(shape: Shape, alone: Shape) -> pd.DataFrame:
    pairs = [(TEXTS, base, other) for base, other in (("c4", "code"), ("code", "math"), ("math", "c4"))]
    rows = [
        (swap, base, other, seed, block, dataset, 0.0, (alone if base is None else shape)(block), 3.0)
        for swap, base, other in [*pairs, *((ALONE, None, name) for name in NAMES)]
        for seed in SEEDS
        for block in range(N_BLOCKS)
        for dataset in ("c4", "code")
    ]
    columns = ["swap", "base", "other", "seed", "block", "dataset", "rise", "cost", "base_nll"]
    return pd.DataFrame(rows, columns=columns)


def up(block: int) -> float:
    return float(block)


def down(block: int) -> float:
    return float(N_BLOCKS - block)


def spike(block: int) -> float:
    return 10.0 if block == 2 else 1.0


def test_depth_is_a_rank_correlation() -> None:
    assert late_blocks(excess(up)).mean == pytest.approx(1)
    assert late_blocks(excess(lambda block: float(np.exp(block)))).mean == pytest.approx(1)
    assert late_blocks(excess(down)).mean == pytest.approx(-1)


def test_pairs_of_swaps_find_their_masks_either_way_round() -> None:
    assert same_blocks(excess(up), swaps(up, up)).mean == pytest.approx(1)
    assert same_blocks(excess(up), swaps(down, up)).mean == pytest.approx(-1)


def test_blocks_that_were_not_swapped_do_not_count() -> None:
    some = swaps(up, up)
    some = some[some["block"] % 2 == 0]
    assert same_blocks(excess(up), some).mean == pytest.approx(1)


def test_share_of_the_costliest_blocks_by_hand() -> None:
    # told by the other text: block 1 for the first text (2 of 6), block 0 for the second (1 of 6)
    costs = np.array([[3.0, 1.0], [2.0, 4.0], [1.0, 1.0]])
    assert top_share(costs, 1 / 3) == pytest.approx((2 / 6 + 1 / 6) / 2)
    # a tenth of three blocks is one block
    assert top_share(costs, 0.1) == top_share(costs, 1 / 3)
    with pytest.raises(InputError, match="at least 2 held-out texts"):
        top_share(costs[:, :1])


def test_few_blocks_by_hand() -> None:
    found = few_blocks(swaps(up, spike))  # one of five blocks: 10 of 14
    assert (found.mean, found.n) == (pytest.approx(10 / 14), 3)


@pytest.mark.parametrize(
    ("masks", "swapped", "alone", "expected"),
    [
        (up, up, spike, ["supported"] * 3),
        (down, up, up, ["not supported"] * 3),
    ],
)
def test_verdicts(masks: Shape, swapped: Shape, alone: Shape, expected: list[str]) -> None:
    found = judge(excess(masks), swaps(swapped, alone))
    assert [one.verdict for one in found] == expected
    assert "1 of 5 blocks" in found[1].statistic


def test_an_order_that_seeds_turn_round_is_inconclusive() -> None:
    table = excess(up)
    table.loc[table["seed"] == 1, "excess"] *= -1
    assert judge(table, swaps(up, spike))[0].verdict == "inconclusive"


def test_a_missing_block_is_reported() -> None:
    with pytest.raises(InputError, match="have no 'excess'"):
        late_blocks(excess(up).iloc[1:])
