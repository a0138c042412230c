"""Bundles with their measured entropies, as `apps.collect` and `apps.entropy` left them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles import NamedBundle, bundles_in, incomparable, open_bundle
from topklm.bundles.labels import Label, newest_labels, read_labels
from topklm.bundles.named import named
from topklm.errors import ConfigError, DataError, Problem
from topklm.optional import require

FORMAT_VERSION = 1
ENTROPY, NEURONS = "entropy.json", "neurons.parquet"


@dataclass(frozen=True, kw_only=True)
class Measured(NamedBundle):
    """One bundle and its entropies by one preset. Made by `read_measured`."""

    entropy: dict[str, Any]
    """`entropy.json`; null stands for NaN."""
    columns: dict[str, np.ndarray]
    """`neurons.parquet` of the entropies by column, one row per (layer, neuron)."""

    @cached_property
    def labels(self) -> dict[tuple[int, int, str], Label]:
        """By (layer, neuron, source) the newest label of `labels.jsonl`; empty if there is none."""
        return newest_labels(read_labels(self.bundle.path, self.bundle.sha256))

    @property
    def min_count(self) -> int:
        """Types that occurred less often were left out of the entropies."""
        return int(self.entropy["settings"]["min_count"])

    @cached_property
    def by_layer(self) -> dict[int, dict[str, Any]]:
        """The rows of the table of layers, by layer."""
        return {row["layer"]: row for row in self.entropy["layers"]}

    def of(self, layer: int, column: str) -> np.ndarray:
        """One column for the neurons of one layer, [N], NaN where it is not defined."""
        return self.columns[column][self.columns["layer"] == layer]


def read_measured(paths: Sequence[str | Path], preset: str = "recommended", force: bool = False) -> list[Measured]:
    """Read bundles with their entropies; a directory of bundles stands for all in it, in the order of their names.

    The same reading of the same weights on the same tokens is taken once. Raises `ConfigError` with all problems:
    what is no bundle, has no entropies by this preset, and, unless `force`, why they do not compare.
    """
    problems: list[Problem] = []
    found: list[Measured] = []
    for i, path in enumerate(map(Path, paths)):
        for directory in bundles_in(path):
            try:
                found.append(_read(directory, preset))
            except (DataError, ConfigError) as error:
                problems.append(Problem(f"bundles[{i}]", str(error)))
    if problems:
        raise ConfigError(problems)
    found = named(_distinct(found))
    if not force and (reasons := comparable(found)):
        advice = "show them apart, or side by side all the same with force=true"
        raise ConfigError([Problem("bundles", f"{reason}; {advice}") for reason in reasons])
    return found


def comparable(measured: Sequence[Measured]) -> list[str]:
    """Why these entropies must not stand side by side, one reason a line; empty if they may."""
    reasons = incomparable([each.bundle for each in measured])
    for other in measured[1:]:
        a, b = measured[0].entropy["settings"], other.entropy["settings"]
        keys = [f"{key} ({a.get(key)} and {b.get(key)})" for key in sorted(a | b) if a.get(key) != b.get(key)]
        if measured[0].entropy["embedding"] != other.entropy["embedding"]:
            keys.append(f"embedding ({measured[0].entropy['embedding']} and {other.entropy['embedding']})")
        if keys:
            reasons.append(
                f"{measured[0].bundle.path} and {other.bundle.path} were measured with different {', '.join(keys)}"
            )
    return reasons


def _read(directory: Path, preset: str) -> Measured:
    bundle = open_bundle(directory)
    file = directory / "entropy" / preset / ENTROPY
    measure = f"python -m apps.entropy bundle={directory} preset={preset}"
    if not file.is_file():
        raise DataError(f"{directory} has no entropies by the preset {preset}; measure them: {measure}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise DataError(f"{file} has format version {content['format_version']}, not {FORMAT_VERSION}")
        measured_of = content["bundle"]["sha256"]
        columns = _columns(file.with_name(NEURONS))
        rows = len(bundle.layers) * bundle.meta.model.dim
        if len(columns["layer"]) != rows:
            raise ValueError(f"{NEURONS} has {len(columns['layer'])} rows instead of {rows}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); measure again: {measure} overwrite=true") from error
    if measured_of != bundle.sha256:
        raise DataError(f"{file} is of another bundle, before this one was replaced; {measure} overwrite=true")
    return Measured(bundle=bundle, entropy=content, columns=columns, name=bundle.meta.model.run)


def _columns(path: Path) -> dict[str, np.ndarray]:
    table = require("pyarrow.parquet", "topklm[bundles]").read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _distinct(found: Sequence[Measured]) -> list[Measured]:
    """Each reading once; of two equal ones the one that knows more corpus sizes."""
    kept: dict[Any, Measured] = {}
    for each in found:
        key = each.identity
        if key not in kept or len(kept[key].entropy["convergence"]) < len(each.entropy["convergence"]):
            kept[key] = each
    return list(kept.values())
