"""Which dense run a TopK run is measured against: the one that differs in nothing but the TopK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from topklm.report.runs import Run

DECISIVE = ("steps", "model", "data", "distributed.model_dtype", "checkpoint.init_ckpt_path")
"""Settings, and sections with all that is in them, that twins share."""

# What leaves the batches and the result as they are, and so may differ. max_seqlen follows from data.seq_len; the
# last line is only held against the prepared sources.
INDIFFERENT = {
    "model.loss_chunk", "model.max_seqlen",
    "data.batch_size", "data.load_async", "data.prefetch_size", "data.verify",
    "data.add_bos", "data.add_eos", "data.tokenizer",
}  # fmt: skip

_PATHS = ("data.root_dir", "checkpoint.init_ckpt_path")
_SHOWN = 3


def dense_twin(run: Run, runs: Sequence[Run]) -> Run | None:
    """The dense run that differs from `run` in nothing but the TopK.

    Among the dense runs that share everything `DECISIVE` and the data, it is the only one; where there are several,
    the only one that has also the same optimiser and seed. None if there is none, or no single one, and for a dense
    run.
    """
    twins = _candidates(run, runs)
    return twins[0] if len(twins) == 1 else None


def why_no_twin(run: Run, runs: Sequence[Run]) -> str:
    """Why `dense_twin` is None for this TopK run, as the end of a sentence."""
    dense = [other for other in runs if other.is_dense]
    if not dense:
        return "no dense run is among those given"
    twins = _candidates(run, runs) or [other for other in dense if not differing(run, other)]
    if twins:
        names = ", ".join(other.name for other in twins)
        return f"{names} fit equally; give one of them, or one with the same seed and optimiser settings"
    nearest = min(dense, key=lambda other: len(differing(run, other)))
    keys = differing(run, nearest)
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{nearest.name} differs in {', '.join(keys[:_SHOWN])}{more}"


def differing(run: Run, other: Run) -> list[str]:
    """What two runs have to share to be twins and do not: dotted keys of the configuration, and the data."""
    mine, its = _essence(run), _essence(other)
    fingerprints = [run.recorded("data_fingerprint"), other.recorded("data_fingerprint")]
    both_known = None not in fingerprints
    if both_known:  # then it says more than a path: the same data may have been moved, others put in their place
        mine["data.root_dir"] = its["data.root_dir"] = None
    keys = [key for key in dict.fromkeys([*mine, *its]) if not _same(key, mine.get(key), its.get(key))]
    return keys + (["data fingerprint"] if both_known and fingerprints[0] != fingerprints[1] else [])


def same_recipe(run: Run, other: Run) -> bool:
    """Whether two runs have the same optimiser settings and seed."""
    return all(run.config.get(key) == other.config.get(key) for key in ("optim", "seed"))


def _candidates(run: Run, runs: Sequence[Run]) -> list[Run]:
    if run.is_dense:
        return []
    twins = [other for other in runs if other.is_dense and not differing(run, other)]
    return [other for other in twins if same_recipe(run, other)] if len(twins) > 1 else twins


def _essence(run: Run) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key in DECISIVE:
        value = run.setting(key)
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    sources = flat.get("data.sources") or {}
    total = sum(sources.values())
    flat["data.sources"] = {name: round(weight / total, 12) for name, weight in sources.items()}
    flat.setdefault("data.weights_of", "sequences")  # of a run from before it could be chosen
    return {key: value for key, value in flat.items() if key not in INDIFFERENT}


def _same(key: str, mine: Any, its: Any) -> bool:
    return mine == its or (key in _PATHS and None not in (mine, its) and _same_place(str(mine), str(its)))


def _same_place(mine: str, its: str) -> bool:
    """Two paths, as far as can be told from here: a relative one may have been meant from another directory."""
    if os.path.abspath(mine) == os.path.abspath(its):
        return True
    a, b = (PurePath(os.path.normpath(path)) for path in (mine, its))
    if a.is_absolute() == b.is_absolute():
        return False
    whole, end = (a, b) if a.is_absolute() else (b, a)
    return whole.parts[-len(end.parts) :] == end.parts
