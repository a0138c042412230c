"""From texts to figures: concept rate and perplexity with bootstrap intervals, and whether controls do as well.

A rate is a sum over texts divided by a sum over texts (tokens in the set / tokens); a perplexity is exp of one. Both
are bootstrapped over texts, and differences between cells over the same draws of texts, since text n of every cell has
the same random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from topklm.interp.steering.concept import Concept
from topklm.interp.steering.samples import Sample
from topklm.report.steering import Estimate


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of the n texts of one cell, float64 [n] each."""

    tokens: np.ndarray
    """Generated tokens, without EOS."""
    hits: np.ndarray
    """Those in the concept's set."""
    nll: np.ndarray
    """-ln p under the model as it is, summed over the tokens."""
    bigrams: np.ndarray
    """Pairs of neighbouring tokens."""
    repeated: np.ndarray
    """Those that came before in the same text."""

    @property
    def rate(self) -> float:
        """Share of the tokens that are in the set; NaN without tokens."""
        return float(ratio(self.hits, self.tokens))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token; NaN without tokens."""
        return float(np.exp(ratio(self.nll, self.tokens)))

    @property
    def repeated_share(self) -> float:
        """Share of the bigrams that repeat one: near 1 for a loop, whose perplexity is low."""
        return float(ratio(self.repeated, self.bigrams))


def count(samples: Sequence[Sample], concept: Concept) -> Counts:
    """Count the texts of one cell."""
    rows = []
    for sample in samples:
        pairs = list(zip(sample.ids, sample.ids[1:], strict=False))
        rows.append((len(sample.ids), concept.hits(sample.ids), sample.nll, len(pairs), len(pairs) - len(set(pairs))))
    tokens, hits, nll, bigrams, repeated = np.array(rows, np.float64).T
    return Counts(tokens=tokens, hits=hits, nll=nll, bigrams=bigrams, repeated=repeated)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Sum over sum along the last axis; NaN where there is nothing below."""
    total = below.sum(-1)
    return np.where(total > 0, above.sum(-1) / np.where(total > 0, total, 1), np.nan)


def draws(n: int, number: int, seed: int) -> np.ndarray:
    """int64 [number, n]: bootstrap samples of n texts."""
    return np.random.default_rng(seed).integers(0, n, (number, n))


def interval(value: float, drawn: np.ndarray, level: float) -> Estimate:
    """`value` with the percentile interval of its bootstrap draws [number]; NaN draws are left out."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


class Bootstrap:
    """Estimates of cells over the same draws of texts."""

    def __init__(self, n: int, number: int, seed: int, level: float) -> None:
        self._draws, self._level = draws(n, number, seed), level

    def rate(self, cell: Counts) -> Estimate:
        """Concept rate."""
        return interval(cell.rate, self._rates(cell), self._level)

    def perplexity(self, cell: Counts) -> Estimate:
        """Perplexity under the model as it is."""
        return interval(cell.perplexity, np.exp(self._losses(cell)), self._level)

    def gain(self, cell: Counts, base: Counts) -> Estimate:
        """Concept rate of a cell minus that of another, paired by text."""
        return interval(cell.rate - base.rate, self._rates(cell) - self._rates(base), self._level)

    def lead(self, cell: Counts, controls: Sequence[Counts]) -> Estimate:
        """Concept rate of a cell minus the mean of those of its controls (that have tokens), paired by text. The
        interval is over texts, these controls given."""
        known = [control for control in controls if control.tokens.any()]
        if not known:
            return Estimate(float("nan"), float("nan"), float("nan"))
        mean = float(np.mean([control.rate for control in known]))
        drawn = np.mean([self._rates(control) for control in known], axis=0)
        return interval(cell.rate - mean, self._rates(cell) - drawn, self._level)

    def price(self, cell: Counts, base: Counts) -> Estimate:
        """Perplexity of a cell divided by that of another, paired by text."""
        drawn = np.exp(self._losses(cell) - self._losses(base))
        return interval(cell.perplexity / base.perplexity, drawn, self._level)

    def _rates(self, cell: Counts) -> np.ndarray:
        return ratio(cell.hits[self._draws], cell.tokens[self._draws])

    def _losses(self, cell: Counts) -> np.ndarray:
        return ratio(cell.nll[self._draws], cell.tokens[self._draws])


def permutation_test(rates: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, float]:
    """Whether neuron 0 of rates [1 + m, doses] stands out among m controls: (p of each dose [doses], p over all doses).

    Under the null hypothesis that the steered neuron is one like its controls, its place among them is uniform. The
    statistic of a neuron at a dose is its rate, less the mean of all 1 + m neurons, over their standard deviation,
    times `signs` [doses] (a negative offset should lower the rate); p over all doses is the share of neurons (itself
    among them) whose largest statistic over the doses is not below its own, and p of a dose that whose largest is not
    below its statistic there, so it is adjusted for the number of doses. Neither can be below 1 / (1 + m).
    """
    rates = np.nan_to_num(np.asarray(rates, np.float64))
    spread = rates.std(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spread > 0, signs * (rates - rates.mean(axis=0)) / spread, 0.0)  # [1 + m, doses]
    largest = z.max(axis=1)
    # Equal rates may differ in the last digit of their statistics: they count as equal.
    at_least = largest[:, None] >= z[0][None, :] - 1e-9
    return at_least.mean(axis=0), float((largest >= largest[0] - 1e-9).mean())
