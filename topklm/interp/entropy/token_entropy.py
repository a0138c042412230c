"""Token entropy: over how many token types a neuron's activation is spread (paper, Eq. 4-6).

With a(v) the mean activation of neuron i over the occurrences of token type v, made non-negative:

    p(v) = a(v) / sum_u a(u),    H = -sum_v p(v) ln p(v)    in nats, between 0 and ln(number of types).

All sums are float64 and go through the types in blocks, so that a table that does not fit in memory can be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from topklm.errors import ConfigError

Negative = Literal["clamp", "abs", "relu_first"]
Block = tuple[np.ndarray, np.ndarray]
"""(occurrences [r] of r token types, sums of activation [r, N])."""


@dataclass(frozen=True, kw_only=True)
class TokenFigures:
    """Token entropy of the N neurons of a layer and what belongs beside it; float64 [N], NaN for a silent neuron."""

    entropy: np.ndarray
    """H in nats."""
    mass_entropy: np.ndarray
    """The same of p(v) proportional to count(v) a(v): the share of the neuron's activation that falls on type v."""
    negative_mass: np.ndarray
    """Share of sum_v |mean(v)| that lies below 0, which clamping discards. 0 in a TopK layer."""
    types: np.ndarray
    """int64 [N] types with a(v) > 0."""
    n_types: int
    """Types that occurred at least min_count times, on which all of this rests."""

    @property
    def effective(self) -> np.ndarray:
        """exp(H): the number of types of an even spread of the same entropy."""
        return np.exp(self.entropy)

    @property
    def normalised(self) -> np.ndarray:
        """H / ln(n_types), between 0 and 1; NaN if there are fewer than two types."""
        return self.entropy / np.log(self.n_types) if self.n_types > 1 else np.full_like(self.entropy, np.nan)


def token_entropy(
    sums: ArrayLike,
    counts: ArrayLike,
    *,
    negative: Negative = "clamp",
    min_count: int = 20,
    positive_sums: ArrayLike | None = None,
) -> np.ndarray:
    """Token entropy of each neuron in nats, float64 [N]; NaN for a neuron without positive mass.

    sums [V, N]: sum of the activation per (token type, neuron); counts [V]: occurrences of each type. Types that
    occurred fewer than `min_count` times are left out (1: the paper's reading). `negative`: what a mean below 0 counts,
    "clamp" (0), "abs" (its absolute value) or "relu_first" (the mean of the positive part is taken instead, from
    `positive_sums` [V, N]). Raises `ConfigError` for shapes that do not fit.
    """
    sums, counts = np.asarray(sums), np.asarray(counts)
    if sums.ndim != 2 or counts.shape != sums.shape[:1]:
        raise ConfigError(f"sums [V, N] and counts [V] do not fit: {list(sums.shape)} and {list(counts.shape)}")
    table = sums
    if negative == "relu_first":
        if positive_sums is None:
            raise ConfigError("relu_first needs positive_sums [V, N]: the sums of the positive part of the activation")
        table = np.asarray(positive_sums)
        if table.shape != sums.shape:
            raise ConfigError(f"positive_sums {list(table.shape)} is not shaped like sums {list(sums.shape)}")
    return token_figures([(counts, table)], sums.shape[1], negative=negative, min_count=min_count).entropy


def token_figures(blocks: Iterable[Block], width: int, *, negative: Negative, min_count: int) -> TokenFigures:
    """All figures of a layer of `width` neurons from its table, block by block of token types, each type once.

    For "relu_first" the blocks hold the sums of the positive part.
    """
    if negative not in ("clamp", "abs", "relu_first"):
        raise ConfigError(f"negative: {negative!r} is not one of clamp, abs, relu_first")
    even, mass = _Spread(width), _Spread(width)
    below, total = np.zeros(width), np.zeros(width)
    active, n_types = np.zeros(width, np.int64), 0
    for counts, sums in blocks:
        kept = counts >= max(1, min_count)
        occurrences = counts[kept, None].astype(np.float64)
        mean = sums[kept] / occurrences  # [r, N]
        n_types += int(kept.sum())
        below += np.maximum(-mean, 0).sum(0)
        total += np.abs(mean).sum(0)
        mean = np.abs(mean) if negative == "abs" else np.maximum(mean, 0)
        active += (mean > 0).sum(0)
        even.add(mean)
        mass.add(mean * occurrences)
    with np.errstate(invalid="ignore", divide="ignore"):
        negative_mass = below / total
    return TokenFigures(
        entropy=even.entropy(), mass_entropy=mass.entropy(), negative_mass=negative_mass, types=active, n_types=n_types
    )


class _Spread:
    """Entropy of columns of non-negative numbers that come in blocks: ln Z - (sum a ln a) / Z with Z = sum a.

    Numbers are divided by a power of two near the first positive one of their column, exactly, so that the two terms
    do not cancel where activations are tiny or huge.
    """

    def __init__(self, width: int) -> None:
        self.z, self.s = np.zeros(width), np.zeros(width)
        self.exponent = np.zeros(width, np.int32)
        self.seen = np.zeros(width, bool)

    def add(self, block: np.ndarray) -> None:
        if not len(block):
            return
        largest = block.max(0)
        new = ~self.seen & (largest > 0)
        self.exponent[new] = np.frexp(largest[new])[1]
        self.seen |= new
        scaled = np.ldexp(block, -self.exponent)
        self.z += scaled.sum(0)
        logs = np.log(scaled, where=scaled > 0, out=np.zeros_like(scaled))
        self.s += (scaled * logs).sum(0)

    def entropy(self) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            # What rounding leaves below 0 for a single type is 0.
            return np.where(self.z > 0, np.maximum(np.log(self.z) - self.s / self.z, 0.0), np.nan)


def token_explained(
    blocks: Iterable[Block], total: ArrayLike, square_total: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Share of a neuron's variance over the corpus that the identity of the token explains, float64 ([N], [N]).

    (eta^2, epsilon^2): between-type over total sum of squares, and the same corrected for what R types of n tokens
    explain by chance, 1 - (within / (n - R)) / (total / (n - 1)), which may be below 0. 1 - epsilon^2 is what context
    decides. `blocks` have each type of the corpus once; total, square_total [N]: sums of a and a^2 over all tokens.
    NaN for a neuron without variance, and where n = R.
    """
    total, square_total = np.asarray(total, np.float64), np.asarray(square_total, np.float64)
    between, n, types = np.zeros_like(total), 0, 0
    for counts, sums in blocks:
        kept = counts > 0
        between += (sums[kept] ** 2 / counts[kept, None]).sum(0)
        n, types = n + int(counts.sum()), types + int(kept.sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        all_squares = square_total - total**2 / max(n, 1)
        within = square_total - between
        varies = all_squares > 1e-12 * square_total
        eta = np.where(varies, (between - total**2 / max(n, 1)) / all_squares, np.nan)
        epsilon = np.where(varies & (n > types), 1 - (within / (n - types)) / (all_squares / (n - 1)), np.nan)
    return np.clip(eta, 0.0, 1.0), np.minimum(epsilon, 1.0)
