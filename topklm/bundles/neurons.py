"""`neurons.parquet`: one row per (step, layer, neuron) with every scalar, for pandas or duckdb."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles.layer_stats import LayerStats
from topklm.bundles.meta import Meta
from topklm.optional import require

NEURONS = "neurons.parquet"


def tokens_since_fired(last_fired: np.ndarray, windows: np.ndarray, context: int) -> np.ndarray:
    """int64 [N]: tokens of the bundle after the last one in which each neuron fired; all of them if it never did.

    "After" is by position; `windows` [W] are the ascending starts of windows of `context` tokens.
    """
    window = np.searchsorted(windows, last_fired, side="right") - 1
    inside = windows[window] + context - 1 - last_fired if len(windows) else np.zeros_like(last_fired)
    return np.where(last_fired < 0, len(windows) * context, (len(windows) - 1 - window) * context + inside)


def neuron_columns(meta: Meta, layer: int, stats: LayerStats, windows: np.ndarray) -> dict[str, np.ndarray | str]:
    """The columns of one layer's neurons, [N] each, in the order of the file. NaN: not defined for the neuron.

    Needs no token tables.
    """
    n, width = meta.n_tokens, stats.width
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = stats.sum / n
        density = stats.fired / n
        mass = 2 * stats.positive_sum - stats.sum  # of |a|
        persistence = np.full(width, np.nan) if stats.fired_next is None else stats.fired_next / stats.fired
        near = np.full(width, np.nan) if stats.near_misses is None else stats.near_misses / n
        # Where a selection is read before or beside its cut, other neurons than those that fired are positive too.
        only_fired = stats.near_misses is None or meta.layers[str(layer)] == "topk"
        return {
            "step": np.full(width, -1 if meta.model.step is None else meta.model.step),
            "layer": np.full(width, layer),
            "neuron": np.arange(width),
            "kind": meta.layers[str(layer)],
            "tokens": np.full(width, n),
            "fired": stats.fired,
            "density": density,
            "silent": stats.fired == 0,
            "mean": mean,
            "variance": np.maximum(stats.square_sum / n - mean**2, 0.0),
            "mean_positive": stats.positive_sum / n,
            "mean_active": np.where(only_fired & (stats.fired > 0), stats.positive_sum / stats.fired, np.nan),
            "negative_share": (stats.positive_sum - stats.sum) / mass,
            "maximum": stats.maximum,
            "tokens_since_fired": tokens_since_fired(stats.last_fired, windows, meta.corpus.context),
            "persistence": persistence,
            "near_miss_rate": near,
        }


def write_neurons(path: Path, layers: Iterable[dict[str, Any]]) -> None:
    """Write the columns of all layers as parquet. Raises `ConfigError` if pyarrow is missing."""
    pa, pq = require("pyarrow", "topklm[bundles]"), require("pyarrow.parquet", "topklm[data]")
    tables = []
    for columns in layers:
        width = len(columns["neuron"])
        tables.append(pa.table({k: pa.array([v] * width if isinstance(v, str) else v) for k, v in columns.items()}))
    pq.write_table(pa.concat_tables(tables), path)
