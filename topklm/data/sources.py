"""Where documents come from, and how a source is divided into work items.

A work item is a part of a source that can be read by itself: a range of a JSONL file, some row groups of a
parquet file, some small files, one shard of a hub dataset. Items and the documents in them depend on the
configuration and the files alone, so any number of processes may read them in any order. Reading is in `readers`.
"""

from __future__ import annotations

import glob as globbing
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from topklm.errors import ConfigError, DataError, Problem

Kind = Literal["hf", "parquet", "jsonl", "text", "package"]

LINGUA_TEXT_FIELDS = ("text", "content")

_FIELDS_OF_KIND: dict[str, tuple[str, ...]] = {
    "hf": ("path", "name", "hf_split", "revision", "data_files", "text_field", "id_field"),
    "parquet": ("path", "glob", "text_field", "id_field"),
    "jsonl": ("path", "glob", "text_field", "id_field"),
    "text": ("path", "glob"),
    "package": ("package", "glob"),
}
_NEEDED = {"package": "package"}
_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "text": (".txt",),
    "package": (".txt",),
}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents."""

    kind: Kind | None = None
    """hf (a Hugging Face dataset, streamed), parquet, jsonl (plain, .gz or .zst), text (each file is a document), or
    package (text files of an installed Python package)."""
    path: str | None = None
    """A file, a directory, or a pattern such as `corpus/**/*.jsonl`; for hf the dataset, such as
    `HuggingFaceFW/fineweb-edu`."""
    glob: str | None = None
    """Which files of the directory or package, such as `*.chunk.*.jsonl`; by default all of the kind's usual suffix,
    in subdirectories too."""
    package: str | None = None
    """For package: the name that Python imports."""
    name: str | None = None
    """For hf: the dataset's configuration, such as `sample-10BT`."""
    hf_split: str | None = None
    """For hf: the dataset's split; `train` if null."""
    revision: str | None = None
    """For hf: commit, tag or branch; give a commit to get the same data for ever."""
    data_files: list[str] | None = None
    """For hf: files of the dataset or, with a builder as path (`json`, `parquet`), any files."""
    text_field: str | None = None
    """Field with the text. Null tries `text`, then `content`, as Meta Lingua does."""
    id_field: str | None = None
    """Field that names a document in `skipped.jsonl`; null tries `id`."""

    def problems(self) -> Iterator[Problem]:
        if self.kind is None:
            yield Problem("kind", "is missing; one of hf, parquet, jsonl, text, package")
            return
        needed = _NEEDED.get(self.kind, "path")
        if not getattr(self, needed):
            yield Problem(needed, f"is missing; the kind {self.kind} needs it")
        for field in fields(self):
            known = ("kind", *_FIELDS_OF_KIND[self.kind])
            if field.name not in known and getattr(self, field.name) is not None:
                yield Problem(field.name, f"has no meaning for the kind {self.kind}")

    @property
    def text_fields(self) -> tuple[str, ...]:
        return (self.text_field,) if self.text_field else LINGUA_TEXT_FIELDS


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """A part of a source; plain data, so that it goes into the plan file and to other processes as it is."""

    index: int
    """Position in the source; shards are in this order."""
    parts: list[dict[str, Any]]
    """What to read, in order; the keys depend on the kind."""
    size: int
    """Relative size for progress: bytes, or 1 if that is not known."""


@dataclass(frozen=True)
class Document:
    """Text that passed all checks."""

    text: str
    id: str | None
    location: str
    """Where it is: file and line, byte or row."""


@dataclass(frozen=True)
class BadDocument:
    """A place where a document should have been."""

    id: str | None
    location: str
    reason: str
    """broken_json, not_an_object, missing_field, wrong_type, invalid_utf8, empty, blank_line or too_long."""
    detail: str


def list_items(config: SourceConfig, item_bytes: int) -> list[WorkItem]:
    """Divide a source into items of about `item_bytes` bytes; a compressed file or a hub shard stays whole.

    Raises `ConfigError` if there is nothing at the given place or a package is missing, `DataError` if a file
    cannot be read.
    """
    parts: Iterable[tuple[dict[str, Any], int]]
    if config.kind == "hf":
        from topklm.data.readers import hf_shards

        n = hf_shards(config)
        return [WorkItem(index=i, parts=[{"shard": i, "of": n}], size=1) for i in range(n)]
    if config.kind == "parquet":
        from topklm.data.readers import parquet_parts

        parts = parquet_parts(config, _files(config))
    elif config.kind == "jsonl":
        parts = _jsonl_parts(_files(config), item_bytes)
    elif config.kind in ("text", "package"):
        parts = (({"file": str(file), "size": (n := _size(file))}, n) for file in _files(config))
    else:
        raise ConfigError(list(config.problems()))
    return _pack(parts, item_bytes)


def package_directory(package: str) -> Path:
    """Where an installed package lies; it is not imported. Raises `ConfigError` if it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ConfigError(
            f"the package {package} is not installed; pip install {package.replace('_', '-').split('.')[0]}"
        )
    if not Path(places[0]).is_dir():
        raise ConfigError(f"the package {package} is not in a directory ({places[0]}); install it unzipped")
    return Path(places[0])


def _files(config: SourceConfig) -> list[Path]:
    """The files of a source, sorted by path. Raises `ConfigError` if there are none."""
    assert config.kind is not None  # `problems` has seen to it
    where = config.path or ""
    root = package_directory(config.package or "") if config.kind == "package" else Path(where).expanduser()
    if root.is_file():
        return [root]
    found: Iterable[Path] = map(Path, globbing.iglob(str(root), recursive=True))
    if root.is_dir():
        found = root.glob(config.glob or "**/*")
    suffixes = _SUFFIXES[config.kind] if root.is_dir() and not config.glob else ("",)
    files = sorted(file for file in found if file.is_file() and file.name.endswith(suffixes))
    if not files:
        looked_for = config.glob or (f"*{' or *'.join(suffixes)}" if root.is_dir() else "")
        raise ConfigError(f"no files at {config.package or where}" + (f" ({looked_for})" if looked_for else ""))
    return files


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _jsonl_parts(files: list[Path], item_bytes: int) -> Iterator[tuple[dict[str, Any], int]]:
    for file in files:
        size = _size(file)
        if file.suffix in (".gz", ".zst"):
            yield {"file": str(file), "size": size}, size
            continue
        for start in range(0, size, item_bytes):
            end = min(start + item_bytes, size)
            yield {"file": str(file), "size": size, "start": start, "end": end}, end - start


def _pack(parts: Iterable[tuple[dict[str, Any], int]], item_bytes: int) -> list[WorkItem]:
    """Neighbouring small parts together, up to `item_bytes`."""
    items: list[WorkItem] = []
    group: list[dict[str, Any]] = []
    total = 0
    for part, size in parts:
        if group and total + size > item_bytes:
            items.append(WorkItem(index=len(items), parts=group, size=max(total, 1)))
            group, total = [], 0
        group.append(part)
        total += size
    if group:
        items.append(WorkItem(index=len(items), parts=group, size=max(total, 1)))
    return items
