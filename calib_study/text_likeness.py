"""How like two texts are, without any model: n-gram frequencies, shared shingles, and scores that tell them apart.

Frequencies are compared by the Jensen-Shannon divergence, which counts of finite texts push up: two halves of one
text are never alike either, and `split_half_floor` says how far apart they come out. Here are no models, no torch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib_study.errors import InputError
from calib_study.statistics import Floats, Interval, probability_of_superiority

Indices = NDArray[np.intp]
Texts = Iterable[ArrayLike]  # one array of token ids for each window or document
LN_2 = math.log(2)
SHINGLES_PER_CALL = 4096  # 4 MB for 256 permutations


# --- n-grams of tokens ------------------------------------------------------------------------------------


def ngram_divergence(a: Texts, b: Texts, n: int) -> float:
    """Return the Jensen-Shannon divergence of two texts' n-gram frequencies, in nats: 0 if equal, ln 2 if disjoint.

    KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, p and q the shares of each n-gram among those of a text.
    It is the frequencies' own, not corrected for how many n-grams were counted: it falls as texts grow, the more
    so for larger n. So compare texts of one size, and read the result beside `split_half_floor`.
    Source: Lin (1991), IEEE Trans. Inf. Theory 37, eq. 3.1 with equal weights.

    Args:
        a, b: token ids, one array (n_tokens,) for each window or document; no n-gram crosses from one to the next.
        n: tokens in an n-gram, 1 or more.
    Raises InputError for n < 1, a text without an n-gram, arrays that are not (n_tokens,) of whole numbers.

    >>> round(ngram_divergence([[1, 2]], [[1, 1]], 1), 4)  # p = (1/2, 1/2), q = (1, 0): (3/4) ln (4/3)
    0.2158
    """
    first, second = _arrays(a, "a"), _arrays(b, "b")
    codes, owners = _ngrams([*first, *second], n)
    in_a = owners < len(first)
    for name, windows, count in (("a", first, in_a.sum()), ("b", second, (~in_a).sum())):
        if not count:
            raise InputError(f"text {name} has no {n}-gram: {_sizes(windows)}. Give longer windows, or a smaller n.")
    return _divergence(codes, in_a)


def split_half_floor(windows: Texts, n: int, *, seed: int, n_splits: int = 20) -> Floats:
    """Return `ngram_divergence` between random halves of one text, (n_splits,): what chance alone puts between texts.

    Windows, not tokens, are dealt: half of them (of an odd number, all but one) to each side. A half has half as many
    n-grams, and fewer n-grams come out further apart: this is the floor for two texts of half the size. For texts of
    w windows give it 2 w windows. The splits share their text, so that their spread is no standard error.

    Args:
        windows: as for `ngram_divergence`, at least two. seed: of the dealing. n_splits: 1 or more.
    Raises InputError as `ngram_divergence`, and for fewer than two windows or splits below 1.
    """
    arrays = _arrays(windows, "windows")
    if len(arrays) < 2 or n_splits < 1:
        raise InputError(f"split_half_floor needs 2 windows and 1 split, got {len(arrays)} and {n_splits}.")
    half = len(arrays) // 2
    codes, owners = _ngrams(arrays, n)
    rng = np.random.default_rng(seed)
    floor = np.empty(n_splits)
    for split in range(n_splits):
        sides = np.full(len(arrays), -1)
        sides[rng.permutation(len(arrays))[: 2 * half]] = np.repeat([1, 0], half)
        used = sides[owners] >= 0
        in_first = sides[owners[used]] == 1
        if in_first.all() or not in_first.any():
            raise InputError(f"half of the windows have no {n}-gram: {_sizes(arrays)}. Give longer windows.")
        floor[split] = _divergence(codes[used], in_first)
    return floor


def _arrays(windows: Texts, name: str) -> list[NDArray[np.int64]]:
    """Return windows as arrays. Raises InputError unless there is one, and each is (n_tokens,) of whole numbers."""
    arrays = [np.asarray(window) for window in windows]
    if not arrays:
        raise InputError(f"text {name} is empty: it has no window. Give at least one array of token ids.")
    for index, window in enumerate(arrays):
        if window.ndim != 1 or (window.size and not np.issubdtype(window.dtype, np.integer)):
            raise InputError(
                f"text {name}, window {index}: token ids are whole numbers of shape (n_tokens,), "
                f"got {window.dtype} of shape {window.shape}."
            )
    return [window.astype(np.int64) for window in arrays]


def _sizes(windows: Sequence[NDArray[np.int64]]) -> str:
    return f"{len(windows)} window(s), the longest of {max(len(window) for window in windows)} token(s)"


def _ngrams(windows: Sequence[NDArray[np.int64]], n: int) -> tuple[Indices, Indices]:
    """Return, for every n-gram of every window, a number that is the n-gram's own, and the index of its window.

    Exact, by no hash: an m-gram's number is the rank of (number of the (m - 1)-gram before its last token, last token).
    """
    if n < 1:
        raise InputError(f"an n-gram has 1 token or more, got n = {n}.")
    lengths = np.array([len(window) for window in windows])
    _, ids = np.unique(np.concatenate(windows), return_inverse=True)
    codes, d_vocab = ids, int(ids.max(initial=0)) + 1
    for more in range(1, n):
        pairs = codes[: len(ids) - more] * d_vocab + ids[more:]  # both are below the count of tokens: no overflow
        _, codes = np.unique(pairs, return_inverse=True)
    owners = np.repeat(np.arange(len(windows)), lengths)[: len(codes)]
    inside = np.arange(len(codes)) + n <= np.cumsum(lengths)[owners]  # of its window's end
    return codes[inside], owners[inside]


def _divergence(codes: Indices, in_a: NDArray[np.bool_]) -> float:
    """Return the Jensen-Shannon divergence between the shares of numbers where `in_a` and where not; both occur."""
    size = int(codes.max()) + 1
    p = np.bincount(codes[in_a], minlength=size) / in_a.sum()
    q = np.bincount(codes[~in_a], minlength=size) / (~in_a).sum()
    return float(np.clip((_kl_to_middle(p, q) + _kl_to_middle(q, p)) / 2, 0, LN_2))


def _kl_to_middle(p: Floats, q: Floats) -> float:
    """Return KL(p || (p + q) / 2) in nats."""
    here = p > 0
    return float(np.sum(p[here] * np.log(2 * p[here] / (p[here] + q[here]))))


# --- shingles of words ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Jaccard:
    """An estimated share of common shingles.

    value: |A and B| / |A or B|, from 0 to 1. stderr: of the estimate, over choices of permutations; 0 where none or all
    agree, which leaves up to about 3 / num_perm open at 95 %. n_a, n_b: shingles of each text, all different.
    """

    value: float
    stderr: float
    n_a: int
    n_b: int


def shingles(texts: Iterable[str], n_words: int = 5) -> set[str]:
    """Return the different runs of `n_words` words of the documents, words being what white space divides.

    No run crosses documents; a shorter document has none. Case and punctuation count.
    Source: Broder (1997), Compression and Complexity of Sequences (shingles); Lee et al. (2022), ACL, section 4.2
    (5-grams of what spaces divide).

    >>> sorted(shingles(["a b  c"], 2))
    ['a b', 'b c']
    """
    if n_words < 1:
        raise InputError(f"a shingle has 1 word or more, got n_words = {n_words}.")
    documents = (text.split() for text in texts)
    return {" ".join(w[start : start + n_words]) for w in documents for start in range(len(w) - n_words + 1)}


def minhash_jaccard(
    texts_a: Iterable[str], texts_b: Iterable[str], *, seed: int, num_perm: int = 256, n_words: int = 5
) -> Jaccard:
    """Return the estimated Jaccard index of two texts' sets of word 5-grams: whether they hold the same passages.

    The share of `num_perm` random permutations of all shingles under which both sets have the same first one. The
    standard error is sqrt(J (1 - J) / num_perm), at most 0.031 for 256; the seed alone decides the permutations.
    Frequent phrases weigh no more than rare ones, and a small text inside a large one has a small J.
    Source: Broder (1997); by datasketch, whose scheme "affine32" permutes 32 bits of a SHA-1 of each shingle.

    Args:
        texts_a, texts_b: documents. seed: 0 to 2^32 - 1. num_perm: permutations, 2 or more. n_words: in a shingle.
    Raises InputError for a text without a shingle, or a number out of range.

    >>> minhash_jaccard(["one two three four five six"], ["one two three four five six"], seed=0).value
    1.0
    """
    if num_perm < 2 or not 0 <= seed < 2**32:
        raise InputError(f"minhash_jaccard takes num_perm >= 2 and 0 <= seed < 2^32, got {num_perm} and {seed}.")
    sets = [shingles(texts, n_words) for texts in (texts_a, texts_b)]
    for name, found in zip("ab", sets, strict=True):
        if not found:
            raise InputError(f"text {name} has no shingle: no document of {n_words} words or more.")
    first, second = (_signature(found, seed, num_perm) for found in sets)
    value = float(np.mean(first == second))
    return Jaccard(value, math.sqrt(value * (1 - value) / num_perm), len(sets[0]), len(sets[1]))


def _signature(items: Iterable[str], seed: int, num_perm: int) -> NDArray[np.uint32]:
    """Return the least value of each permutation over the items, (num_perm,), whatever their order."""
    from datasketch import MinHash  # takes longer to import than to use

    sketch = MinHash(num_perm=num_perm, seed=seed, scheme="affine32")
    left = iter(items)
    while some := [item.encode() for item in islice(left, SHINGLES_PER_CALL)]:
        sketch.update_batch(some)
    values: NDArray[np.uint32] = sketch.hashvalues
    return values


# --- scores that tell members from others -----------------------------------------------------------------


def auc(members: ArrayLike, others: ArrayLike, level: float = 0.95) -> Interval:
    """Return P(score of a member > score of another), ties half, over all pairs: the area under the ROC curve.

    1/2 where a score tells nothing, 1 where it divides them; below 1/2 where members score lower, as they do with a
    negative log-likelihood. The score interval of `statistics.probability_of_superiority`, which keeps a width where
    all members score above all others; DeLong's (1988) and the bootstrap's then have none. It takes scores as
    independent, which windows of one document are not: give one score for each document where that matters.

    >>> auc([2.0, 3.0], [1.0, 2.0]).mean  # of four pairs three won and one tied
    0.875
    """
    return probability_of_superiority(members, others, level)
