"""Likeness of texts: divergences, shingles and areas by hand and by brute force, then what must hold for any text."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from calib_study.errors import InputError
from calib_study.text_likeness import Jaccard, auc, minhash_jaccard, ngram_divergence, shingles, split_half_floor

LN_2 = math.log(2)
Windows = list[NDArray[np.int64]]


def brute_force(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]], n: int) -> float:
    """The divergence by dictionaries of tuples."""
    counts = [Counter(tuple(w[i : i + n]) for w in text for i in range(len(w) - n + 1)) for text in (a, b)]
    p, q = ({gram: c / count.total() for gram, c in count.items()} for count in counts)
    total = 0.0
    for gram in {*p, *q}:
        middle = (p.get(gram, 0) + q.get(gram, 0)) / 2
        total += sum(share[gram] * math.log(share[gram] / middle) / 2 for share in (p, q) if gram in share)
    return total


def random_windows(seed: int, n_windows: int, seq_len: int, d_vocab: int) -> Windows:
    return list(np.random.default_rng(seed).integers(0, d_vocab, (n_windows, seq_len)))


# --- n-grams ----------------------------------------------------------------------------------------------


def test_unigrams_by_hand() -> None:
    # a: 7 7 9 9, so 7 and 9 with 1/2 each; b: 9 9 9 5, so 9 with 3/4, 5 with 1/4.
    # m: 7 with 1/4, 9 with 5/8, 5 with 1/8.
    # KL(a || m) = 1/2 ln 2 + 1/2 ln (4/5); KL(b || m) = 3/4 ln (6/5) + 1/4 ln 2.
    expected = (0.5 * LN_2 + 0.5 * math.log(4 / 5) + 0.75 * math.log(6 / 5) + 0.25 * LN_2) / 2
    assert ngram_divergence([[7, 7], [9, 9]], [[9, 9, 9, 5]], 1) == pytest.approx(expected, rel=1e-12)


def test_ngrams_do_not_cross_windows() -> None:
    # a: 1 2 | 3 4 has the bigrams 12 and 34; b: 1 2 | 3 4 in one window has 23 too, with 1/3 each.
    # m: 12 and 34 with 5/12 each, 23 with 1/6. KL(a || m) = ln (6/5); KL(b || m) = 2/3 ln (4/5) + 1/3 ln 2.
    expected = (math.log(6 / 5) + 2 / 3 * math.log(4 / 5) + LN_2 / 3) / 2
    assert ngram_divergence([[1, 2], [3, 4]], [[1, 2, 3, 4]], 2) == pytest.approx(expected, rel=1e-12)
    assert ngram_divergence([[1, 2], [3, 4]], [[3, 4], [1, 2]], 2) == 0
    assert ngram_divergence([[1, 2], [1, 2]], [[2, 1]], 2) == pytest.approx(LN_2)  # the seam 21 is not counted


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_it_is_what_counting_tuples_gives(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = ([rng.integers(0, 3, length).tolist() for length in rng.integers(0, 23, 13)] for _ in range(2))
    assert ngram_divergence(a, b, n) == pytest.approx(brute_force(a, b, n), rel=1e-12)


def test_ids_may_be_of_any_size() -> None:
    a, b = random_windows(0, 5, 31, 3), random_windows(1, 5, 31, 3)
    scattered = np.array([0, 2**40, 2**62 + 1])
    far = ngram_divergence([scattered[w] for w in a], [scattered[w] for w in b], 4)
    assert far == pytest.approx(ngram_divergence(a, b, 4), rel=1e-12)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=9), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=9), min_size=1, max_size=5),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_it_is_symmetric_within_its_bounds_and_blind_to_order(a: list[list[int]], b: list[list[int]], n: int) -> None:
    there = ngram_divergence(a, b, n)
    assert 0 <= there <= LN_2 and there == ngram_divergence(b, a, n)
    assert ngram_divergence(a, a[::-1], n) == 0
    assert ngram_divergence(a, [*a, *a], n) == pytest.approx(0, abs=1e-12)
    assert ngram_divergence(a, [[5 + token for token in window] for window in b], n) == pytest.approx(LN_2)


def test_it_takes_a_table_of_windows_and_is_quick() -> None:
    tokens = np.random.default_rng(0).zipf(1.2, (1024, 128)) % 49_152
    assert ngram_divergence(tokens[:512], tokens[512:], 1) < ngram_divergence(tokens[:512], tokens[512:], 4)


def test_what_has_no_ngrams() -> None:
    with pytest.raises(InputError, match="1 token or more, got n = 0"):
        ngram_divergence([[1]], [[1]], 0)
    with pytest.raises(InputError, match="text a is empty"):
        ngram_divergence([], [[1]], 1)
    with pytest.raises(InputError, match=r"text b has no 4-gram: 2 window\(s\), the longest of 3 token"):
        ngram_divergence([[1, 2, 3, 4]], [[1, 2, 3], []], 4)
    with pytest.raises(InputError, match=r"text b, window 1: .* got int64 of shape \(1, 2\)"):
        ngram_divergence([[1]], [[1], [[1, 2]]], 1)
    with pytest.raises(InputError, match=r"whole numbers .* got float64"):
        ngram_divergence([[1.0, 2.0]], [[1]], 1)


# --- the floor --------------------------------------------------------------------------------------------


def test_the_floor_of_two_windows_is_their_divergence() -> None:
    a, b = random_windows(0, 2, 47, 7)
    assert split_half_floor([a, b], 2, seed=3, n_splits=5).tolist() == [ngram_divergence([a], [b], 2)] * 5


def test_of_an_odd_number_one_window_sits_out() -> None:
    windows = [[1, 1], [2, 2], [3, 3]]  # any two of them share nothing
    assert split_half_floor(windows, 1, seed=0, n_splits=7) == pytest.approx(np.full(7, LN_2))


def test_texts_alike_come_out_at_the_floor_and_others_above() -> None:
    """Two draws from one distribution, of 60 windows each, beside the floor of one of 120 windows; then another one."""
    alike = ngram_divergence(random_windows(1, 60, 31, 97), random_windows(2, 60, 31, 97), 1)
    floor = split_half_floor(random_windows(0, 120, 31, 97), 1, seed=0)
    assert floor.shape == (20,) and alike < 1.25 * floor.max()
    assert ngram_divergence(random_windows(1, 60, 31, 97), random_windows(2, 60, 31, 53), 1) > 3 * floor.max()
    assert split_half_floor(random_windows(0, 60, 31, 97), 1, seed=0).mean() > 1.5 * floor.mean()  # half the text


def test_a_seed_decides_the_split() -> None:
    windows = random_windows(0, 11, 13, 5)
    once = split_half_floor(windows, 2, seed=1)
    assert np.array_equal(once, split_half_floor(windows, 2, seed=1))
    assert not np.array_equal(once, split_half_floor(windows, 2, seed=2))


def test_what_cannot_be_halved() -> None:
    with pytest.raises(InputError, match="needs 2 windows and 1 split, got 1 and 20"):
        split_half_floor([[1, 2, 3]], 1, seed=0)
    with pytest.raises(InputError, match="needs 2 windows and 1 split, got 2 and 0"):
        split_half_floor([[1], [2]], 1, seed=0, n_splits=0)
    with pytest.raises(InputError, match="half of the windows have no 2-gram"):
        split_half_floor([[1, 2], [3]], 2, seed=0)


# --- shingles ---------------------------------------------------------------------------------------------


def passages(start: int, stop: int) -> list[str]:
    """Documents of 5 words, which are one shingle each."""
    return [f"a b c d {index}" for index in range(start, stop)]


def test_shingles_by_hand() -> None:
    assert shingles(["one two\nthree  four", "four five", "six"], 2) == {
        "one two",
        "two three",
        "three four",
        "four five",
    }
    assert shingles(["the cat sat on the mat", "the cat sat on the mat"]) == {
        "the cat sat on the",
        "cat sat on the mat",
    }


def test_shares_of_none_and_all() -> None:
    assert minhash_jaccard(passages(0, 7), passages(0, 7)[::-1], seed=0) == Jaccard(1.0, 0.0, 7, 7)
    assert minhash_jaccard(passages(0, 7), passages(7, 18), seed=0) == Jaccard(0.0, 0.0, 7, 11)


def test_the_standard_error_is_that_of_the_estimates_over_seeds() -> None:
    # 300 and 300 passages with 100 in common: J = 100 / 500 = 0.2. With 64 permutations the standard error is
    # sqrt(0.2 * 0.8 / 64) = 0.05; the mean of 60 estimates has 0.05 / sqrt(60) = 0.0065.
    found = [minhash_jaccard(passages(0, 300), passages(200, 500), seed=seed, num_perm=64) for seed in range(60)]
    values = np.array([one.value for one in found])
    assert abs(values.mean() - 0.2) < 4 * 0.0065
    assert 0.6 < values.std(ddof=1) / 0.05 < 1.4
    assert all(one.stderr == pytest.approx(math.sqrt(one.value * (1 - one.value) / 64)) for one in found)


def test_more_shingles_than_a_call_takes() -> None:
    # 9,000 and 9,000 with 6,000 in common: J = 1/2; four standard errors are 4 * sqrt(1/4 / 256) = 0.125
    assert abs(minhash_jaccard(passages(0, 9000), passages(3000, 12_000), seed=0).value - 0.5) < 0.125


def test_a_seed_decides_the_permutations() -> None:
    a, b = passages(0, 300), passages(150, 450)
    once = minhash_jaccard(a, b, seed=1, num_perm=1024)
    assert once == minhash_jaccard(a, b, seed=1, num_perm=1024) == minhash_jaccard(b, a, seed=1, num_perm=1024)
    assert once.value != minhash_jaccard(a, b, seed=2, num_perm=1024).value


def test_what_has_no_shingles() -> None:
    with pytest.raises(InputError, match="text b has no shingle: no document of 5 words or more"):
        minhash_jaccard(passages(0, 1), ["one two three four", ""], seed=0)
    with pytest.raises(InputError, match="text a has no shingle"):
        minhash_jaccard([], passages(0, 1), seed=0)
    with pytest.raises(InputError, match="1 word or more, got n_words = 0"):
        minhash_jaccard(passages(0, 1), passages(0, 1), seed=0, n_words=0)
    with pytest.raises(InputError, match=r"num_perm >= 2 .* got 1 and 0"):
        minhash_jaccard(passages(0, 1), passages(0, 1), seed=0, num_perm=1)
    with pytest.raises(InputError, match=r"0 <= seed .* got 256 and -1"):
        minhash_jaccard(passages(0, 1), passages(0, 1), seed=-1)


# --- area under the curve ---------------------------------------------------------------------------------


def test_the_area_by_hand() -> None:
    # members 1, 3, 3; others 0, 3. Pairs: 1 > 0, 1 < 3, 3 > 0, 3 = 3, 3 > 0, 3 = 3: (3 + 2 / 2) / 6 = 2/3.
    found = auc([1.0, 3.0, 3.0], [0.0, 3.0])
    assert found.mean == pytest.approx(2 / 3)
    assert found.low is not None and found.high is not None and 0 < found.low < 2 / 3 < found.high < 1
    assert auc([0.0, 3.0], [1.0, 3.0, 3.0]).mean == pytest.approx(1 / 3)


def test_the_area_is_the_statistic_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(2, 11, 29).astype(float), rng.integers(0, 9, 37).astype(float)
    expected = float(stats.mannwhitneyu(members, others).statistic) / (29 * 37)
    assert auc(members, others).mean == pytest.approx(expected)


def test_scores_that_divide_them_leave_an_interval() -> None:
    found = auc(np.arange(10.0, 20.0), np.arange(10.0))
    assert found.mean == 1 and found.high == 1 and found.low is not None and 0.5 < found.low < 0.95


def test_the_interval_of_the_area_holds_the_truth_as_often_as_it_says() -> None:
    """Normal scores one s.d. apart: the truth is Phi(1 / sqrt 2) = 0.760."""
    rng, truth, inside = np.random.default_rng(0), float(stats.norm.cdf(0.5**0.5)), 0
    for _ in range(400):
        found = auc(rng.normal(1, 1, 41), rng.normal(0, 1, 31))
        assert found.low is not None and found.high is not None
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_what_has_no_area() -> None:
    with pytest.raises(InputError, match=r"takes values of shape \(n,\), got shape \(0,\)"):
        auc([], [1.0])
    with pytest.raises(InputError, match="1 of 2 values are not finite"):
        auc([1.0, float("nan")], [1.0])
