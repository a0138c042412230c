"""Everything that is counted and summed about the neurons of one layer, over any set of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from topklm.bundles.exponent import N_CODES, STRATA
from topklm.bundles.sketch import EMPTY, Sketch
from topklm.bundles.token_table import TokenTable
from topklm.errors import DataError

TABLES = ("sum", "positive", "fired")
_LARGEST = ("maximum", "last_fired")
_LEAST = ("margin_least",)


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Statistics of one layer of N neurons. "Fired": selected and > 0 in a TopK layer, > 0 elsewhere.

    All are sums, extremes or sketches of single tokens, so `merge` of two disjoint sets of tokens is the statistics
    of both together. None where a statistic does not exist: see each.
    """

    tables: dict[str, TokenTable]
    """Per token type and neuron: `sum` of the activation; if asked for `positive`, of its positive part, and `fired`,
    in how many tokens the neuron fired."""
    sum: np.ndarray
    """float64 [N] sum of the activation over all tokens."""
    square_sum: np.ndarray
    """float64 [N] sum of its square."""
    positive_sum: np.ndarray
    """float64 [N] sum of its positive part; `positive_sum - sum` is the negative mass."""
    maximum: np.ndarray
    """float64 [N] the largest activation, zeros of a TopK included; -inf without tokens."""
    fired: np.ndarray
    """int64 [N] tokens in which the neuron fired."""
    last_fired: np.ndarray
    """int64 [N] the largest position at which it fired; -1 if never."""
    histogram: np.ndarray
    """int64 [512, N] tokens by bin of the activation (`topklm.bundles.exponent`)."""
    fired_next: np.ndarray | None
    """int64 [N] tokens in which it fired here and its index fired in the next layer too; None in the last layer."""
    fired_runs: np.ndarray | None = None
    """int64 [layer + 1, N]; row r: tokens in which the neuron fired here and in the r layers before, and not in the one
    before those (or there is none). So the rows add up to `fired`, and those from row d on are the tokens in which its
    index fired in each of the layers `layer - d` to `layer`. None in bundles from before it was counted."""
    l0_histogram: np.ndarray | None
    """int64 [N + 1] tokens by the number of neurons that fired; None in a dense layer."""
    near_misses: np.ndarray | None
    """int64 [N] tokens in which the neuron was not selected, but its pre-activation lay less than the setting
    `near_miss` times |cut| below the cut, the least selected pre-activation; None in a dense layer."""
    margin_count: np.ndarray | None
    """int64 [1] tokens with a margin (the least selected minus the largest other pre-activation, k-th minus
    (k+1)-th); None in a dense layer."""
    margin_sum: np.ndarray | None
    """float64 [1] sum of the margins."""
    margin_least: np.ndarray | None
    """float64 [1] the least margin; inf without one."""
    margin_histogram: np.ndarray | None
    """int64 [512] tokens by bin of the margin."""
    top: Sketch
    """[N, n]: the n tokens with the largest positive activation; key = -activation."""
    sample: Sketch
    """[N * STRATA, m]: of the tokens with a positive activation in a power of two, the m with the smallest hash of
    (position, neuron), a uniform sample; cell = neuron * STRATA + stratum, key = hash."""

    @property
    def width(self) -> int:
        """N."""
        return len(self.sum)

    def merge(self, other: LayerStats) -> LayerStats:
        """The statistics of both sets of tokens, which must be disjoint. Raises `DataError` if they do not fit."""
        merged: dict[str, Any] = {}
        for field in fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            if (a is None) != (b is None) or (isinstance(a, dict) and a.keys() != b.keys()):
                raise DataError(f"one of the statistics has {field.name} and the other has not; they do not merge")
            if a is None:
                merged[field.name] = None
            elif isinstance(a, dict):
                merged[field.name] = {name: table.merge(b[name]) for name, table in a.items()}
            elif isinstance(a, Sketch):
                merged[field.name] = a.merge(b)
            elif field.name in _LARGEST:
                merged[field.name] = np.maximum(a, b)
            elif field.name in _LEAST:
                merged[field.name] = np.minimum(a, b)
            else:
                merged[field.name] = a + b
        return LayerStats(**merged)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays of a layer's file (docs/bundles.md): bins that no token fell in and empty entries are left out."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        used = np.flatnonzero(self.histogram.any(axis=1))
        arrays |= {"histogram": self.histogram[used], "histogram_codes": used.astype(np.int16)}
        for name, table in self.tables.items():
            arrays |= table.to_arrays(f"token_{name}")
        arrays |= {"top_position": self.top.position, "top_value": self.top.value}
        filled = self.sample.position != EMPTY
        cell = np.nonzero(filled)[0]
        arrays |= {
            "sample_cell": cell.astype(np.int32),
            "sample_key": self.sample.key[filled].astype(np.int32),
            "sample_position": self.sample.position[filled],
            "sample_value": self.sample.value[filled],
        }
        return arrays

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, np.ndarray], types: np.ndarray, width: int, sample_size: int, tables: bool = True
    ) -> LayerStats:
        """The inverse of `to_arrays`; `types` [R] are the token types that were seen. `tables`: read them too."""
        named: dict[str, Any] = {f.name: arrays.get(f.name) for f in fields(LayerStats)}
        names = {key.split(".")[0].removeprefix("token_") for key in arrays if key.startswith("token_")}
        named["tables"] = {
            name: TokenTable.from_arrays(f"token_{name}", arrays, types, width) for name in TABLES if name in names
        } if tables else {}  # fmt: skip
        histogram = np.zeros((N_CODES, width), np.int64)
        histogram[arrays["histogram_codes"]] = arrays["histogram"]
        top = Sketch(width, arrays["top_position"].shape[1])
        top.position, top.value = arrays["top_position"], arrays["top_value"]
        top.key = np.where(top.position == EMPTY, np.inf, -top.value)
        cell = arrays["sample_cell"].astype(np.int64)
        sample = Sketch(width * STRATA, sample_size)
        start = np.searchsorted(cell, cell)  # ascending: where each cell begins
        place = np.arange(len(cell)) - start
        sample.key[cell, place] = arrays["sample_key"]
        sample.position[cell, place] = arrays["sample_position"]
        sample.value[cell, place] = arrays["sample_value"]
        return LayerStats(**(named | {"histogram": histogram, "top": top, "sample": sample}))
