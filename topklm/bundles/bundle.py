"""Opening a bundle: checked, and read as far as it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from topklm.bundles.exponent import N_CODES
from topklm.bundles.layer_stats import TABLES, LayerStats
from topklm.bundles.meta import AGAIN, CorpusPart, Meta, read_meta
from topklm.bundles.neurons import tokens_since_fired
from topklm.bundles.token_table import TokenTable, expand
from topklm.bundles.write import CORPUS, MODEL, TOKENS, file_entry, layer_file
from topklm.errors import DataError, Problem
from topklm.optional import require

PARTS = "parts"


def open_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open the bundle in a directory.

    Its meta and the presence and sizes of its files are checked now; with `verify` the hash of each file when it is
    first read. Raises `DataError` for what is missing, damaged, unfinished or of another format.
    """
    path = Path(path)
    meta, sha256 = read_meta(path)
    wrong = []
    for name, entry in meta.files.items():
        file = path / name
        if not file.is_file():
            wrong.append(f"{name} is missing")
        elif not file.resolve().is_relative_to(path.resolve()):
            wrong.append(f"{name} is a link that leads out of it")
        elif file.stat().st_size != entry["size"]:
            wrong.append(f"{name} has {file.stat().st_size} bytes instead of {entry['size']}")
    wrong += [f"parts/{part.name} is missing" for part in meta.parts if not (path / PARTS / part.name).is_dir()]
    if wrong:
        raise DataError(f"the bundle {path} is damaged: {'; '.join(wrong)}; copy it again, or {AGAIN}")
    return Bundle(path=path, meta=meta, sha256=sha256, verify=verify)


def open_bundles(paths: Sequence[str | Path], key: str = "bundle") -> tuple[list[Bundle], list[Problem]]:
    """Open several: (those that can be, what is wrong with the others as problems of the setting `key`)."""
    bundles, problems = [], []
    for path in paths:
        try:
            bundles.append(open_bundle(path))
        except DataError as error:
            problems.append(Problem(key, str(error)))
    return bundles, problems


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a token stands."""

    part: CorpusPart
    """Source and split."""
    index: int
    """Index of the token among all tokens of that source and split (`TokenArray`)."""
    window: int
    """Index there of the first token of its window: what the model had seen is [window, index]."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Activation statistics of one model over one set of tokens. Make it with `open_bundle`."""

    path: Path
    meta: Meta
    sha256: str
    """Stands for the whole bundle."""
    verify: bool
    """Whether hashes are checked when files are read."""

    @cached_property
    def _corpus(self) -> dict[str, np.ndarray]:
        with self.file(CORPUS) as arrays:
            return {name: arrays.get_tensor(name) for name in ("counts", "windows")}

    @property
    def counts(self) -> np.ndarray:
        """int64 [V]: how often each token type occurred; it is the same for all layers."""
        return self._corpus["counts"]

    @property
    def windows(self) -> np.ndarray:
        """int64 [W], ascending: positions of the windows' first tokens."""
        return self._corpus["windows"]

    @cached_property
    def types(self) -> np.ndarray:
        """int64 [R], ascending: the token types that occurred."""
        return np.flatnonzero(self.counts)

    @property
    def n_tokens(self) -> int:
        return self.meta.n_tokens

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.counts)

    @property
    def embedding(self) -> np.ndarray:
        """float32 [V, D]: the model's input embedding. Raises `DataError` in a part, which does not have it."""
        if MODEL not in self.meta.files:
            raise DataError(f"{self.path} holds no embedding; take the whole bundle, or {AGAIN}")
        with self.file(MODEL) as arrays:
            return arrays.get_tensor("embedding")

    @cached_property
    def tokens(self) -> list[str] | None:
        """Each token type as readable text; None where the tokenizer was not known."""
        if TOKENS not in self.meta.files:
            return None
        if self.verify:
            self._check(TOKENS)
        return json.loads((self.path / TOKENS).read_text(encoding="utf-8"))

    @property
    def layers(self) -> list[int]:
        """The layers that are here, ascending, counted from 0."""
        return sorted(map(int, self.meta.layers))

    def layer(self, layer: int) -> LayerView:
        """The statistics of one layer. Raises `DataError` if it is not in the bundle."""
        if str(layer) not in self.meta.layers:
            raise DataError(f"{self.path} has no layer {layer}; it has {', '.join(map(str, self.layers))}")
        return LayerView(bundle=self, layer=layer)

    @cached_property
    def parts(self) -> list[Bundle]:
        """The disjoint parts that add up to it, in the order of `meta.parts`; empty if it is not divided."""
        return [open_bundle(self.path / PARTS / part.name, self.verify) for part in self.meta.parts]

    def snapshots(self) -> list[list[Bundle]]:
        """Per corpus size that was asked for, ascending, the parts that add up to it; the last is all parts."""
        last = max((part.snapshot for part in self.meta.parts), default=-1)
        pairs = list(zip(self.meta.parts, self.parts, strict=True))
        return [[bundle for part, bundle in pairs if part.snapshot <= i] for i in range(last + 1)]

    def half(self, name: str) -> list[Bundle]:
        """The parts that add up to half "a" or "b" of the tokens; empty if they were not halved."""
        return [b for part, b in zip(self.meta.parts, self.parts, strict=True) if part.half == name]

    def locate(self, position: int) -> Place:
        """Source, split, token and window of a position (of a context, say)."""
        window = int(self.windows[np.searchsorted(self.windows, position, side="right") - 1])
        first = 0
        for part in self.meta.corpus.parts:
            if position < first + part.n_tokens:
                return Place(part=part, index=int(position) - first, window=window - first)
            first += part.n_tokens
        raise DataError(f"position {position} is beyond the {first} tokens of the corpus")

    def check(self) -> None:
        """Read every file once and raise `DataError` if one does not have its hash."""
        for name in self.meta.files:
            self._check(name)

    def _check(self, name: str) -> None:
        if name not in self._verified and file_entry(self.path / name) != self.meta.files[name]:
            raise DataError(f"{self.path / name} is damaged (its SHA-256 differs); copy it again, or {AGAIN}")
        self._verified.add(name)

    @cached_property
    def _verified(self) -> set[str]:
        return set()

    @contextmanager
    def file(self, name: str) -> Iterator[Any]:
        """One of its files as an open safetensors file, its hash checked the first time."""
        if self.verify:
            self._check(name)
        with require("safetensors", "topklm[bundles]").safe_open(self.path / name, "np") as arrays:
            yield arrays


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One layer of a bundle, read as far as it is asked for."""

    bundle: Bundle
    layer: int

    @property
    def kind(self) -> str:
        """topk or dense: what `Meta.layers` says."""
        return self.bundle.meta.layers[str(self.layer)]

    @cached_property
    def stats(self) -> LayerStats:
        """All statistics but the token tables (`tables` is empty)."""
        return self._read(tables=False)

    def whole(self) -> LayerStats:
        """All statistics, with the token tables. Not kept: hold on to it if it is needed again."""
        return self._read(tables=True)

    def table(self, name: str = "sum") -> TokenTable:
        """A table per token type: `sum`, `positive` or `fired`. `.rows` is [R, N], `.dense(V)` [V, N]. Not kept.

        The table `positive` of a layer without negative activations is its `sum`. Raises `DataError` for one that was
        not collected.
        """
        with self._file() as arrays:
            name = self._stored(name, set(arrays.keys()))
            found = {key: arrays.get_tensor(key) for key in arrays.keys() if key.split(".")[0] == f"token_{name}"}  # noqa: SIM118
        return TokenTable.from_arrays(f"token_{name}", found, self.bundle.types, self.bundle.meta.model.dim)

    def table_blocks(self, name: str = "sum", rows: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same in blocks, for bounded memory: (token types [r], their rows [r, N]), r <= `rows`."""
        types, width = self.bundle.types, self.bundle.meta.model.dim
        with self._file() as arrays:
            keys = set(arrays.keys())
            name = f"token_{self._stored(name, keys)}"
            for start in range(0, len(types), rows):
                stop = min(start + rows, len(types))
                if name in keys:
                    yield types[start:stop], arrays.get_slice(name)[start:stop]
                    continue
                indptr = arrays.get_slice(f"{name}.indptr")[start : stop + 1]
                a, b = int(indptr[0]), int(indptr[-1])
                if a == b:  # nothing fired; safetensors gives no empty slice at an array's end
                    yield types[start:stop], np.zeros((stop - start, width))
                    continue
                index, value = (arrays.get_slice(f"{name}.{what}")[a:b] for what in ("index", "value"))
                yield types[start:stop], expand(indptr, index, value, width)

    def tokens_since_fired(self) -> np.ndarray:
        """int64 [N]: tokens of the bundle after the last one in which each neuron fired; all if it never did."""
        return tokens_since_fired(self.stats.last_fired, self.bundle.windows, self.bundle.meta.corpus.context)

    def _stored(self, name: str, keys: set[str]) -> str:
        there = {key.split(".")[0].removeprefix("token_") for key in keys if key.startswith("token_")}
        if name == "positive" and name not in there and np.array_equal(self.stats.positive_sum, self.stats.sum):
            return "sum"
        if name not in there:
            option = {"positive": "positive_part=true", "fired": "token_fired=true"}.get(name)
            advice = f"collect it with {option}" if option else f"there are {', '.join(TABLES)}"
            raise DataError(f"{self.bundle.path}: layer {self.layer} has no table {name!r}; {advice}")
        return name

    def _read(self, tables: bool) -> LayerStats:
        bundle = self.bundle
        with self._file() as arrays:
            wanted = [key for key in arrays.keys() if tables or not key.startswith("token_")]  # noqa: SIM118
            found = {key: arrays.get_tensor(key) for key in wanted}
        size = bundle.meta.settings.sample_contexts
        stats = LayerStats.from_arrays(found, bundle.types, bundle.meta.model.dim, size, tables)
        if stats.histogram.shape != (N_CODES, bundle.meta.model.dim):
            raise DataError(f"{bundle.path}: layer {self.layer} does not have {bundle.meta.model.dim} neurons; {AGAIN}")
        return stats

    def _file(self) -> Any:
        return self.bundle.file(layer_file(self.layer))
