"""Who is who in two dictionaries: the best one-to-one matching, and mutual nearest neighbours as its cheap companion.

With cosines C [m, n] between the entries of two dictionaries, the Hungarian method finds the one-to-one matching of
min(m, n) pairs with the largest sum: exactly, in about m^3 steps and with all of C in memory. Its mean is the MCC of a
pair of runs (arXiv 2505.20254: PW-MCC is its mean over pairs of runs). Nearest neighbours need C once, in blocks, and
bound it: no matching is better than giving each entry of the smaller dictionary its nearest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from topklm.errors import DataError
from topklm.optional import require

BLOCK_BYTES = 2**28
"""Memory for the cosines that are held at a time where not all are needed at once."""

Block = tuple[int, np.ndarray]
"""(first row, cosines [r, n] of the rows from there on)."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Pairs of entries, each in at most one pair; ascending by the entry of the first dictionary."""

    a: np.ndarray
    """int64 [p] entries of the first dictionary."""
    b: np.ndarray
    """int64 [p] their partners in the second."""
    cosine: np.ndarray
    """float64 [p]; the absolute value in an absolute matching."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """For each entry of either dictionary the nearest one of the other; the lowest index among equals."""

    b_of_a: np.ndarray
    """int64 [m] of each entry of the first."""
    cosine_a: np.ndarray
    """float64 [m] the cosine with it."""
    a_of_b: np.ndarray
    """int64 [n] of each entry of the second."""
    cosine_b: np.ndarray
    """float64 [n]"""

    def mutual(self) -> Matching:
        """The pairs that are each other's nearest."""
        a = np.flatnonzero(self.a_of_b[self.b_of_a] == np.arange(len(self.b_of_a)))
        return Matching(a=a, b=self.b_of_a[a], cosine=self.cosine_a[a])

    @property
    def upper(self) -> float:
        """Mean cosine of the smaller dictionary's entries with their nearest: no one-to-one matching has a larger
        mean. Of two of one size the smaller mean of both."""
        means = [float(side.mean()) for side in (self.cosine_a, self.cosine_b)]
        m, n = len(self.cosine_a), len(self.cosine_b)
        return min(means) if m == n else means[0] if m < n else means[1]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [m, n]: inner products of the unit rows a [m, d] and b [n, d], within [-1, 1] whatever the rounding.

    Raises `DataError` for rows of different length or that are not finite.
    """
    return np.clip(_finite(a) @ _finite(b).T, -1.0, 1.0).astype(np.float64, copy=False)


def cosine_blocks(a: np.ndarray, b: np.ndarray, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The same in blocks of rows of at most `block_bytes` (at least one row)."""
    rows = max(1, block_bytes // (8 * max(1, len(b))))
    for start in range(0, len(a), rows):
        yield start, cosines(a[start : start + rows], b)


def hungarian(found: np.ndarray, *, absolute: bool = False) -> Matching:
    """The one-to-one matching with the largest sum of cosines [m, n] (of their absolute values), min(m, n) pairs.

    Raises `ConfigError` without scipy.
    """
    scores = np.abs(found) if absolute else found
    a, b = require("scipy.optimize", "topklm[interp]").linear_sum_assignment(scores, maximize=True)
    return Matching(a=a, b=b, cosine=scores[a, b])


def nearest(blocks: Iterable[Block], m: int, n: int) -> Nearest:
    """Nearest neighbours both ways, of m and n entries, from blocks that are looked at once."""
    b_of_a, cosine_a = np.zeros(m, np.int64), np.full(m, -np.inf)
    a_of_b, cosine_b = np.zeros(n, np.int64), np.full(n, -np.inf)
    for start, scores in blocks:
        rows = slice(start, start + len(scores))
        b_of_a[rows] = scores.argmax(1)
        cosine_a[rows] = np.take_along_axis(scores, b_of_a[rows, None], 1)[:, 0]
        best = scores.argmax(0)
        value = np.take_along_axis(scores, best[None], 0)[0]
        better = value > cosine_b  # of equals the first stays
        a_of_b[better], cosine_b[better] = start + best[better], value[better]
    return Nearest(b_of_a=b_of_a, cosine_a=cosine_a, a_of_b=a_of_b, cosine_b=cosine_b)


def _finite(rows: np.ndarray) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise DataError("a dictionary holds NaN or infinity; it has no cosines")
    return rows
