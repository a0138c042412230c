"""Token profiles: what a neuron does on each token type, as a direction that neurons can be compared by.

A TopK language model has no decoder whose columns one could compare. The profile of neuron i is its row of mean
activations abar_i(v) over the token types v, centred and of length 1; the inner product of two is their cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from topklm.bundles import Bundle, LayerView
from topklm.errors import DataError
from topklm.interp.entropy.layer_means import LayerMeans

Centre = Literal["token", "both", "scaled", "none"]
"""token: from each type its mean over the neurons is taken away, so that what all neurons do on a type (a frequent one,
say) is not what they have in common. A few loud neurons decide that mean, and what is left of all quiet ones is its
negative, all alike. both: then from each neuron its mean over the types, so that an offset is not in common either:
the cosine is Pearson's correlation. scaled: from each neuron its mean over the types, then it is brought to length 1,
and only then from each type its mean over the neurons is taken, in which so every neuron counts the same. none: the
means as they are."""

_COLUMNS = 4096
"""Types that are gone through at a time."""


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """The token profiles of one layer's N neurons over R token types."""

    types: np.ndarray
    """int64 [R], ascending: the token types that the columns stand for."""
    rows: np.ndarray
    """[N, R]: of length 1; zeros for a neuron that is silent."""
    silent: np.ndarray
    """bool [N]: neurons without a profile: zero on every one of the types (in a TopK layer: they never fired on
    them), or no different from the mean that was taken away. They are left out of what is compared, and counted. A
    neuron of a dense layer that is never positive has a profile."""
    density: np.ndarray
    """float64 [N]: share of all tokens in which each neuron fired."""

    @property
    def width(self) -> int:
        """N."""
        return len(self.rows)


def shared_types(bundles: Sequence[Bundle], min_count: int = 20) -> np.ndarray:
    """int64 [R], ascending: the token types that occurred at least `min_count` times in each of the bundles.

    Profiles that are compared have to be over the same types, and a mean over few occurrences is mostly noise. Raises
    `DataError` if the vocabularies differ, or fewer than two types are left.
    """
    sizes = {bundle.vocab_size for bundle in bundles}
    if len(sizes) > 1:
        raise DataError(f"the vocabularies have {', '.join(map(str, sorted(sizes)))} types; profiles do not compare")
    enough = np.all([bundle.counts >= max(1, min_count) for bundle in bundles], axis=0)
    types = np.flatnonzero(enough)
    if len(types) < 2:
        most = int(np.min([bundle.counts for bundle in bundles], axis=0).max())
        raise DataError(
            f"{len(types)} token types occur at least {min_count} times in all {len(bundles)} bundles (the most "
            f"frequent one {most:,} times); lower min_count, or collect more tokens"
        )
    return types


def token_profiles(
    source: LayerView | LayerMeans,
    types: np.ndarray,
    *,
    centre: Centre = "token",
    table: Literal["sum", "positive"] = "sum",
    dtype: Any = np.float32,
) -> Profiles:
    """The profiles of one layer over the given token types, all of which must have occurred in it.

    `source`: a layer of an opened bundle, or `LayerMeans` of parts that add up to one (whose own table is taken).
    `table`: mean of the activation, or of its positive part (dense bundles need positive_part=true). Means over the
    neurons, in `centre`, leave silent ones out, so that dead neurons change nothing.

    Memory: [N, R] in `dtype`, and blocks of 4,096 types in float64. Sums are of float64; float32 rounds each mean
    activation once, and moves a cosine by about 1e-7. Raises `DataError` for types that did not occur, and for a
    missing table.
    """
    means = source if isinstance(source, LayerMeans) else LayerMeans([source.bundle], source.layer, table)
    rows = np.empty((means.width, len(types)), dtype)
    if (absent := means.counts[types] == 0).any():
        raise DataError(f"{int(absent.sum())} of the {len(types)} token types did not occur, so they have no mean")
    only = np.zeros(len(means.counts), bool)
    only[types] = True
    total = np.empty(len(types))  # over the neurons, in float64
    place = 0
    for counts, sums in means.blocks(only, _COLUMNS):
        block = sums / counts[:, None]  # [r, N]
        rows[:, place : place + len(counts)] = block.T
        total[place : place + len(counts)] = block.sum(1)
        place += len(counts)
    silent = _finish(rows, total, centre)
    return Profiles(types=types, rows=rows, silent=silent, density=means.density())


def similarity(a: Profiles, b: Profiles) -> np.ndarray:
    """[N_a, N_b]: the cosine of each profile of `a` with each of `b`; 0 for silent ones.

    Raises `DataError` if they are over different types.
    """
    if not np.array_equal(a.types, b.types):
        raise DataError("the profiles are over different token types; make both over those of shared_types")
    return a.rows @ b.rows.T


def _finish(rows: np.ndarray, total: np.ndarray, centre: Centre) -> np.ndarray:
    """Centre and normalise rows [N, R] of means in place, given their sums over the neurons [R]; bool [N]: silent."""
    before = _lengths(rows)
    silent = before == 0
    if centre == "scaled":
        _take_own_mean(rows)
        silent = _bring_to_length_one(rows, before, silent)
        total = np.concatenate([rows[:, columns].sum(0, dtype=np.float64) for columns in _slices(rows)])
        before = (~silent).astype(np.float64)
    if centre != "none":
        mean = total / max(1, int((~silent).sum()))
        for columns in _slices(rows):
            rows[:, columns] -= mean[columns].astype(rows.dtype)
    if centre == "both":
        _take_own_mean(rows)
    return _bring_to_length_one(rows, before, silent)


def _take_own_mean(rows: np.ndarray) -> None:
    """From each row its mean over the types, in place."""
    own = sum(rows[:, columns].sum(1, dtype=np.float64) for columns in _slices(rows)) / rows.shape[1]
    rows -= own[:, None].astype(rows.dtype)


def _bring_to_length_one(rows: np.ndarray, before: np.ndarray, silent: np.ndarray) -> np.ndarray:
    """In place, zeros where silent; bool [N]: silent, those included of which nothing is left but rounding."""
    after = _lengths(rows)
    silent = silent | (after <= 8 * np.finfo(rows.dtype).eps * before)
    rows *= np.where(silent, 0.0, 1 / np.where(silent, 1.0, after))[:, None].astype(rows.dtype)
    return silent


def _lengths(rows: np.ndarray) -> np.ndarray:
    """float64 [N]"""
    squares = np.zeros(len(rows))
    for columns in _slices(rows):
        squares += (rows[:, columns].astype(np.float64) ** 2).sum(1)
    return np.sqrt(squares)


def _slices(rows: np.ndarray) -> list[slice]:
    return [slice(start, start + _COLUMNS) for start in range(0, rows.shape[1], _COLUMNS)]
