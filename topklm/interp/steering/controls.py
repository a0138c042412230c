"""Random neurons of the same layer that fire about as often: what steering is compared with."""

from __future__ import annotations

import numpy as np


def matched(density: np.ndarray, index: int, tolerance: float) -> np.ndarray:
    """int64 [m], ascending: the other neurons whose density [N] lies within a factor `tolerance` of neuron `index`'s.

    Silent neurons match nothing.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = density / density[index]
        near = np.maximum(ratio, 1 / ratio) <= tolerance * (1 + 1e-12)
    near[index] = False
    return np.flatnonzero(near & (density > 0))


def draw_controls(density: np.ndarray, index: int, n: int, tolerance: float, seed: tuple[int, ...]) -> np.ndarray:
    """int64, ascending: `n` of the matched neurons at random, or all if they are fewer."""
    pool = matched(density, index, tolerance)
    if len(pool) <= n:
        return pool
    return np.sort(np.random.default_rng(seed).choice(pool, n, replace=False))
