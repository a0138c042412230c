"""Detection scoring: does a label tell texts in which a neuron fires from texts in which it does not?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topklm.report.student import t_quantile

Z = 1.959963984540054
"""Of a two-sided interval of 95 %."""
LEAST_NEURONS = 6
"""With fewer no verdict on labels: that five neurons all have the same sign happens by chance in 2 of 32 cases."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well one label did on one neuron's held-out excerpts."""

    hits: int
    """Firing excerpts that were said to fit."""
    positives: int
    """Firing excerpts that were judged."""
    rejections: int
    """Quiet excerpts that were said not to fit."""
    negatives: int
    """Quiet excerpts that were judged."""
    unanswered: int
    """Excerpts without a readable answer: in none of the others."""

    @property
    def balanced(self) -> float:
        """(hits / positives + rejections / negatives) / 2: 0.5 is chance, whatever the numbers. NaN without both."""
        if not self.positives or not self.negatives:
            return math.nan
        return (self.hits / self.positives + self.rejections / self.negatives) / 2

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the balanced accuracy, from Wilson's of both rates (Newcombe's square-and-add, 1998)."""
        if math.isnan(self.balanced):
            return math.nan, math.nan
        rates = [(self.hits, self.positives), (self.rejections, self.negatives)]
        below = above = 0.0
        for k, n in rates:
            low, high = wilson(k, n)
            below += (k / n - low) ** 2
            above += (high - k / n) ** 2
        return self.balanced - math.sqrt(below) / 2, self.balanced + math.sqrt(above) / 2


def detection(fires: Sequence[bool], said: Sequence[bool | None]) -> Detection:
    """From the truth of some excerpts and what was said of them; None: no readable answer."""
    pairs = [(truth, answer) for truth, answer in zip(fires, said, strict=True) if answer is not None]
    return Detection(
        hits=sum(truth and bool(answer) for truth, answer in pairs),
        positives=sum(truth for truth, _ in pairs),
        rejections=sum(not truth and not answer for truth, answer in pairs),
        negatives=sum(not truth for truth, _ in pairs),
        unanswered=len(said) - len(pairs),
    )


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate of k in n."""
    centre, spread = (k + Z**2 / 2) / (n + Z**2), Z * math.sqrt(k * (n - k) / n + Z**2 / 4) / (n + Z**2)
    return max(0.0, centre - spread), min(1.0, centre + spread)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): 95 % interval by Student's t over neurons; NaN is left out, and NaN of fewer than two."""
    known = [value for value in values if not math.isnan(value)]
    mean = statistics.fmean(known) if known else math.nan
    if len(known) < 2:
        return mean, math.nan, math.nan
    half = t_quantile(0.975, len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    return mean, mean - half, mean + half


def others(labels: Sequence[str], seed: int) -> list[int]:
    """For each of n >= 2 neurons another one, whose label is its control; each label is used once.

    A random order, shifted by the step at which the fewest get a label that reads like their own.
    """
    same = [label.casefold() for label in labels]
    order = np.random.default_rng(seed).permutation(len(labels))

    def equal(shift: int) -> int:
        return sum(same[i] == same[j] for i, j in zip(order, np.roll(order, shift), strict=True))

    best = min(range(1, len(labels)), key=lambda shift: (equal(shift), shift))
    other = np.empty(len(labels), np.int64)
    other[order] = np.roll(order, best)
    return other.tolist()
