"""What a matching reaches where there is nothing to match: the floors that every consistency is read against.

The best of very many pairings is never at 0, so a PW-MCC means nothing alone. Floors, from low to high:

- random: dictionaries of independent Gaussian directions of the same sizes. 0.12 for 2,048 in 768 dimensions.
- permuted: the second dictionary with its coordinates relabelled, the same way for all of its entries, each among those
  of its frequency bin. What an entry does on frequent and on rare tokens stays, and so does every angle between
  entries; which token is which does not. A permutation across the bins would be too low.
- runs at random initialisation, which are bundles of their own (`init=random`): what the architecture and the corpus
  alone make alike.
"""

from __future__ import annotations

import numpy as np

LEAST_TYPES = 20
"""Frequency bins with fewer token types are joined with the next one: alone in its bin, a type would stay itself."""


def frequency_bins(counts: np.ndarray, least: int = LEAST_TYPES) -> np.ndarray:
    """int64 [R]: the frequency bin of each token type, by its occurrences [R] >= 1.

    Bins are powers of two (2^b ... 2^(b+1) - 1), from the most frequent ones on joined with the next below until they
    have `least` types; what is left below joins the last.
    """
    octave = np.floor(np.log2(counts)).astype(np.int64)
    bins = np.empty(len(octave), np.int64)
    current, size = 0, 0
    for value in np.unique(octave)[::-1]:
        if size >= least:
            current, size = current + 1, 0
        members = octave == value
        bins[members] = current
        size += int(members.sum())
    if current and size < least:
        bins[bins == current] = current - 1
    return bins


def relabelled(rows: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """rows [n, d] with their coordinates permuted within the bins [d], all rows alike."""
    place = np.arange(len(bins))
    for value in np.unique(bins):
        members = np.flatnonzero(bins == value)
        place[members] = rng.permutation(members)
    return rows[:, place]


def random_dictionary(m: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [m, d]: independent directions, uniform over the sphere."""
    rows = rng.standard_normal((m, d), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_partner(a: np.ndarray, b: np.ndarray, strata_a: np.ndarray, strata_b: np.ndarray) -> float:
    """Expected cosine of an entry of the first dictionary with a random one of the second of its own density stratum.

    Without any search for a good partner: what a partner that is given beforehand (the same index) has by chance.
    a [m, d], b [n, d] unit rows; strata_a [m], strata_b [n] any integers. Entries without a counterpart are left out;
    NaN if that leaves none.
    """
    total, entries = 0.0, 0
    for stratum in np.intersect1d(strata_a, strata_b):
        rows, others = a[strata_a == stratum], b[strata_b == stratum]
        total += float(rows.sum(0, dtype=np.float64) @ others.mean(0, dtype=np.float64))  # the mean of all cosines
        entries += len(rows)
    return total / entries if entries else float("nan")
