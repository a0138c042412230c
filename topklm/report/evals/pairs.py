"""The difference of two models on the same documents, with its confidence interval. float64 throughout."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from topklm.report.student import t_quantile

CONFIDENCE_Z = 1.96
"""Standard errors on each side of a 95 % confidence interval."""
FEW = 30
"""Fewer units than these have their interval by Student's t: the error of few is itself uncertain."""
RESAMPLES = 2000
_SEED = 20_240_607
_MEMORY = 4_000_000


@dataclass(frozen=True)
class Units:
    """A figure as the sum of `above` over the sum of `below`, unit by unit: the mean score, nats per token and so on.

    Units are what was drawn at random and is independent of each other: the documents of a task or of held-out text.
    """

    identities: Sequence[Hashable]
    """What a unit is: equal for two models where they were asked the same."""
    above: np.ndarray
    """float64 [n]."""
    below: np.ndarray
    """float64 [n], above 0 in sum; what it is per: 1 for a mean, tokens, bytes."""

    @property
    def ratio(self) -> float:
        """The figure."""
        return float(self.above.sum() / self.below.sum())


@dataclass(frozen=True)
class Paired:
    """How far one model is from another on the same units: `difference` of their ratios, 95 % confidence intervals."""

    n: int
    """Units that it is over."""
    difference: float
    """The first model's ratio less the second's."""
    stderr: float
    """Standard error of the difference, from the differences of the units; NaN for a single one."""
    low: float
    """difference - 1.96 stderr; for fewer than 30 units by Student's t instead of 1.96."""
    high: float
    """difference + as much."""
    bootstrap_low: float
    """2.5th percentile of the difference in resampled units: a check of `low` that assumes no normal distribution."""
    bootstrap_high: float
    """97.5th percentile."""


def paired(mine: Units, its: Units) -> Paired | str:
    """The paired difference, or why there is none, as the end of a sentence.

    d_i = a_i - a'_i per unit, D = sum d_i / sum b_i, and the standard error of that ratio, sqrt(n / (n - 1)
    sum (d_i - D b_i)^2) / sum b_i (Cochran, Sampling Techniques, section 6.4); with b_i = 1 it is the standard error of
    the mean difference. What both models find hard cancels out, so it is smaller than that of two separate samples.
    """
    if len(mine.identities) != len(its.identities):
        return f"they were asked {len(mine.identities):,} and {len(its.identities):,} documents"
    order = {identity: i for i, identity in enumerate(its.identities)}
    if len(order) < len(its.identities):
        return "a document stands twice in the log"
    try:
        index = np.array([order[identity] for identity in mine.identities], np.int64)
    except KeyError:
        return "they were not asked the same: the documents, prompts or tokens of the logs differ"
    if not np.array_equal(mine.below, its.below[index]):
        return "the same documents have other sizes in the two logs"
    differences, below = mine.above - its.above[index], mine.below
    n, total = len(differences), below.sum()
    mean = float(differences.sum() / total)
    residuals = ((differences - mean * below) ** 2).sum()
    stderr = math.sqrt(n / (n - 1) * residuals) / float(total) if n > 1 else math.nan
    low, high = _bootstrap(differences, below)
    reach = (t_quantile(0.975, n - 1) if 2 <= n < FEW else CONFIDENCE_Z) * stderr
    return Paired(n, mean, stderr, mean - reach, mean + reach, low, high)


def _bootstrap(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """2.5th and 97.5th percentile of sum(above) / sum(below) over resampled units."""
    n = len(above)
    rng = np.random.default_rng(_SEED)
    resamples = max(200, min(RESAMPLES, 40_000_000 // n))
    ratios: list[np.ndarray] = []
    rows = max(1, _MEMORY // n)
    for first in range(0, resamples, rows):
        drawn = rng.integers(n, size=(min(rows, resamples - first), n))
        ratios.append(above[drawn].sum(1) / below[drawn].sum(1))
    low, high = np.percentile(np.concatenate(ratios), [2.5, 97.5])
    return float(low), float(high)
