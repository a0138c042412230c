"""Bundles with their measured entropies, as `apps.collect` and `apps.entropy` left them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles import Bundle, incomparable, open_bundle
from topklm.errors import ConfigError, DataError, Problem
from topklm.optional import require

FORMAT_VERSION = 1
ENTROPY, NEURONS, META = "entropy.json", "neurons.parquet", "meta.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One bundle and its entropies by one preset. Made by `read_measured`."""

    bundle: Bundle
    """The statistics."""
    entropy: dict[str, Any]
    """`entropy.json`; null stands for NaN."""
    columns: dict[str, np.ndarray]
    """`neurons.parquet` of the entropies by column, one row per (layer, neuron)."""
    name: str
    """The run's name, or its directory where two runs have the same."""

    @property
    def run(self) -> str:
        """The run's directory, or what stands for it: bundles of one run share it."""
        path = Path(self.bundle.meta.model.path)
        return str(path.parent.parent if path.parent.name == "checkpoints" else path.parent)

    @property
    def step(self) -> int | None:
        """Optimizer steps of the weights; None if unknown, and for initial weights."""
        return None if self.is_initial else self.bundle.meta.model.step

    @property
    def is_initial(self) -> bool:
        """Whether these are initial weights: a control."""
        return self.bundle.meta.model.init == "random"

    @property
    def is_topk(self) -> bool:
        """Whether the model is a TopK model (also while it is annealing)."""
        return self.bundle.meta.model.topk is not None

    @property
    def cut(self) -> dict[str, Any] | None:
        """k, relu and n_dense_tail that a dense model was read through: a control; None: as it is."""
        return self.bundle.meta.reading.read_topk

    @property
    def is_control(self) -> bool:
        """Whether it is there to be compared with, not for itself."""
        return self.is_initial or self.cut is not None

    @property
    def alpha(self) -> float | None:
        """Annealing coefficient that the model ran with: 1 dense ... 0 TopK; None for a dense model."""
        return self.bundle.meta.model.alpha

    @property
    def anneal_steps(self) -> int:
        """Steps at which alpha reaches 0; 0 without annealing."""
        return int((self.bundle.meta.model.topk or {}).get("anneal_steps") or 0)

    @property
    def at_own_alpha(self) -> bool:
        """Whether alpha is what the schedule has at this step. True for dense models and where it cannot be told."""
        if self.alpha is None or self.step is None:
            return True
        own = max(0.0, 1 - self.step / self.anneal_steps) if self.anneal_steps else 0.0
        return abs(self.alpha - own) < 1e-6

    @property
    def tail(self) -> int:
        """Layers from this one on are the dense tail of a TopK model; the number of layers for a dense model."""
        n = self.bundle.meta.model.n_layers
        return n - int((self.bundle.meta.model.topk or {}).get("n_dense_tail") or 0) if self.is_topk else n

    @property
    def label(self) -> str:
        """What tells it from the others in a legend, but for the step."""
        parts = [self.name]
        if self.cut is not None:
            parts.append(f"read through {'ReLU and ' if self.cut.get('relu', True) else ''}top-{self.cut['k']}")
        if self.is_initial:
            parts.append("at random initialisation")
        if self.bundle.meta.reading.site != "post":
            parts.append("pre-activation")
        if not self.at_own_alpha:
            parts.append(f"at alpha {self.alpha:g}")
        return ", ".join(parts)

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

    def provenance(self) -> str:
        """Run, step, alpha, bundle, tokens and tokenizer in one line."""
        meta = self.bundle.meta
        step = "initial weights" if self.is_initial else f"step {'unknown' if self.step is None else f'{self.step:,}'}"
        alpha = "dense" if self.alpha is None else f"alpha {self.alpha:g}"
        sources = ", ".join(f"{part.source}/{part.split}" for part in meta.corpus.parts)
        return (
            f"{self.label}: {self.run}, {step}, {alpha}, bundle {self.bundle.sha256[:12]}, {meta.n_tokens:,} tokens of "
            f"{sources}, tokenizer {meta.corpus.tokenizer_sha256[:12]}"
        )


def read_measured(paths: Sequence[str | Path], preset: str = "recommended", force: bool = False) -> list[Measured]:
    """Read bundles with their entropies; a directory of bundles stands for all in it, in the order of their names.

    The same reading of the same weights on the same tokens is taken once. Raises `ConfigError` with all problems:
    what is no bundle, has no entropies by this preset, and, unless `force`, why they do not compare.
    """
    problems: list[Problem] = []
    found: list[Measured] = []
    for i, path in enumerate(map(Path, paths)):
        for directory in _bundles_in(path):
            try:
                found.append(_read(directory, preset))
            except (DataError, ConfigError) as error:
                problems.append(Problem(f"bundles[{i}]", str(error)))
    if problems:
        raise ConfigError(problems)
    found = _named(_distinct(found))
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


def _bundles_in(path: Path) -> list[Path]:
    """The path itself if it is a bundle, else the bundles in it, else itself, to be told what it lacks."""
    if (path / META).is_file() or not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix != ".tmp" and (p / META).is_file()) or [path]


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
        meta = each.bundle.meta
        key = (each.run, meta.model.path, meta.model.init, meta.model.alpha, str(meta.reading), meta.windows_sha256)
        if key not in kept or len(kept[key].entropy["convergence"]) < len(each.entropy["convergence"]):
            kept[key] = each
    return list(kept.values())


def _named(found: list[Measured]) -> list[Measured]:
    runs: dict[str, set[str]] = {}
    for each in found:
        runs.setdefault(each.name, set()).add(each.run)
    return [replace(each, name=each.run) if len(runs[each.name]) > 1 else each for each in found]
