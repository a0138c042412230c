"""All pairs of all series in all layers, each kept as soon as it is done."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topklm.interp.consistency.compare import Floor, compare, random_floor, shared, shared_by_chance
from topklm.interp.consistency.dictionary import Dictionary
from topklm.interp.consistency.inputs import Inputs
from topklm.interp.consistency.record import Record, read_record, record_of, write_record
from topklm.interp.consistency.series import Series, Source

CACHE_BYTES = 2**31
"""Memory for the dictionaries that are kept for the next pair."""
PAIRS = "pairs"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One pair of runs in one layer."""

    series: Series
    pair: tuple[Source, Source]
    layer: int | None
    record: Record

    def as_data(self) -> dict[str, Any]:
        """Every number of it, without the matching, which is in `pairs/`."""
        names = [source.name for source in self.pair]
        return {"label": self.series.label, "runs": names, "layer": self.layer, **self.record.numbers}


def measure(inputs: Inputs, out: Path, done: Callable[[bool], None] = lambda _: None) -> list[Measured]:
    """Compare everything, series by series and layer by layer; `out` keeps what is done.

    `done` is called after each comparison, with whether it was there already.
    """
    config = inputs.config
    floor = random_floor(config.threshold, config.null_draws, config.seed, inputs.full)
    dictionaries = _Dictionaries(inputs)
    found = []
    for series in inputs.series:
        for layer in inputs.layers(series):
            for i, j in series.pairs:
                a, b = series.sources[i], series.sources[j]
                made_of = _made_of(inputs, a, b, layer)
                where = "" if layer is None else f"-layer_{layer:02d}"
                path = out / PAIRS / f"{a.key[:8]}-{b.key[:8]}{where}.safetensors"
                record = read_record(path, made_of)
                there = record is not None
                if record is None:
                    record = _compare(inputs, dictionaries, a, b, layer, floor)
                    write_record(path, record, made_of)
                found.append(Measured(series=series, pair=(a, b), layer=layer, record=record))
                done(there)
    return found


def _compare(
    inputs: Inputs, dictionaries: _Dictionaries, a: Source, b: Source, layer: int | None, floor: Floor
) -> Record:
    config, full = inputs.config, inputs.full
    first = dictionaries.of(a, layer), dictionaries.of(b, layer)
    comparison = compare(
        *first, inputs.bins, threshold=config.threshold, draws=config.null_draws, seed=config.seed, full=full,
        floor=floor,
    )  # fmt: skip
    both = None
    if inputs.second:
        second = dictionaries.of(a, layer, True), dictionaries.of(b, layer, True)
        found = shared(first, second, config.threshold, full)
        chance = shared_by_chance(
            first, second, inputs.bins, threshold=config.threshold, draws=config.null_draws, seed=config.seed, full=full
        )
        both = {"shared": found[0], "agree": found[1], "shared_permuted": chance[0], "agree_permuted": chance[1]}
    return record_of(
        *first, comparison, config.threshold, both, (dictionaries.ceiling(a, layer), dictionaries.ceiling(b, layer))
    )


def _made_of(inputs: Inputs, a: Source, b: Source, layer: int | None) -> dict[str, Any]:
    config = inputs.config
    return {
        "a": a.key, "b": b.key, "layer": layer, "dictionary": config.dictionary, "second": config.second,
        "array": config.array, "transpose": config.transpose, "centre": config.centre,
        "coordinates": hashlib.sha256(inputs.types.tobytes() + inputs.bins.tobytes()).hexdigest(),
        "threshold": config.threshold, "draws": config.null_draws, "seed": config.seed, "hungarian": inputs.full,
    }  # fmt: skip


class _Dictionaries:
    """Dictionaries, each read once as long as there is memory for it."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._kept: OrderedDict[tuple[str, int | None, bool], Dictionary] = OrderedDict()
        self._ceilings: dict[tuple[str, int | None], float] = {}

    def of(self, source: Source, layer: int | None, second: bool = False) -> Dictionary:
        kind = self._inputs.config.second if second else self._inputs.config.dictionary
        key = (source.key, layer if kind == "profiles" else None, second)
        if key not in self._kept:
            self._kept[key] = self._inputs.dictionary(source, layer, second)
        self._kept.move_to_end(key)
        while len(self._kept) > 2 and sum(each.rows.nbytes for each in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]

    def ceiling(self, source: Source, layer: int | None) -> float:
        key = (source.key, layer)
        if key not in self._ceilings:
            self._ceilings[key] = self._inputs.ceiling(source, layer)
        return self._ceilings[key]
