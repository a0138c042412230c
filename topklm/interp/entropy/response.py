"""The tokens that a neuron responds to: S = {v : a(v) > tau, a(v) > 0}, tau a share of a percentile (paper, Eq. 7).

A percentile here is an order statistic: P_q of n values is the ceil(q n / 100)-th smallest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Over = Literal["all", "positive"]


@dataclass(frozen=True, kw_only=True)
class Response:
    """Which tokens one neuron responds to."""

    tokens: np.ndarray
    """int64 [m] rows of the table, by falling mean activation."""
    n: int
    """Their number before the cap; m = min(n, cap)."""


def thresholds(means: np.ndarray, percentile: float, share: float, over: Over = "all") -> np.ndarray:
    """tau of each neuron, float64 [N]: `share` times the percentile of its own means [R, N], clamped at 0.

    `over` "positive": of the positive means only, for neurons that respond to fewer types than the percentile leaves,
    where it would be 0 and every positive type would count. A neuron without a positive mean has tau 0 (and no set).
    """
    ordered = np.sort(np.maximum(means, 0), axis=0)
    n = np.full(means.shape[1], len(means)) if over == "all" else (ordered > 0).sum(0)
    first = len(means) - n  # the values that count are the n largest
    rank = np.clip(first + np.ceil(percentile / 100 * n).astype(np.int64) - 1, 0, len(means) - 1)
    return share * np.take_along_axis(ordered, rank[None], axis=0)[0]


def shared_threshold(
    blocks: Callable[[], Iterable[np.ndarray]], percentile: float, share: float, over: Over = "all"
) -> float:
    """tau over many neurons together (a layer, or all), from blocks of means of any shape that are gone through five
    times: the exact order statistic, found 16 bits at a time, without holding the values."""
    n = sum(_keys(block, over).size for block in blocks())
    if n == 0:
        return 0.0
    rank = max(1, math.ceil(percentile / 100 * n))
    prefix = np.uint64(0)
    for shift in (48, 32, 16, 0):
        histogram = np.zeros(2**16, np.int64)
        for block in blocks():
            keys = _keys(block, over)
            if shift < 48:
                keys = keys[keys >> np.uint64(shift + 16) == prefix >> np.uint64(shift + 16)]
            digits = (keys >> np.uint64(shift)) & np.uint64(0xFFFF)
            histogram += np.bincount(digits.astype(np.int64), minlength=2**16)
        below = np.cumsum(histogram)
        digit = int(np.searchsorted(below, rank))
        rank -= int(below[digit] - histogram[digit])
        prefix |= np.uint64(digit) << np.uint64(shift)
    return share * float(np.array(prefix).view(np.float64))


def responses(means: np.ndarray, tau: np.ndarray | float, cap: int) -> list[Response]:
    """The tokens of each neuron, from its means [R, N] and its tau ([N] or one for all)."""
    chosen = (means > tau) & (means > 0)
    found = []
    for column in range(means.shape[1]):
        tokens = np.flatnonzero(chosen[:, column])
        order = np.argsort(-means[tokens, column], kind="stable")[:cap]
        found.append(Response(tokens=tokens[order], n=len(tokens)))
    return found


def _keys(block: np.ndarray, over: Over) -> np.ndarray:
    """The values as integers of the same order: for floats of one sign their bits are."""
    values = np.maximum(np.asarray(block, np.float64).ravel(), 0) + 0.0  # -0.0 becomes 0.0
    return (values if over == "all" else values[values > 0]).view(np.uint64)
