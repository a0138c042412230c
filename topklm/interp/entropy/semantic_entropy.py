"""Semantic entropy: the spread of similarities between the tokens that a neuron responds to (paper, Eq. 8-11).

With s_uv the cosine similarity of the embeddings of tokens u < v of the set S and w_uv = f_u f_v (f: occurrences in
the corpus), the weights are collected in B bins of s and normalised to P_b: H = -sum_b P_b ln P_b, at most ln B.
It does not measure coherence: a set of unrelated tokens has a narrow, low histogram. See `coherence.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from topklm.errors import ConfigError
from topklm.interp.entropy.response import Over, responses, thresholds

BinRange = Literal["fixed", "adaptive"]


def semantic_entropy(
    sums: ArrayLike,
    counts: ArrayLike,
    embedding: ArrayLike,
    *,
    percentile: float = 99.0,
    share: float = 0.7,
    over: Over = "positive",
    min_count: int = 20,
    bins: int = 100,
    bin_range: BinRange = "fixed",
    leave_one_out: bool = False,
    cap: int = 1000,
) -> np.ndarray:
    """Semantic entropy of each neuron in nats, float64 [N]; NaN for a neuron with fewer than two tokens.

    sums [V, N], counts [V] as in `token_entropy`; embedding [V, D]. tau = share * P_percentile of the neuron's mean
    activations (`thresholds`), and at most `cap` tokens are taken, those with the largest means. `bin_range`: "fixed"
    is [-1, 1] for all neurons, "adaptive" from the neuron's smallest to its largest similarity. `leave_one_out`:
    without coordinate i of the embedding for neuron i (then D = N), since in a model's own embedding that coordinate
    feeds the neuron. Raises `ConfigError` for shapes that do not fit.
    """
    sums, counts, embedding = np.asarray(sums), np.asarray(counts), np.asarray(embedding, np.float64)
    if sums.ndim != 2 or embedding.ndim != 2 or not len(sums) == len(counts) == len(embedding):
        raise ConfigError(
            "sums [V, N], counts [V] and embedding [V, D] do not fit: "
            f"{list(sums.shape)}, {list(counts.shape)}, {list(embedding.shape)}"
        )
    if leave_one_out and embedding.shape[1] != sums.shape[1]:
        raise ConfigError(f"leave_one_out needs one embedding coordinate per neuron, not {embedding.shape[1]}")
    kept = counts >= max(1, min_count)
    means, counts, embedding = sums[kept] / counts[kept, None], counts[kept], embedding[kept]
    found = responses(means, thresholds(means, percentile, share, over), cap)
    out = np.full(sums.shape[1], np.nan)
    for neuron, response in enumerate(found):
        rows = embedding[response.tokens]
        if leave_one_out:
            rows = without(rows, neuron)
        out[neuron] = similarity_entropy(unit(rows), counts[response.tokens], bins, bin_range)
    return out


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [m, D] of length 1, float64; a row of zeros stays."""
    rows = np.asarray(rows, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)


def without(rows: np.ndarray, coordinate: int | Sequence[int]) -> np.ndarray:
    """Rows [m, D] with coordinates set to 0."""
    rows = np.array(rows, np.float64)
    rows[:, coordinate] = 0.0
    return rows


def similarity_entropy(rows: np.ndarray, weights: np.ndarray, bins: int, bin_range: BinRange) -> float:
    """H of tokens with unit rows [m, D] and weights [m] (occurrences). NaN for fewer than two."""
    m = len(rows)
    if m < 2:
        return float("nan")
    upper = np.triu_indices(m, 1)
    similarities = np.clip((rows @ rows.T)[upper], -1.0, 1.0)
    w = weights.astype(np.float64)
    pairs = (w[:, None] * w)[upper]
    low, high = (-1.0, 1.0) if bin_range == "fixed" else (similarities.min(), similarities.max())
    if not high > low:
        return 0.0  # all in one bin
    place = np.minimum(((similarities - low) / (high - low) * bins).astype(np.int64), bins - 1)
    p = np.bincount(place, pairs, bins)
    p = p[p > 0] / p.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))
