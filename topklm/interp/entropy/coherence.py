"""Coherence: how alike the tokens are that a neuron responds to, against random tokens of the same frequencies.

Coherence of a set S is its weighted mean cosine, sum_{u<v} w_uv s_uv / sum_{u<v} w_uv with w_uv = f_u f_v. With unit
rows e_u it needs no pairs: (|sum f_u e_u|^2 - sum f_u^2 |e_u|^2) / ((sum f_u)^2 - sum f_u^2).

The null: sets with as many tokens of each frequency bin (a power of two of the occurrences) as S, drawn without
replacement. The sum over a bin is made once per (bin, number) and shared by all neurons; bins are independent.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Coherence:
    """Of one neuron's tokens; NaN for fewer than two."""

    value: float
    """Weighted mean cosine, between -1 and 1."""
    effective_pairs: float
    """1 / sum of squared normalised pair weights: how many pairs carry the mean."""


def coherence(rows: np.ndarray, weights: np.ndarray) -> Coherence:
    """Of tokens with unit rows [m, D] and weights [m] (occurrences)."""
    if len(rows) < 2:
        return Coherence(float("nan"), float("nan"))
    f = weights.astype(np.float64)
    f = f / f.max()  # squares of squares of counts stay small
    total = f @ rows
    pairs = f.sum() ** 2 - (f**2).sum()  # twice the sum over u < v
    squares = (f**2).sum() ** 2 - (f**4).sum()
    own = (f**2 * (rows**2).sum(1)).sum()
    return Coherence(float((total @ total - own) / pairs), float(pairs**2 / (2 * squares)))


class Null:
    """Coherences of random token sets of given numbers per frequency bin."""

    def __init__(self, rows: np.ndarray, counts: np.ndarray, *, draws: int = 1000, seed: int = 0) -> None:
        """rows [R, D]: unit embeddings of the types that a neuron could respond to; counts [R] >= 1: how often."""
        self.draws, self.seed = draws, seed
        self.bin = np.floor(np.log2(counts)).astype(np.int64)
        """int64 [R] frequency bin of each type: counts 2^b ... 2^(b+1) - 1."""
        self._f = counts / counts.max()
        self._rows = rows
        self._own = self._f**2 * (rows**2).sum(1)
        self._ranks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._parts: OrderedDict[tuple[int, int], tuple[np.ndarray, ...]] = OrderedDict()

    def profile(self, tokens: np.ndarray) -> tuple[tuple[int, int], ...]:
        """((bin, number of tokens), ...) of a set."""
        bins, numbers = np.unique(self.bin[tokens], return_counts=True)
        return tuple(zip(bins.tolist(), numbers.tolist(), strict=True))

    def coherences(self, tokens: np.ndarray) -> np.ndarray:
        """Coherence of `draws` random sets with the profile of `tokens`, float64 [draws]."""
        sums = [self._part(*each) for each in self.profile(tokens)]
        total, f, squares, own = (np.asarray(sum(column)) for column in zip(*sums, strict=True))
        values = ((total**2).sum(1) - own) / (f**2 - squares)
        return np.broadcast_to(values, (self.draws,))

    def p_value(self, value: float, tokens: np.ndarray) -> float:
        """Chance that a random set is at least as coherent: (1 + number of such draws) / (1 + draws). NaN for NaN."""
        if np.isnan(value):
            return float("nan")
        # A set that has all tokens of its bins is its own null: equal but for rounding.
        return (1 + int((self.coherences(tokens) >= value - 1e-9).sum())) / (1 + self.draws)

    def draw(self, profile: tuple[tuple[int, int], ...], rng: np.random.Generator) -> np.ndarray:
        """One random set of tokens with a profile."""
        return np.concatenate([rng.permutation(np.flatnonzero(self.bin == b))[:n] for b, n in profile])

    def _part(self, b: int, n: int) -> tuple[np.ndarray, ...]:
        """Sums over n random tokens of bin b: of f e [draws, D], of f, f^2 and f^2 |e|^2 [draws]."""
        if (b, n) in self._parts:
            self._parts.move_to_end((b, n))
            return self._parts[b, n]
        members, ranks = self._orders(b)
        chosen = (ranks < n).astype(np.float64)  # the first n of each random order
        if n == len(members):
            chosen = chosen[:1]  # there is one such set only
        f = self._f[members]
        part = (chosen @ (f[:, None] * self._rows[members]), chosen @ f, chosen @ f**2, chosen @ self._own[members])
        self._parts[b, n] = part
        while len(self._parts) > 1 and sum(each[0].nbytes for each in self._parts.values()) > CACHE_BYTES:
            self._parts.popitem(last=False)
        return part

    def _orders(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """(types [s] of a bin, the place of each in `draws` random orders of them, [draws, s]). The first n of an order
        are a random set of n, so sets of different size have tokens in common, from which no single p-value suffers."""
        if b not in self._ranks:
            members = np.flatnonzero(self.bin == b)
            places = np.tile(np.arange(len(members), dtype=np.int32), (self.draws, 1))
            self._ranks[b] = members, np.random.default_rng((self.seed, b)).permuted(places, axis=1)
        return self._ranks[b]


def false_discovery(p_values: ArrayLike) -> np.ndarray:
    """Benjamini and Hochberg's adjusted p-values (q-values), float64 of the same shape; NaN stays and is not counted.

    Taking all neurons with q <= 0.05 gives at most 5 % false ones on average.
    """
    p = np.asarray(p_values, np.float64)
    q = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p.ravel()))
    order = known[np.argsort(p.ravel()[known])]
    n = len(order)
    scaled = p.ravel()[order] * n / np.arange(1, n + 1)
    q.ravel()[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
