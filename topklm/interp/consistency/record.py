"""The comparison of one pair in one layer, as it is kept: an interrupted run goes on after the last one.

`pairs/RUN-RUN-LAYER.safetensors` in the directory of the result. Arrays: `neuron_a`, `neuron_b` [p] are who was matched
to whom, `cosine` [p] how well, `density_a`, `density_b` [p]; `null_*` the same of all draws of the permuted null, one
after the other (without neurons, which mean nothing there). The metadata `numbers` is JSON, `made_of` says of what.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topklm.interp.consistency.compare import Comparison
from topklm.interp.consistency.dictionary import Dictionary
from topklm.optional import require

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of one comparison."""

    numbers: dict[str, Any]
    """Sizes, and the fields of `Comparison` but for the matchings."""
    arrays: dict[str, np.ndarray]
    """The matchings."""


def record_of(
    a: Dictionary,
    b: Dictionary,
    found: Comparison,
    threshold: float,
    shared: dict[str, float] | None,
    ceilings: tuple[float, float],
) -> Record:
    """What to keep of the comparison of two dictionaries; `shared`: figures on two kinds of them, None for one kind."""
    nulls = found.permuted_matchings
    numbers = {
        "width": [a.width, b.width],
        "silent": [a.width - len(a.index), b.width - len(b.index)],
        "entries": [len(a.index), len(b.index)],
        "coordinates": a.rows.shape[1],
        "threshold": threshold,
        "ceiling": ceilings,
        "found": asdict(found.found),
        "identity": asdict(found.identity),
        "permuted": [asdict(each) for each in found.permuted],
        "random": [asdict(each) for each in found.random],
        "rank_correlation": found.rank_correlation,
        "shared": shared,
    }
    arrays = {
        "neuron_a": a.index[found.matching.a],
        "neuron_b": b.index[found.matching.b],
        "cosine": found.matching.cosine,
        "density_a": a.density[found.matching.a],
        "density_b": b.density[found.matching.b],
        "null_cosine": np.concatenate([each.cosine for each in nulls]),
        "null_density_a": np.concatenate([a.density[each.a] for each in nulls]),
        "null_density_b": np.concatenate([b.density[each.b] for each in nulls]),
    }
    return Record(numbers=numbers, arrays=arrays)


def write_record(path: Path, record: Record, made_of: dict[str, Any]) -> None:
    """Write it, whole or not at all."""
    metadata = {"made_of": _text(made_of), "numbers": json.dumps(record.numbers)}
    part = path.with_suffix(".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    require("safetensors.numpy", "topklm[bundles]").save_file(record.arrays, part, metadata)
    os.replace(part, path)


def read_record(path: Path, made_of: dict[str, Any]) -> Record | None:
    """Read it; None if there is none, it cannot be read, or it was made of something else: it is made anew then."""
    if not path.is_file():
        return None
    safetensors = require("safetensors", "topklm[bundles]")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("made_of") != _text(made_of):
                return None
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Record(numbers=json.loads(metadata["numbers"]), arrays=arrays)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None


def _text(made_of: dict[str, Any]) -> str:
    return json.dumps({"format_version": FORMAT_VERSION, **made_of}, sort_keys=True)
