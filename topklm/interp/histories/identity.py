"""Identity match: whether a neuron's nearest token profile elsewhere is that of its own index.

Of neurons i in A (a checkpoint, a layer) and j in B (a later checkpoint, the next layer), with profiles p of length 1:

    nearest(i) = argmax_j p_A(i) . p_B(j),      rate = share of i with nearest(i) = i

over the i that are silent in neither; candidates j are those that are not silent in B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topklm.interp.profiles import Profiles, similarity

Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Match:
    """The N neurons of one layer against those of another checkpoint or layer."""

    nearest: np.ndarray
    """int64 [N]: index of the nearest profile; -1 where the neuron is silent in either."""
    own: np.ndarray
    """float64 [N]: cosine with the profile of the same index; NaN where it is silent in either."""
    rival: np.ndarray
    """float64 [N]: cosine with the nearest of the other indices; NaN where it is silent in either."""
    chance: float
    """The rate that is expected if indices are permuted within groups of neurons that fire about as often; NaN if
    nothing is compared."""

    @property
    def compared(self) -> np.ndarray:
        """bool [N]: silent in neither."""
        return self.nearest >= 0

    @property
    def matched(self) -> np.ndarray:
        """bool [N]: the nearest one is its own index."""
        return self.nearest == np.arange(len(self.nearest))


@dataclass(frozen=True, kw_only=True)
class Rate:
    """An identity-match rate over the neurons of one or more layers."""

    rate: float
    """Share that matches; NaN if nothing is compared."""
    low: float
    high: float
    """95 % interval (Wilson) over neurons. The layers of one index count as one observation, since the residual stream
    carries it through all of them: the interval is as wide as that of one layer."""
    n: int
    """Pairs of neurons that were compared."""
    silent: int
    """Pairs that were left out because one is silent."""
    uniform: float
    """1 / number of neurons: the rate of a random choice."""
    chance: float
    """The rate if indices are permuted among neurons that fire about as often."""
    cosine: float
    """Mean cosine of a neuron's profile with that of its own index."""
    rival: float
    """Mean cosine with the nearest of the others: where it is high, a match needs little drift to be lost."""


def match_profiles(a: Profiles, b: Profiles, bins: int = 10) -> Match:
    """Match every neuron of `a` with its nearest in `b`. `bins`: groups by firing frequency for the chance level."""
    if a.width != b.width:
        raise ValueError(f"{a.width} and {b.width} neurons: indices do not correspond")
    cosines = similarity(a, b)
    own = np.diag(cosines).astype(np.float64)
    cosines[:, b.silent] = -np.inf
    compared = ~(a.silent | b.silent)
    nearest = np.where(compared, cosines.argmax(1), -1)
    chance = permuted_rate(nearest, (a.density + b.density) / 2, ~b.silent, bins)
    np.fill_diagonal(cosines, -np.inf)
    rival = np.where(compared & (np.count_nonzero(~b.silent) > 1), cosines.max(1), np.nan)
    return Match(nearest=nearest, own=np.where(compared, own, np.nan), rival=rival, chance=chance)


def permuted_rate(nearest: np.ndarray, density: np.ndarray, candidates: np.ndarray, bins: int) -> float:
    """Expected rate when the indices of the candidates are permuted at random within bins of equal size by density.

    Neuron i then has its own index at its nearest one with probability 1 / (size of its bin) if both are in the same
    bin, else 0. Exact: nothing is drawn.
    """
    here = np.flatnonzero(candidates)
    order = here[np.argsort(density[here], kind="stable")]
    group = np.full(len(nearest), -1)
    group[order] = np.arange(len(order)) * min(bins, max(1, len(order))) // max(1, len(order))
    sizes = np.bincount(group[order], minlength=1)
    compared = np.flatnonzero(nearest >= 0)
    if not len(compared):
        return math.nan
    same = group[nearest[compared]] == group[compared]
    return float(np.where(same, 1 / sizes[group[compared]], 0.0).mean())


def rate_of(matches: Sequence[Match]) -> Rate:
    """The rate over all neurons of some layers (or of one)."""
    compared = np.array([match.compared for match in matches])  # [L, N]
    matched = np.array([match.matched & match.compared for match in matches])
    n = int(compared.sum())
    if not n:
        nothing = dict.fromkeys(("rate", "low", "high", "uniform", "chance", "cosine", "rival"), math.nan)
        return Rate(n=0, silent=int(compared.size), **nothing)
    sizes = compared.sum(1)
    rate = float(matched.sum() / n)
    low, high = wilson(rate, int(compared.any(0).sum()))
    return Rate(
        rate=rate, low=low, high=high, n=n, silent=int((~compared).sum()),
        uniform=float((sizes > 0).sum() / n),  # mean over the compared of 1 / (neurons of its layer)
        chance=float(np.sum([m.chance * size for m, size in zip(matches, sizes, strict=True) if size]) / n),
        cosine=_mean([match.own for match in matches]), rival=_mean([match.rival for match in matches]),
    )  # fmt: skip


def _mean(values: Sequence[np.ndarray]) -> float:
    known = np.concatenate(values)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent observations (Wilson, 1927); inside [0, 1], also at its ends."""
    if n == 0:
        return math.nan, math.nan
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    # Never past the share itself, which rounding can do at 0 and at 1.
    return min(share, max(0.0, (centre - half) / scale)), max(share, min(1.0, (centre + half) / scale))
