"""The files of a measured bundle: `neurons.parquet`, `layers.csv` and `entropy.json`; see docs/entropy.md."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles import Bundle, open_bundles
from topklm.errors import ConfigError, DataError, Problem
from topklm.interp.entropy.config import EntropyConfig, EntropySettings
from topklm.interp.entropy.measure import Advance, Columns, convergence, measure
from topklm.optional import require

log = logging.getLogger("topklm.interp")

FORMAT_VERSION = 1
ENTROPY = "entropy.json"
SUMMARISED = (
    "token_entropy", "effective_tokens", "token_entropy_normalised", "mass_entropy", "negative_mass",
    "token_explained_corrected", "semantic_entropy", "semantic_entropy_random", "coherence", "effective_pairs",
)  # fmt: skip
"""Columns whose mean and standard deviation over the neurons that have a value stand in the layers' table."""


def directory_of(config: EntropyConfig, bundle: Bundle) -> Path:
    """Where the results of a bundle go."""
    return Path(config.out) if config.out is not None else bundle.path / "entropy" / config.preset


def measure_and_write(
    config: EntropyConfig, bundle: Bundle, embedding: np.ndarray, advance: Advance | None = None
) -> dict[str, Any]:
    """Measure one bundle and write its results, whole or not at all; returns what `entropy.json` says.

    Results that are there with the same settings of the same bundle are returned as they are.
    """
    directory = directory_of(config, bundle)
    described = {
        "format_version": FORMAT_VERSION,
        "preset": config.preset,
        "settings": dataclasses.asdict(config.settings),
        "embedding": config.embedding,
        "embedding_sha256": hashlib.sha256(np.ascontiguousarray(embedding).tobytes()).hexdigest(),
        "bundle": {"path": str(bundle.path), "sha256": bundle.sha256},
        "model": dataclasses.asdict(bundle.meta.model),
        "reading": dataclasses.asdict(bundle.meta.reading),
        "corpus": dataclasses.asdict(bundle.meta.corpus),
        "windows_sha256": bundle.meta.windows_sha256,
        "n_tokens": bundle.n_tokens,
        "n_types": int((bundle.counts >= config.settings.min_count).sum()),
        "convergence_measured": config.convergence,
    }
    there = read_entropy(directory)
    if there is not None and not config.overwrite:
        if all(there.get(key) == value for key, value in _plain(described).items() if key != "bundle") and (
            there["bundle"]["sha256"] == bundle.sha256
        ):
            log.info("%s is there already", directory)
            return there
        raise ConfigError(
            f"{directory} holds results of other settings or of another bundle; replace them with overwrite=true, or "
            "give another directory (out=DIR)"
        )
    columns = measure(bundle, config.settings, embedding, advance)
    layers = [_summary(bundle, layer, columns[layer]) for layer in bundle.layers]
    rows = convergence(bundle, config.settings) if config.convergence else []
    content = _plain({**described, "layers": layers, "convergence": rows})
    _write(directory, bundle, columns, content)
    return content


def read_entropy(directory: Path) -> dict[str, Any] | None:
    """What `entropy.json` in a directory says; None if there is none. Raises `DataError` if it is damaged."""
    file = directory / ENTROPY
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise DataError(f"{file} has format version {content['format_version']}; measure again with overwrite=true")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); measure again with overwrite=true") from error
    return content


def open_embedding(config: EntropyConfig, bundles: list[Bundle], bundle: Bundle) -> np.ndarray:
    """float [V, D] as `embedding` says. Raises `ConfigError` for a file that does not fit."""
    if config.embedding in ("own", "shared"):
        found = (bundles[0] if config.embedding == "shared" else bundle).embedding
    else:
        found = _read_array(Path(config.embedding))
    if found.ndim != 2 or len(found) != bundle.vocab_size:
        raise ConfigError(
            [Problem("embedding", f"{config.embedding} is {list(found.shape)}, the vocabulary has {bundle.vocab_size}")]
        )
    if config.settings.leave_one_out and found.shape[1] != bundle.meta.model.dim:
        raise ConfigError(
            [Problem("leave_one_out", f"the embedding has {found.shape[1]} coordinates, {bundle.path} other neurons")]
        )
    return found


def open_all(config: EntropyConfig) -> list[Bundle]:
    """The bundles, all problems at once."""
    bundles, problems = open_bundles(config.bundle)
    for bundle in bundles:
        problems += _unfit(bundle, config.settings)
    if problems:
        raise ConfigError(problems)
    return bundles


def _unfit(bundle: Bundle, settings: EntropySettings) -> list[Problem]:
    found = []
    if not (bundle.counts >= settings.min_count).any():
        found.append(
            Problem("min_count", f"no token type of {bundle.path} occurred {settings.min_count} times; collect more")
        )
    if settings.negative == "relu_first":
        for layer in bundle.layers:
            view = bundle.layer(layer)
            negative = not np.array_equal(view.stats.positive_sum, view.stats.sum)
            if negative and not bundle.meta.settings.positive_part:
                advice = "collect the bundle with positive_part=true"
                found.append(Problem("negative", f"relu_first: {bundle.path} lacks a table; {advice}"))
                break
    return found


def _read_array(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        arrays = require("safetensors.numpy", "topklm[bundles]").load_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("embedding", f"{path} cannot be read: {error}")]) from error
    if len(arrays) != 1:
        raise ConfigError([Problem("embedding", f"{path} holds {', '.join(arrays)}; it must hold one array [V, D]")])
    return next(iter(arrays.values()))


def _summary(bundle: Bundle, layer: int, columns: Columns) -> dict[str, Any]:
    stats = bundle.layer(layer).stats
    row: dict[str, Any] = {
        "layer": layer,
        "kind": bundle.layer(layer).kind,
        "neurons": stats.width,
        "silent": int((stats.fired == 0).sum()),
        "density": float(stats.fired.mean() / bundle.n_tokens),
        "coherent": int((columns["coherence_q"] <= 0.05).sum()),
        "capped": int((columns["response_tokens"] > columns["response_tokens_used"]).sum()),
    }
    for name in SUMMARISED:
        known = columns[name][~np.isnan(columns[name])]
        row[f"{name}_mean"] = float(known.mean()) if len(known) else float("nan")
        row[f"{name}_sd"] = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
    return row


def _write(directory: Path, bundle: Bundle, columns: dict[int, Columns], content: dict[str, Any]) -> None:
    part = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _write_neurons(part / "neurons.parquet", bundle, columns)
    with (part / "layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, content["layers"][0])
        writer.writeheader()
        writer.writerows(content["layers"])
    (part / ENTROPY).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(part, directory)


def _write_neurons(path: Path, bundle: Bundle, columns: dict[int, Columns]) -> None:
    pa, pq = require("pyarrow", "topklm[bundles]"), require("pyarrow.parquet", "topklm[bundles]")

    def tables() -> Iterable[Any]:
        for layer, measured in columns.items():
            stats = bundle.layer(layer).stats
            yield pa.table(
                {
                    "step": np.full(stats.width, -1 if bundle.meta.model.step is None else bundle.meta.model.step),
                    "layer": np.full(stats.width, layer),
                    "neuron": np.arange(stats.width),
                    "kind": [bundle.layer(layer).kind] * stats.width,
                    "density": stats.fired / bundle.n_tokens,
                    "silent": stats.fired == 0,
                    **measured,
                }
            )

    pq.write_table(pa.concat_tables(tables()), path)


def _plain(content: Any) -> Any:
    """As JSON has it: NaN is null, NumPy's numbers are Python's."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float | np.floating):
        return None if np.isnan(content) else float(content)
    return int(content) if isinstance(content, np.integer) else content
