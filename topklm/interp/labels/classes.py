"""Which class of words a neuron prefers: a hypergeometric test of its top words, corrected for all tests of a bundle.

The null: a neuron's n top words are a random n of the W words of the universe (those that occurred `min_count` times
and have a class). With K of them in a class, the number x among the n is hypergeometric, p = P(X >= x). Words are not
exchangeable: rare ones have noisier means, classes differ in frequency. How much that makes is measured by shuffling
the classes among words of like frequency (`shuffled_shares`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from topklm.interp.entropy.coherence import false_discovery
from topklm.interp.labels.wordnet import CLASSES
from topklm.optional import require

Null = Literal["words", "part_of_speech"]
PART = np.array([name.split(".")[0] for name in CLASSES])
"""[C] part of speech of each class."""
LEAST_WORDS = 5
"""Classes with fewer words in the universe, and neurons with fewer top words, are not tested."""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The nearest class of each of M neurons; NaN and -1 where it was not tested."""

    number: np.ndarray
    """int64 [M]: the class with the smallest p; of equal ones the one that is over-represented most."""
    p: np.ndarray
    """float64 [M]: of that class."""
    q: np.ndarray
    """float64 [M]: Benjamini and Hochberg's, over all neurons and classes of the bundle."""
    lift: np.ndarray
    """float64 [M]: share of the class among the top words over its share of the universe."""
    n_classes: int
    """Classes that were tested for each neuron."""


def top_words(means: np.ndarray, n: int) -> np.ndarray:
    """int64 [N, n]: each neuron's words with the largest means [W, N] above 0, descending; -1: no more.

    Equal means by the word's number.
    """
    n = min(n, len(means))
    order = np.argsort(-means, axis=0, kind="stable")[:n]
    return np.where(np.take_along_axis(means, order, axis=0) > 0, order, -1).T


def nearest_classes(top: np.ndarray, classes: np.ndarray, null: Null = "words") -> Tested:
    """Test the top words [M, n] of all neurons of a bundle against each class; classes [W] of the universe.

    `null` "words": the top words are random ones of the universe. "part_of_speech": those of each part of speech are
    random ones of that part of speech, so that a neuron which prefers adjectives, whatever they mean, is not found.
    """
    inside = top >= 0
    size = inside.sum(1)  # [M]
    tested = size >= LEAST_WORDS
    members = np.bincount(classes, minlength=len(CLASSES))  # [C]
    each = _count(top, inside, classes)  # [M, C]
    if null == "words":
        universe, sizes = np.full(len(CLASSES), len(classes)), np.broadcast_to(size[:, None], each.shape)
    else:
        same = PART[:, None] == PART  # [C, C]
        universe, sizes = same @ members, each @ same
    columns = np.flatnonzero((members >= LEAST_WORDS) & (members < universe))
    nothing = Tested(
        number=np.full(len(top), -1), p=np.full(len(top), np.nan), q=np.full(len(top), np.nan),
        lift=np.full(len(top), np.nan), n_classes=len(columns),
    )  # fmt: skip
    if not len(columns) or not tested.any():
        return nothing
    found, drawn = each[tested][:, columns], sizes[tested][:, columns]
    p = _upper_tail(found, universe[columns], members[columns], drawn)
    q = false_discovery(p)
    lift = found / np.maximum(drawn, 1) / (members[columns] / universe[columns])
    best = np.lexsort((-lift, p), axis=1)[:, :1]
    for whole, values in ((nothing.p, p), (nothing.q, q), (nothing.lift, lift)):
        whole[tested] = np.take_along_axis(values, best, axis=1)[:, 0]
    nothing.number[tested] = columns[best[:, 0]]
    return nothing


def shuffled_shares(
    top: np.ndarray, classes: np.ndarray, counts: np.ndarray, fdr: float, shuffles: int, seed: int, null: Null = "words"
) -> np.ndarray:
    """float64 [shuffles]: share of the tested neurons with q <= `fdr` when the classes are shuffled among words of like
    frequency (a power of two of `counts` [W]): what the test finds where words of a class have only that in common."""
    bins = np.floor(np.log2(counts)).astype(np.int64)
    shares = []
    for i in range(shuffles):
        rng = np.random.default_rng((seed, i))
        order = np.lexsort((rng.random(len(bins)), bins))
        shuffled = np.empty_like(classes)
        shuffled[np.lexsort((np.arange(len(bins)), bins))] = classes[order]
        found = nearest_classes(top, shuffled, null)
        known = ~np.isnan(found.q)
        shares.append(float((found.q[known] <= fdr).mean()) if known.any() else float("nan"))
    return np.array(shares)


def _count(top: np.ndarray, inside: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """int64 [M, C]: how many of each neuron's top words are of each class."""
    row = np.broadcast_to(np.arange(len(top))[:, None], top.shape)[inside]
    flat = row * len(CLASSES) + classes[top[inside]]
    return np.bincount(flat, minlength=len(top) * len(CLASSES)).reshape(len(top), len(CLASSES))


def _upper_tail(found: np.ndarray, universe: np.ndarray, members: np.ndarray, size: np.ndarray) -> np.ndarray:
    """P(X >= found), float64 [M, C]: X hypergeometric of `size` [M, C] draws from `universe` [C] words, of which
    `members` [C] are of the class."""
    hypergeom = require("scipy.stats", "topklm[interp]").hypergeom
    cases = np.stack(np.broadcast_arrays(found, universe, members, size), axis=-1).reshape(-1, 4)
    few, back = np.unique(cases, axis=0, return_inverse=True)  # the same ones occur again and again
    return hypergeom.sf(few[:, 0] - 1, *few[:, 1:].T)[back.ravel()].reshape(found.shape)
