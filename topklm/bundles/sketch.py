"""The m best of each cell: top contexts and samples of contexts, the same whatever the order and the division."""

from __future__ import annotations

import numpy as np

EMPTY = -1
"""Position of an entry that is not there; its key is infinite and its value NaN."""


class Sketch:
    """Of all that was offered to a cell, the `size` entries with the smallest (key, position), in that order.

    Positions are unique within a cell, so the result depends on the set of offers alone: `merge(a, b)` is what one
    sketch of all offers would hold. Arrays: `key`, `value` float64 and `position` int64, each [cells, size].
    """

    def __init__(self, cells: int, size: int) -> None:
        self.key = np.full((cells, size), np.inf)
        self.position = np.full((cells, size), EMPTY, np.int64)
        self.value = np.full((cells, size), np.nan)

    @property
    def size(self) -> int:
        return self.key.shape[1]

    @property
    def worst(self) -> np.ndarray:
        """[cells] the key that an offer must not exceed to be kept; infinite while a cell has room."""
        return self.key[:, -1]

    def offer(self, cell: np.ndarray, key: np.ndarray, position: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Offer entries, [n] each; the cells that changed, ascending and unique. Keys must be finite."""
        if not len(cell) or not self.size:
            return np.empty(0, np.int64)
        order = np.lexsort((position, key, cell))
        cell = cell[order]
        first = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        place = np.arange(len(cell)) - np.repeat(first, np.diff(np.r_[first, len(cell)]))
        kept = place < self.size
        order, place = order[kept], place[kept]
        changed = cell[first]
        row = np.repeat(np.arange(len(first)), np.minimum(np.diff(np.r_[first, len(cell)]), self.size))
        offered = Sketch(len(changed), self.size)
        offered.key[row, place] = key[order]
        offered.position[row, place] = position[order]
        offered.value[row, place] = value[order]
        best = _best(self._rows(changed), offered)
        self.key[changed], self.position[changed], self.value[changed] = best.key, best.position, best.value
        return changed

    def merge(self, other: Sketch) -> Sketch:
        """A new sketch of what was offered to either."""
        return _best(self, other)

    def copy(self) -> Sketch:
        return self._rows(slice(None))

    def _rows(self, rows: np.ndarray | slice) -> Sketch:
        part = Sketch(0, self.size)
        part.key, part.position, part.value = (np.array(a[rows]) for a in (self.key, self.position, self.value))
        return part


def _best(a: Sketch, b: Sketch) -> Sketch:
    """Row by row, the best of both; as many cells as each of them has."""
    key = np.concatenate((a.key, b.key), axis=1)
    position = np.concatenate((a.position, b.position), axis=1)
    value = np.concatenate((a.value, b.value), axis=1)
    best = np.lexsort((position, key), axis=1)[:, : a.size]  # empty entries have infinite keys: last
    out = Sketch(0, a.size)
    out.key, out.position, out.value = (np.take_along_axis(x, best, axis=1) for x in (key, position, value))
    return out
