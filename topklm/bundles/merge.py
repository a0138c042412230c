"""Merging bundles of the same model over disjoint tokens: what one pass over all of the tokens would have given."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from topklm.bundles.bundle import Bundle, open_bundle
from topklm.bundles.layer_stats import LayerStats
from topklm.bundles.meta import Made, Meta
from topklm.bundles.write import MODEL, write_bundle
from topklm.errors import DataError


def merge_bundles(paths: Sequence[str | Path | Bundle], out: str | Path) -> Bundle:
    """Write the bundle of the tokens of all of them to `out`, one layer at a time; returns it, opened.

    Counts are exact, sums those of one pass but for the rounding of float64. Raises `DataError` if they differ in
    model, reading, corpus, settings or layers, or if two hold the same tokens.
    """
    bundles = [path if isinstance(path, Bundle) else open_bundle(path) for path in paths]
    meta, windows = merge_metas(bundles)
    counts = np.sum([bundle.counts for bundle in bundles], axis=0)
    layers = ((layer, merge_layer(bundles, layer)) for layer in bundles[0].layers)
    first = bundles[0]
    model = (first.embedding, first.tokens) if MODEL in first.meta.files else None
    write_bundle(Path(out), meta, counts, windows, layers, model=model)
    return open_bundle(out)


def merge_layer(bundles: Sequence[Bundle], layer: int) -> LayerStats:
    """One layer of all bundles together, read one after the other."""
    return functools.reduce(LayerStats.merge, (bundle.layer(layer).whole() for bundle in bundles))


def merge_metas(bundles: Sequence[Bundle]) -> tuple[Meta, np.ndarray]:
    """(meta of the merged bundle without files and parts, its windows [W]). Raises `DataError` if they do not fit."""
    if not bundles:
        raise DataError("there are no bundles to merge")
    first = bundles[0]
    for other in bundles[1:]:
        if different := first.meta.differences(other.meta):
            raise DataError(f"{first.path} and {other.path} do not merge: {'; '.join(different)}")
    windows = np.sort(np.concatenate([bundle.windows for bundle in bundles]))
    if (np.diff(windows) < first.meta.corpus.context).any():
        raise DataError(f"{' and '.join(str(b.path) for b in bundles)} hold the same tokens; they do not merge")
    made: list[Made] = list(dict.fromkeys(made for bundle in bundles for made in bundle.meta.made))
    meta = dataclasses.replace(
        first.meta,
        n_tokens=sum(bundle.n_tokens for bundle in bundles),
        n_windows=len(windows),
        windows_sha256=windows_hash(windows),
        parts=[],
        made=made,
        files={},
    )
    return meta, windows


def windows_hash(windows: np.ndarray) -> str:
    """SHA-256 of the windows' positions."""
    return hashlib.sha256(np.ascontiguousarray(windows, "<i8").tobytes()).hexdigest()
