"""Writing a bundle: layer by layer into NAME.tmp, which gets its name when everything is there."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles.layer_stats import LayerStats
from topklm.bundles.meta import Meta, write_meta
from topklm.bundles.neurons import NEURONS, neuron_columns, write_neurons
from topklm.errors import DataError
from topklm.optional import require

CORPUS = "corpus.safetensors"


def layer_file(layer: int) -> str:
    """Name of a layer's file."""
    return f"layer_{layer:02d}.safetensors"


def write_bundle(
    path: Path,
    meta: Meta,
    counts: np.ndarray,
    windows: np.ndarray,
    layers: Iterable[tuple[int, LayerStats]],
    neurons: bool = True,
) -> Meta:
    """Write a bundle to `path`, whole or not at all; returns its meta, with the hashes of its files.

    `counts` int64 [V]: tokens of each type; `windows` int64 [W]: ascending start positions. `layers` is read once, one
    layer at a time. `neurons`: with `neurons.parquet`. Raises `DataError` if there is something at `path`.
    """
    part = path.with_name(f"{path.name}.tmp")
    if path.exists():
        raise DataError(f"{path} is there already; remove it, or choose another place")
    if part.exists():
        shutil.rmtree(part)
    write_corpus(part, counts, windows)
    columns = []
    for layer, stats in layers:
        write_layer(part, layer, stats)
        columns.append(neuron_columns(meta, layer, stats, windows))
    meta = finish(part, meta, columns if neurons else None)
    publish(part, path)
    return meta


def write_corpus(directory: Path, counts: np.ndarray, windows: np.ndarray) -> None:
    """Make the directory of a bundle and write what all layers share."""
    directory.mkdir(parents=True, exist_ok=True)
    _save(directory / CORPUS, {"counts": counts, "windows": windows})


def write_layer(directory: Path, layer: int, stats: LayerStats) -> None:
    """Write one layer's file."""
    _save(directory / layer_file(layer), stats.to_arrays())


def finish(directory: Path, meta: Meta, columns: Iterable[dict[str, Any]] | None) -> Meta:
    """Write `neurons.parquet` of the layers' `neuron_columns`, unless None, and `meta.json` with all files' hashes."""
    if columns is not None:
        write_neurons(directory / NEURONS, columns)
    names = [CORPUS, *(layer_file(int(layer)) for layer in meta.layers), *([NEURONS] if columns is not None else [])]
    meta = dataclasses.replace(meta, files={name: file_entry(directory / name) for name in names})
    write_meta(directory, meta)
    return meta


def publish(part: Path, path: Path) -> None:
    """Give a finished bundle its name."""
    sync_directory(part)
    os.replace(part, path)
    sync_directory(path.parent)


def file_entry(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sync_directory(path: Path) -> None:
    """Make new names and renames in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    library = require("safetensors.numpy", "topklm[bundles]")
    # In a fixed order, so that equal bundles are equal files.
    library.save_file({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
