"""How a source is divided into work items.

A work item is a part of a source that can be read by itself: a range of a JSONL file, some row groups of a
parquet file, some small files, one shard of a hub dataset. Items and the documents in them depend on the
configuration and the files alone, so any number of processes may read them in any order.
"""

from __future__ import annotations

import codecs
import glob as globbing
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from topklm.data.lingua_layout import CHUNKS, HELD_OUT, LinguaFiles, lingua_files, lingua_sources
from topklm.data.readers import hf_shards, parquet_parts
from topklm.data.sources import SourceConfig, WorkItem, file_part, package_directory
from topklm.errors import ConfigError, DataError, Problem

log = logging.getLogger("topklm.data")

_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "text": (".txt",),
    "package": (".txt",),
}
_COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
"""Endings of compressed JSONL, and how such a file begins."""


def list_items(config: SourceConfig, item_bytes: int) -> list[WorkItem]:
    """Divide a source into items of about `item_bytes` bytes; a compressed file or a hub shard stays whole.

    Raises `ConfigError` if there is nothing at the given place or a package is missing, `DataError` if a file
    cannot be read.
    """
    parts: Iterable[tuple[dict[str, Any], int]]
    if config.kind == "hf":
        n = hf_shards(config)
        return [WorkItem(index=i, parts=[{"shard": i, "of": n}], size=1) for i in range(n)]
    if config.kind == "parquet":
        parts = parquet_parts(config, _files(config))
    elif config.kind == "jsonl":
        parts = _jsonl_parts(_files(config), item_bytes)
    elif config.kind == "lingua":
        parts = _lingua_parts(_lingua(config), item_bytes)
    elif config.kind in ("text", "package"):
        parts = ((part, part["size"]) for part in map(_part, _files(config)))
    else:
        raise ConfigError(list(config.problems()))
    return _pack(parts, item_bytes)


def list_inputs(config: SourceConfig) -> dict[str, int]:
    """Name and size in bytes of each file of a source; nothing for a hub dataset. Names begin at the directory or
    package. Raises as `list_items`."""
    if config.kind == "hf":
        return {}
    root = _root(config)
    named = {file.relative_to(root).as_posix() if root.is_dir() else str(file): file for file in _files(config)}
    return {name: _part(file)["size"] for name, file in named.items()}


def split_by_files(items: Iterable[WorkItem]) -> bool:
    """Whether the files of a source say which of its documents are held out."""
    return any("split" in part for item in items for part in item.parts)


def _root(config: SourceConfig) -> Path:
    if config.kind == "package":
        return package_directory(config.package or "")
    return Path(config.path or "").expanduser()


def _files(config: SourceConfig) -> list[Path]:
    """The files of a source, sorted by path. Raises `ConfigError` if there are none."""
    assert config.kind is not None  # `problems` has seen to it
    where, root = config.path or "", _root(config)
    if config.kind == "lingua":
        layout = _lingua(config)
        return layout.chunks + layout.held_out
    if config.glob and (root.is_file() or (globbing.has_magic(where) and not root.is_dir())):
        what = "a file" if root.is_file() else "a pattern"
        raise ConfigError([Problem("glob", f"chooses files of a directory, but path {where} is {what}; remove one")])
    if root.is_file():
        return [root]
    found: Iterable[Path] = map(Path, globbing.iglob(str(root), recursive=True))  # leaves hidden files out by itself
    if root.is_dir():
        pattern = config.glob or "**/*"
        found = (file for file in root.glob(pattern) if not _is_hidden(file.relative_to(root), pattern))
    suffixes = _SUFFIXES[config.kind] if root.is_dir() and not config.glob else ("",)
    files = sorted(file for file in found if file.is_file() and file.name.endswith(suffixes))
    if not files:
        looked_for = config.glob or (f"*{' or *'.join(suffixes)}" if root.is_dir() else "")
        told = f"no files at {config.package or where}{f' ({looked_for})' * bool(looked_for)}; correct it"
        raise ConfigError([Problem("package" if config.kind == "package" else "path", told)])
    return files


def _is_hidden(file: Path, pattern: str) -> bool:
    """A name of `file` (relative to where the pattern applies) begins with a dot, and none in the pattern does."""

    def dotted(parts: Iterable[str]) -> bool:
        return any(part.startswith(".") and part not in (".", "..") for part in parts)

    *folders, name = file.parts
    *folder_patterns, name_pattern = PurePath(pattern).parts
    return (dotted([name]) and not dotted([name_pattern])) or (dotted(folders) and not dotted(folder_patterns))


def _part(file: Path) -> dict[str, Any]:
    try:
        return file_part(file)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _jsonl_parts(files: list[Path], item_bytes: int) -> Iterator[tuple[dict[str, Any], int]]:
    for file in files:
        part = _part(file)
        size = part["size"]
        if not size:
            log.warning("%s is empty", file)
        _check_beginning(file)
        if file.suffix in _COMPRESSED:
            yield part, size
            continue
        for start in range(0, size, item_bytes):
            end = min(start + item_bytes, size)
            yield {**part, "start": start, "end": end}, end - start


def _check_beginning(file: Path) -> None:
    """Raise `DataError` for a file whose first bytes contradict its name, or that is text in another encoding."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for suffix, magic in _COMPRESSED.items():
        if head.startswith(magic) and file.suffix != suffix:
            raise DataError(f"{file} is compressed, but not named so; rename it to {file.name}{suffix}")
        if head and file.suffix == suffix and not head.startswith(magic):
            raise DataError(f"{file} is not compressed as its name says; rename it to {file.stem}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file} is text in UTF-16; write it in UTF-8, such as with: iconv -f UTF-16 -t UTF-8")


def _lingua(config: SourceConfig) -> LinguaFiles:
    """The files of a source in Meta Lingua's layout. Raises `ConfigError` if there are no chunks."""
    root = _root(config)
    layout = lingua_files(root)
    if not layout.chunks:
        sources = lingua_sources(root)
        if sources:
            shown = ", ".join(sources[:5]) + (f" and {len(sources) - 5} more" if len(sources) > 5 else "")
            raise ConfigError([Problem("path", f"{root} holds sources ({shown}), not chunks; make each a source")])
        held_out = f" (only {len(layout.held_out)} held-out files)" if layout.held_out else ""
        raise ConfigError([Problem("path", f"no files {CHUNKS} in the directory {root}{held_out}")])
    return layout


def _lingua_parts(layout: LinguaFiles, item_bytes: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Chunks, then held-out files; each part has its split, except where there is no held-out file."""
    place = layout.chunks[0].parent
    if layout.others:
        names = ", ".join(file.name for file in layout.others[:5]) + (" ..." if len(layout.others) > 5 else "")
        log.warning("%s: not read, because the name is neither %s nor %s: %s", place, CHUNKS, HELD_OUT, names)
    if not layout.held_out:
        log.warning("%s has no %s; documents of its chunks are held out by val_fraction", place, HELD_OUT)
        yield from _jsonl_parts(layout.chunks, item_bytes)
        return
    log.info(
        "%s: trained on are all %d chunks (Lingua drops those beyond the world size); held out: %s",
        place, len(layout.chunks), ", ".join(file.name for file in layout.held_out),
    )  # fmt: skip
    for split, files in (("train", layout.chunks), ("val", layout.held_out)):
        for part, size in _jsonl_parts(files, item_bytes):
            yield {**part, "split": split}, size


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
