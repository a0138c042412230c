"""Mean activations per token type from a bundle, in the pieces that memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from topklm.bundles import Bundle
from topklm.interp.entropy.token_entropy import Block

COLUMN_BYTES = 2**30
"""Memory for the means of some neurons over all types, at which a layer is gone through in several passes."""


class LayerMeans:
    """One layer's table `sum` or `positive` of one bundle, or of several that add up to one (parts)."""

    def __init__(self, bundles: Sequence[Bundle], layer: int, table: str = "sum", min_count: int = 1) -> None:
        self._bundles, self._layer, self._table, self._min_count = bundles, layer, table, max(1, min_count)
        self.counts = np.sum([bundle.counts for bundle in bundles], axis=0)
        """int64 [V] occurrences of each type in all of them."""
        self.types = np.flatnonzero(self.counts >= self._min_count)
        """int64 [R] types that occurred at least `min_count` times, ascending: the rows of `columns`."""
        self.width = bundles[0].meta.model.dim

    def density(self) -> np.ndarray:
        """float64 [N] share of their tokens in which each neuron fired."""
        fired = np.sum([bundle.layer(self._layer).stats.fired for bundle in self._bundles], axis=0)
        return fired / sum(bundle.n_tokens for bundle in self._bundles)

    def blocks(self, only: np.ndarray | None = None, rows: int = 4096) -> Iterator[Block]:
        """(occurrences [r], sums [r, N]) of all types that occurred, each once; for `token_figures`. `only` [V] bool:
        of these types."""
        for types, sums in self._blocks(rows):
            kept = slice(None) if only is None else only[types]
            yield self.counts[types[kept]], sums[kept]

    def _blocks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if len(self._bundles) == 1:
            yield from self._bundles[0].layer(self._layer).table_blocks(self._table, rows)
            return
        total = self._bundles[0].layer(self._layer).table(self._table)
        for bundle in self._bundles[1:]:
            total = total.merge(bundle.layer(self._layer).table(self._table))
        yield total.types, total.rows

    def columns(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first neuron, means [R, n] of the neurons from there on), R the types of `types`."""
        step = max(1, min(self.width, COLUMN_BYTES // max(1, 8 * len(self.types))))
        for start in range(0, self.width, step):
            stop = min(start + step, self.width)
            means, row = np.empty((len(self.types), stop - start)), 0
            for counts, sums in self.blocks():
                kept = counts >= self._min_count
                n = int(kept.sum())
                means[row : row + n] = sums[kept, start:stop] / counts[kept, None]
                row += n
            yield start, means
