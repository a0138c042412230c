"""[V, N] tables of per-token-type sums, kept for the types that occur, and stored sparsely where that is smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from topklm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """A table that is zero outside the rows of the token types that were seen."""

    types: np.ndarray
    """int64 [R], ascending: the token types that were seen."""
    rows: np.ndarray
    """[R, N] float64 (int64 for counts): the row of each of them."""

    def dense(self, vocab_size: int) -> np.ndarray:
        """[V, N]"""
        out = np.zeros((vocab_size, self.rows.shape[1]), self.rows.dtype)
        out[self.types] = self.rows
        return out

    def merge(self, other: TokenTable) -> TokenTable:
        """The sum of both, over the types of either."""
        types = np.union1d(self.types, other.types)
        rows = np.zeros((len(types), self.rows.shape[1]), self.rows.dtype)
        rows[np.searchsorted(types, self.types)] = self.rows
        rows[np.searchsorted(types, other.types)] += other.rows
        return TokenTable(types=types, rows=rows)

    def to_arrays(self, name: str) -> dict[str, np.ndarray]:
        """For a file: `name` [R, N], or where that is smaller `name.indptr` [R + 1], `.index`, `.value` (CSR).

        The types are not among them: they are those with a count above 0, the same for all layers.
        """
        n_types, width = self.rows.shape
        index_type = np.dtype(np.uint16 if width <= 2**16 else np.uint32)
        # Counted by rows: a mask of the whole table would be an eighth of it again.
        per_row = np.fromiter((np.count_nonzero(row) for row in self.rows), np.int64, n_types)
        n = int(per_row.sum())
        if n * (self.rows.itemsize + index_type.itemsize) + 8 * (n_types + 1) >= self.rows.nbytes:
            return {name: self.rows}
        index, value = np.empty(n, index_type), np.empty(n, self.rows.dtype)
        indptr = np.concatenate(([0], np.cumsum(per_row)))
        for row, start, stop in zip(self.rows, indptr[:-1], indptr[1:], strict=True):
            columns = np.flatnonzero(row)
            index[start:stop], value[start:stop] = columns, row[columns]
        return {f"{name}.indptr": indptr, f"{name}.index": index, f"{name}.value": value}

    @staticmethod
    def from_arrays(name: str, arrays: Mapping[str, np.ndarray], types: np.ndarray, width: int) -> TokenTable:
        """The inverse of `to_arrays`."""
        if name in arrays:
            rows = arrays[name]
        else:
            indptr = arrays[f"{name}.indptr"]
            rows = expand(indptr, arrays[f"{name}.index"], arrays[f"{name}.value"], width)
        if rows.shape != (len(types), width):
            raise DataError(f"the table {name} is {list(rows.shape)}, not {[len(types), width]}; collect it again")
        return TokenTable(types=types, rows=rows)


def expand(indptr: np.ndarray, index: np.ndarray, value: np.ndarray, width: int) -> np.ndarray:
    """Rows [R, width] of a table in CSR form; `indptr` [R + 1] may start anywhere."""
    rows = np.zeros((len(indptr) - 1, width), value.dtype)
    rows[np.repeat(np.arange(len(rows)), np.diff(indptr)), index] = value
    return rows
