"""The reader of token shards: one split of a prepared source as one memory-mapped array."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from topklm.data.shards import DTYPES, OFFSETS_DTYPE, Manifest, ShardInfo, Split, file_sha256
from topklm.errors import DataError

log = logging.getLogger("topklm.data")
_LOOK_SECONDS = 0.001
"""Between looks, which cost microseconds: once for all rows of a step."""


class TokenArray:
    """All tokens of one split of a prepared source, as one array: the memory-mapped concatenation of its shards.

    `len()` is the number of tokens. Opening checks that every file exists and has the dtype and size that the
    manifest says, and raises one `DataError` with all that do not. Pickling keeps the paths, not the tokens.

    A read looks first whether the files are still those, once in a millisecond: a mapped file that has become shorter
    would end the process (SIGBUS), and one with other tokens would be another run. It raises `DataError` then.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: Split):
        self.directory, self.manifest, self.split = Path(directory), manifest, split
        self.shards = [shard for shard in manifest.shards if shard.split == split]
        problems: list[str] = []
        tokens: list[np.ndarray] = []
        offsets: list[np.ndarray] = []
        for shard in self.shards:
            tokens.append(_map(self._path(shard, "tokens"), DTYPES[manifest.dtype], shard.n_tokens, problems))
            offsets.append(_map(self._path(shard, "offsets"), OFFSETS_DTYPE, shard.n_documents + 1, problems))
            ends = offsets[-1][[0, -1]].tolist() if offsets[-1].size else [0, shard.n_tokens]
            if ends != [0, shard.n_tokens]:
                problems.append(
                    f"{self._path(shard, 'offsets')} runs from {ends[0]} to {ends[1]}, not from 0 to {shard.n_tokens}"
                )
        _raise_damaged(problems)
        self._tokens, self._offsets = tokens, offsets
        self._stamps = [self._stamps_of(shard) for shard in self.shards]
        self._looked = [0.0] * len(self.shards)
        self._starts = np.cumsum([0, *(shard.n_tokens for shard in self.shards)])  # [n_shards + 1]
        self._first_document = np.cumsum([0, *(shard.n_documents for shard in self.shards)])

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenArray, (self.directory, self.manifest, self.split)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_documents(self) -> int:
        return int(self._first_document[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop), a new array [stop - start] of the dtype on disk."""
        out = np.empty(stop - start, DTYPES[self.manifest.dtype])
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Copy the tokens from `start` on into `out` [n], of any integer type that holds them."""
        at = 0
        for i, a, b in self._parts(start, start + len(out)):
            out[at : at + b - a] = self._tokens[i][a:b]
            at += b - a

    def document_offsets(self) -> np.ndarray:
        """Document i is the tokens [offsets[i], offsets[i + 1]), counted over all shards; int64 [n_documents + 1]."""
        shifted = [offsets[1:] + start for offsets, start in zip(self._offsets, self._starts, strict=False)]
        return np.concatenate([np.zeros(1, np.int64), *shifted])

    def document_ids(self, start: int, stop: int) -> np.ndarray:
        """The document of each position in [start, stop), int64 [stop - start], counted over all shards."""
        ids = []
        for i, a, b in self._parts(start, stop):
            first, last = self._documents(i, a, b)
            borders = np.clip(self._offsets[i][first : last + 1], a, b)
            ids.append(np.repeat(np.arange(first, last) + self._first_document[i], np.diff(borders)))
        return np.concatenate(ids) if ids else np.empty(0, np.int64)

    def documents_at(self, start: int, stop: int) -> list[tuple[str, int]]:
        """The documents with a token in [start, stop): (shard name, index of the document in that shard)."""
        found = []
        for i, a, b in self._parts(start, stop):
            first, last = self._documents(i, a, b)
            has_tokens = np.diff(self._offsets[i][first : last + 1]) > 0
            found += [(self.shards[i].name, int(d)) for d in np.arange(first, last)[has_tokens]]
        return found

    def verify(self) -> None:
        """Read everything: hashes of the tokens, order of the offsets. Raises one `DataError` with all faults."""
        _raise_damaged([fault for i in range(len(self.shards)) for fault in self._faults(i)])

    def _faults(self, i: int) -> list[str]:
        """What is wrong with the contents of a shard."""
        shard, faults = self.shards[i], []
        if file_sha256(self._path(shard, "tokens")) != shard.sha256:
            faults.append(f"{self._path(shard, 'tokens')} does not have the hash in the manifest")
        if (np.diff(self._offsets[i]) < 0).any():
            faults.append(f"{self._path(shard, 'offsets')} does not ascend")
        return faults

    def _stamps_of(self, shard: ShardInfo) -> dict[str, tuple[int, int] | None]:
        return {path: _stamp(path) for path in (str(self._path(shard, what)) for what in ("tokens", "offsets"))}

    def _look_again(self, i: int) -> None:
        """Whether a shard's files have the size and time that they had; another time is allowed for the same contents.

        Raises `DataError` if they are others.
        """
        before, now = self._stamps[i], self._stamps_of(self.shards[i])
        self._looked[i] = time.monotonic()
        if now == before:
            return
        problems = [f"{path} is gone" for path, stamp in now.items() if stamp is None]
        for path, stamp in now.items():
            was = before[path]
            if stamp and was and stamp[0] != was[0]:
                problems.append(f"{path} has {stamp[0]} bytes and had {was[0]}")
        problems = problems or self._faults(i)
        if problems:
            raise DataError(
                "token shards were changed while they were being read; restore them (data.verify=true checks them), "
                "then start the same command:\n" + "\n".join(f"  - {problem}" for problem in problems)
            )
        log.warning("%s was written again while it was being read, with the same contents", next(iter(now)))
        self._stamps[i] = now

    def _path(self, shard: ShardInfo, what: str) -> Path:
        return self.directory / self.split / f"{shard.name}.{what}.npy"

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """[start, stop) as (shard, from, to) within shards."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens [{start}, {stop}) of {len(self)}")
        parts = []
        i = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[i + 1]))
            if end > start:
                if time.monotonic() - self._looked[i] >= _LOOK_SECONDS:
                    self._look_again(i)
                parts.append((i, start - int(self._starts[i]), end - int(self._starts[i])))
            start, i = end, i + 1
        return parts

    def _documents(self, shard: int, start: int, stop: int) -> tuple[int, int]:
        """Range of documents that cover the tokens [start, stop) of one shard."""
        offsets = self._offsets[shard]
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        return first, int(np.searchsorted(offsets, stop, side="left"))


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time of a file; None if it is not there. No inode: some network file systems change them."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _map(path: Path, dtype: np.dtype, length: int, problems: list[str]) -> np.ndarray:
    """Memory-map a one-dimensional NumPy file; an empty array, and a line in `problems`, if it is not as expected."""
    empty = np.empty(0, dtype)
    if not path.is_file():
        problems.append(f"{path} is missing")
        return empty
    if not path.resolve().is_relative_to(path.parents[1].resolve()):
        problems.append(f"{path} is a link that leads out of the source's directory")
        return empty
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        problems.append(f"{path} cannot be read ({error})")
        return empty
    if mapped.dtype != dtype or mapped.shape != (length,):
        problems.append(f"{path} holds {mapped.dtype} {mapped.shape}, the manifest says {dtype} ({length},)")
        return empty
    surplus = path.stat().st_size - mapped.offset - mapped.nbytes
    if surplus:
        problems.append(f"{path} is {surplus} bytes too long")
        return empty
    return mapped


def _raise_damaged(problems: list[str]) -> None:
    if problems:
        raise DataError(
            "token shards are damaged or incomplete; copy them again or run apps.prepare again:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
