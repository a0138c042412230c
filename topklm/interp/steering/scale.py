"""The unit of relative offsets: a high percentile of a neuron's activation over tokens.

P_q of n values is their ceil(q n / 100)-th smallest (as in `topklm.interp.entropy.response`), over all tokens, the
zeros of a TopK layer among them. A bundle has it exactly where it lies among the neuron's top contexts; elsewhere it
has the power of two that it lies in, exactly, from counts, and what stands here is interpolated in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from topklm.bundles import LayerStats
from topklm.bundles.exponent import N_CODES, bounds
from topklm.bundles.sketch import EMPTY
from topklm.interp.neurons import Neuron
from topklm.interp.statistics.tap import tap
from topklm.model import Transformer

ASCENDING = np.concatenate((np.arange(N_CODES - 1, N_CODES // 2 - 1, -1), np.arange(N_CODES // 2)))
"""Codes of a histogram's bins from the most negative values to the most positive."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A percentile of one neuron's activation."""

    value: float
    """What offsets are multiplied with."""
    low: float
    """The percentile is certainly not below this..."""
    high: float
    """... and not above this; equal where it is exact."""
    percentile: float
    """q."""
    n_tokens: int
    """Tokens that it was measured on."""

    @property
    def words(self) -> str:
        """Such as "P99.9 = 1.83 (in 1 ... 2)"."""
        known = "" if self.low == self.high else f" (interpolated in {self.low:.4g} ... {self.high:.4g})"
        return f"P{self.percentile:g} = {self.value:.4g}{known}"


def rank_of(percentile: float, n: int) -> int:
    """Which of n values in ascending order, from 1, is the percentile. Exact: 99.9 % of 1,000 is 999."""
    return max(1, math.ceil(Fraction(str(percentile)) * n / 100))


def scale_from_bundle(stats: LayerStats, index: int, n_tokens: int, percentile: float) -> Scale:
    """The percentile of one neuron from the statistics of its layer."""
    rank = rank_of(percentile, n_tokens)
    above = n_tokens - rank  # values after it in ascending order
    top = np.sort(stats.top.value[index][stats.top.position[index] != EMPTY])[::-1]
    if above < len(top):
        value = float(top[above])
        return Scale(value=value, low=value, high=value, percentile=percentile, n_tokens=n_tokens)
    counts = stats.histogram[ASCENDING, index]
    upto = np.cumsum(counts)
    place = int(np.searchsorted(upto, rank))
    low, high = (float(bound) for bound in bounds(ASCENDING[place]))
    high = min(high, float(stats.maximum[index]))
    share = (rank - (upto[place] - counts[place]) - 0.5) / counts[place]
    if low > 0 or high < 0:  # a power of two: equal steps of the logarithm
        value = low * (high / low) ** share
    else:  # zeros and subnormal numbers
        value = low = high = 0.0
    return Scale(value=value, low=low, high=high, percentile=percentile, n_tokens=n_tokens)


def measured_scales(
    model: Transformer,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    neurons: Sequence[Neuron],
    percentile: float,
    advance: Callable[[int], None] | None = None,
) -> dict[Neuron, Scale]:
    """The exact percentiles over batches (tokens [B, T], document ids [B, T] or None).

    Takes 4 bytes (8 in float64) per token and neuron.
    """
    by_layer: dict[int, list[int]] = {}
    for neuron in neurons:
        by_layer.setdefault(neuron.layer, []).append(neuron.index)
    seen: dict[int, list[np.ndarray]] = {layer: [] for layer in by_layer}

    def see(layer: int, output: Tensor, pre: Tensor | None, activation: object) -> None:
        values = output[..., by_layer[layer]].flatten(0, -2)
        seen[layer].append(values.to(torch.promote_types(values.dtype, torch.float32)).cpu().numpy())

    with tap(model, sorted(by_layer), see) as forward:
        for tokens, ids in batches:
            forward(tokens, ids)
            if advance is not None:
                advance(tokens.numel())
    scales = {}
    for layer, indices in by_layer.items():
        values = np.sort(np.concatenate(seen[layer]), axis=0)
        for column, index in enumerate(indices):
            value = float(values[rank_of(percentile, len(values)) - 1, column])
            scales[Neuron(layer, index)] = Scale(
                value=value, low=value, high=value, percentile=percentile, n_tokens=len(values)
            )
    return scales
