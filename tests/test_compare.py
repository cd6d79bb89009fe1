"""Comparisons of made-up records: pairs by seed and by window, differences by hand, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_records import answers, group, keep, spec

from calib_study.compare import Comparison, Over, Row, as_json, compare, lines
from calib_study.errors import InputError
from calib_study.records import Store
from calib_study.resampling import hierarchical_bootstrap, paired_bootstrap
from calib_study.selection import select_two
from calib_study.statistics import Interval, paired_difference

LOSSES = (1.0, 2.0, 3.0, 6.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def found(store: Store, a: str, b: str, where: str = "", over: Over = "seeds", seed: int = 0) -> Comparison:
    return compare(*select_two(a, b, where=where, store=store), over=over, seed=seed)


def row(comparison: Comparison, metric: str, dataset: str = "c4") -> Row:
    (one,) = [one for one in comparison.rows if (one.metric, one.dataset) == (metric, dataset)]
    return one


# --- single runs ------------------------------------------------------------------------------------------


def test_two_runs_are_paired_by_window(store: Store) -> None:
    better = (0.5, 1.5, 2.4, 5.6)  # mean 2.5, of LOSSES 3
    one, two = keep(store, spec("sparsegpt"), better), keep(store, spec(), LOSSES)
    comparison = found(store, one.run_id, two.run_id)
    loss = row(comparison, "nll")
    assert (loss.a, loss.b, loss.n, loss.better) == (2.5, 3.0, "4 windows", "A")
    assert loss.difference == paired_bootstrap(better, LOSSES, seed=0)
    size = row(comparison, "perplexity")
    assert size.relative and size.a == pytest.approx(math.exp(2.5)) and size.b == pytest.approx(math.exp(3))
    assert size.difference.mean == pytest.approx(math.exp(-0.5) - 1)  # A / B - 1
    assert size.difference.low == pytest.approx(math.expm1(loss.difference.low or 0))
    bits, scale = row(comparison, "bits_per_byte"), 4 / math.log(2)
    assert bits.difference.high == pytest.approx((loss.difference.high or 0) * scale)
    assert comparison.differs == (("method", "sparsegpt", "wanda"),)


def test_the_seed_is_of_the_resampling(store: Store) -> None:
    one, two = keep(store, spec("sparsegpt"), (0.5, 1.4, 2.0, 6.5)), keep(store, spec(), LOSSES)
    limits = [row(found(store, one.run_id, two.run_id, seed=seed), "nll").difference for seed in (0, 0, 1)]
    assert limits[0] == limits[1] != limits[2]


def test_answers_are_paired_by_item_and_more_is_better(store: Store) -> None:
    asked: dict[str, Any] = {"evaluation": {"tasks": ("piqa",), "task_limit": 12}}
    right, wrong = [True] * 12, [True] * 3 + [False] * 9
    one = keep(store, spec(**asked), LOSSES, [answers(right)])
    two = keep(store, spec(source="code", **asked), LOSSES, [answers(wrong)])
    comparison = found(store, one.run_id, two.run_id)
    share = row(comparison, "acc", "piqa")
    assert share.difference == paired_bootstrap([1.0] * 12, [1.0] * 3 + [0.0] * 9, seed=0)
    assert (share.difference.mean, share.n, share.better) == (0.75, "12 items", "A")
    assert row(comparison, "perplexity", "piqa").better == "A"  # lower: -1 is likelier than -2
    assert row(comparison, "nll").better == "equal"


def test_few_windows_give_no_interval(store: Store) -> None:
    few: dict[str, Any] = {"evaluation": {"n_windows": 2}}
    one, two = keep(store, spec(**few), (1.0, 2.0)), keep(store, spec(source="code", **few), (1.5, 2.5))
    comparison = found(store, one.run_id, two.run_id)
    assert row(comparison, "nll").difference == Interval(-0.5, None, None, 1)
    assert row(comparison, "nll").better == ""
    assert "None where fewer than 4 windows" in "\n".join(lines(comparison))


def test_better_by_hand() -> None:
    def better(low: float, high: float, higher: bool) -> str:
        return Row("m", "d", "", higher, 0, 0, Interval(0, low, high, 9), False, "").better

    assert [better(1, 2, True), better(1, 2, False), better(-2, -1, True), better(-2, -1, False)] == [*"ABBA"]
    assert better(-1, 1, True) == better(0, 1, True) == "undecided"
    assert better(0, 0, True) == "equal"


# --- groups -----------------------------------------------------------------------------------------------

C4 = {0: (1.0, 2.0, 3.0, 6.0), 1: (1.1, 2.0, 3.2, 6.1), 2: (0.9, 2.1, 3.0, 6.2)}
CODE = {seed: tuple(x + 0.3 + 0.1 * seed for x in values) for seed, values in C4.items()}


def test_groups_are_paired_by_seed(store: Store) -> None:
    group(store, C4)
    group(store, CODE, source="code")
    comparison = found(store, "source=c4", "source=code")
    assert [(one.spec.seed, two.spec.seed) for one, two in comparison.pairs] == [(0, 0), (1, 1), (2, 2)]
    assert comparison.differs == (("source", "c4", "code"),)
    loss = row(comparison, "nll")
    means = [[sum(values) / 4 for values in side.values()] for side in (C4, CODE)]
    expected = paired_difference(*means)  # differences -0.3, -0.4, -0.5: mean -0.4
    assert loss.difference.mean == pytest.approx(-0.4) == pytest.approx(expected.mean)
    assert loss.difference.low == pytest.approx(expected.low) and loss.difference.high == pytest.approx(expected.high)
    assert (loss.n, loss.better) == ("3 seeds", "A")
    size = row(comparison, "perplexity")
    assert size.a == pytest.approx(math.exp(sum(means[0]) / 3))  # the geometric mean
    assert size.difference.mean == pytest.approx(math.exp(-0.4) - 1)


def test_over_both_resamples_windows_too(store: Store) -> None:
    group(store, C4)
    group(store, CODE, source="code")
    loss = row(found(store, "source=c4", "source=code", over="both"), "nll")
    assert loss.difference == hierarchical_bootstrap(list(C4.values()), list(CODE.values()), seed=0)
    assert loss.n == "3 seeds x 4 windows"


def test_a_run_without_randomness_stands_beside_every_seed(store: Store) -> None:
    group(store, C4)
    keep(store, spec("magnitude", None), (2.0, 3.0, 4.0, 7.0))
    for a, b, better in (("source=c4", "method=magnitude", "A"), ("method=magnitude", "source=c4", "B")):
        comparison = found(store, a, b)
        assert len(comparison.pairs) == 3 and row(comparison, "nll").better == better
    assert dict((name, (one, two)) for name, one, two in comparison.differs)["source"] == ("none", "c4")


def test_only_shared_seeds_count_and_the_others_are_named(store: Store) -> None:
    group(store, C4)
    group(store, {seed + 1: values for seed, values in CODE.items()}, source="code")
    comparison = found(store, "source=c4", "source=code")
    assert [one.spec.seed for one, _ in comparison.pairs] == [1, 2]
    assert comparison.left_out == ("seeds 0: only A has them.", "seeds 3: only B has them.")


def test_one_shared_seed_is_a_comparison_of_two_runs(store: Store) -> None:
    group(store, C4)
    keep(store, spec(source="code", seed=2), LOSSES)
    comparison = found(store, "source=c4", "source=code")
    assert row(comparison, "nll").n == "4 windows" and len(comparison.pairs) == 1


# --- what is refused or left out --------------------------------------------------------------------------


def test_no_shared_seed_is_refused(store: Store) -> None:
    group(store, C4)
    group(store, {7: LOSSES, 8: LOSSES}, source="code")
    with pytest.raises(InputError, match=r"share no seed(.|\n)*seeds 0, 1, 2: only A(.|\n)*seeds 7, 8: only B"):
        found(store, "source=c4", "source=code")


def test_several_settings_are_refused_with_conditions_that_tell_them_apart(store: Store) -> None:
    group(store, C4)
    group(store, {0: LOSSES, 1: LOSSES}, n_samples=8)
    group(store, CODE, source="code")
    with pytest.raises(InputError, match=r"A \(source=c4\) should be one setting .* its 5 records are of 2") as caught:
        found(store, "source=c4", "source=code")
    assert str(caught.value).splitlines()[1:] == ["  n_samples=4  (records: 3)", "  n_samples=8  (records: 2)"]
    assert len(found(store, "source=c4", "source=code", where="n_samples=4").pairs) == 3


def test_the_same_run_twice_is_refused(store: Store) -> None:
    run_id = keep(store, spec(), LOSSES).run_id
    with pytest.raises(InputError, match=f"A and B are the same: {run_id}"):
        found(store, run_id, "source=c4")


def test_other_windows_are_refused(store: Store) -> None:
    one, two = keep(store, spec(), LOSSES), keep(store, spec(evaluation={"n_windows": 5}), (*LOSSES, 1.0))
    with pytest.raises(InputError, match=r"nothing was scored alike(.|\n)*eval_n_windows 4 and 5"):
        found(store, one.run_id, two.run_id)


def test_other_items_are_left_out_with_the_reason(store: Store) -> None:
    asked: dict[str, Any] = {"evaluation": {"tasks": ("piqa",), "task_limit": 4}}
    one = keep(store, spec(**asked), LOSSES, [answers([True, False] * 2)])
    two = keep(store, spec(source="code", **asked), LOSSES, [answers([True, False] * 2, [4, 5, 6, 7])])
    comparison = found(store, one.run_id, two.run_id)
    assert {one.dataset for one in comparison.rows} == {"c4"}
    (reason,) = comparison.left_out
    assert reason.startswith("acc on piqa, perplexity on piqa: scored on other items (items 4 (")


# --- how it is shown --------------------------------------------------------------------------------------


def test_the_text_begins_with_what_differs(store: Store) -> None:
    group(store, C4)
    group(store, CODE, source="code")
    shown = lines(found(store, "source=c4", "source=code"))
    assert shown[:6] == [
        "A: m: wanda 0.5 on c4, seeds 0, 1, 2",
        "B: m: wanda 0.5 on code, seeds 0, 1, 2",
        "",
        "differs  A   B",
        "source   c4  code",
        "",
    ]
    heads = ["metric", "on", "A", "B", "A - B", "interval", "paired by", "better"]
    assert shown[6].split() == " ".join(heads).split()
    # ln perplexities: of A 12/4, 12.4/4, 12.2/4, mean 3.05, exp 21.1153; of B 0.4 more; exp(-0.4) - 1 = -32.97 %
    assert shown[7].split()[:6] == ["perplexity", "c4", "21.1153", "31.5004", "-32.97", "%"]
    assert max(map(len, shown)) <= 120


def test_json_holds_everything(store: Store) -> None:
    group(store, C4)
    group(store, CODE, source="code")
    comparison = found(store, "source=c4", "source=code")
    held = json.loads(json.dumps(as_json(comparison), allow_nan=False))
    assert held["differs"] == {"source": ["c4", "code"]} and held["seeds"] == [[0, 0], [1, 1], [2, 2]]
    assert held["a"]["run_ids"] == [spec(seed=seed).run_id for seed in C4]
    assert [one["metric"] for one in held["rows"]] == ["perplexity", "nll", "bits_per_byte"]
    assert held["rows"][1]["difference"]["mean"] == row(comparison, "nll").difference.mean
    assert (held["over"], held["level"], held["rows"][1]["better"]) == ("seeds", 0.95, "A")
