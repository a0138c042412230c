"""Writing a bundle: layer by layer into NAME.tmp, which gets its name when everything is there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
MODEL = "model.safetensors"
"""The input embedding of the model, `embedding` float32 [V, D]: semantic entropy is of its similarities."""
TOKENS = "tokens.json"
"""Each token type as readable text, a list of V strings."""


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
    model: tuple[np.ndarray, list[str] | None] | None = None,
) -> Meta:
    """Write a bundle to `path`, whole or not at all; returns its meta, with the hashes of its files.

    `counts` int64 [V]: tokens of each type; `windows` int64 [W]: ascending start positions. `layers` is read once, one
    layer at a time. `neurons`: with `neurons.parquet`. `model`: for `write_model`. Raises
    `DataError` if there is something at `path`.
    """
    part = path.with_name(f"{path.name}.tmp")
    if path.exists():
        raise DataError(f"{path} is there already; remove it, or choose another place")
    if part.exists():
        shutil.rmtree(part)
    write_corpus(part, counts, windows)
    if model is not None:
        write_model(part, *model)
    for layer, stats in layers:
        write_layer(part, layer, stats)
    meta = finish(part, meta, windows if neurons else None)
    publish(part, path)
    return meta


def write_corpus(directory: Path, counts: np.ndarray, windows: np.ndarray) -> None:
    """Make the directory of a bundle and write what all layers share."""
    directory.mkdir(parents=True, exist_ok=True)
    _save(directory / CORPUS, {"counts": counts, "windows": windows})


def write_layer(directory: Path, layer: int, stats: LayerStats) -> None:
    """Write one layer's file."""
    _save(directory / layer_file(layer), stats.to_arrays())


def write_model(directory: Path, embedding: np.ndarray, tokens: list[str] | None) -> None:
    """Write what is told of the model itself: its embedding [V, D], and its V tokens as text if they are known."""
    _save(directory / MODEL, {"embedding": np.asarray(embedding, np.float32)})
    if tokens is not None:
        (directory / TOKENS).write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")


def finish(directory: Path, meta: Meta, windows: np.ndarray | None) -> Meta:
    """Once the corpus and all layers are written: `neurons.parquet`, and `meta.json` with the hashes of all files.

    `windows` [W] as in the corpus; None: without `neurons.parquet`.
    """
    names = [CORPUS, *(layer_file(int(layer)) for layer in meta.layers)]
    names += [name for name in (MODEL, TOKENS) if (directory / name).exists()]
    if windows is not None:
        sizes = meta.model.dim, meta.settings.sample_contexts
        stats = ((int(layer), read_layer(directory / layer_file(int(layer)), *sizes)) for layer in meta.layers)
        write_neurons(directory / NEURONS, (neuron_columns(meta, layer, each, windows) for layer, each in stats))
        names.append(NEURONS)
    meta = dataclasses.replace(meta, files={name: file_entry(directory / name) for name in names})
    write_meta(directory, meta)
    return meta


def read_layer(path: Path, width: int, sample_size: int) -> LayerStats:
    """A layer's file without its token tables."""
    with require("safetensors", "topklm[bundles]").safe_open(path, "np") as arrays:
        found = {key: arrays.get_tensor(key) for key in arrays.keys() if not key.startswith("token_")}  # noqa: SIM118
    return LayerStats.from_arrays(found, np.empty(0, np.int64), width, sample_size, tables=False)


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
    # Made for its owner only; who may read the directory may read it.
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb") as file:
        os.fsync(file.fileno())
