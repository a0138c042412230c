"""Where documents come from and what they are: the types that planning (`work_items`) and reading (`readers`) share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from topklm.errors import ConfigError, Problem

Kind = Literal["hf", "parquet", "jsonl", "lingua", "text", "package"]

LINGUA_TEXT_FIELDS = ("text", "content")

_FIELDS_OF_KIND: dict[str, tuple[str, ...]] = {
    "hf": ("path", "name", "hf_split", "revision", "data_files", "text_field", "id_field"),
    "parquet": ("path", "glob", "text_field", "id_field"),
    "jsonl": ("path", "glob", "text_field", "id_field"),
    "lingua": ("path", "text_field", "id_field"),
    "text": ("path", "glob"),
    "package": ("package", "glob"),
}
_NEEDED = {"package": "package"}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents."""

    kind: Kind | None = None
    """hf (a Hugging Face dataset, streamed), parquet, jsonl (plain, .gz or .zst), lingua (a directory of Meta Lingua's
    `*.chunk.*.jsonl`, to train on, and `*.val.jsonl`, held out), text (each file is a document), or package (text
    files of an installed Python package)."""
    path: str | None = None
    """A file, a directory, or a pattern such as `corpus/**/*.jsonl`; for hf the dataset, such as
    `HuggingFaceFW/fineweb-edu`; for lingua the source's directory, Lingua's `data.root_dir/<source>`."""
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
            yield Problem("kind", "is missing; one of hf, parquet, jsonl, lingua, text, package")
            return
        needed = _NEEDED.get(self.kind, "path")
        if not getattr(self, needed):
            yield Problem(needed, f"is missing; the kind {self.kind} needs it")
        for field in fields(self):
            known = ("kind", *_FIELDS_OF_KIND[self.kind])
            if field.name not in known and getattr(self, field.name) is not None:
                yield Problem(field.name, f"has no meaning for the kind {self.kind}; leave it out")

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
    split: Literal["train", "val"] | None = None
    """Its split where the source itself says so (Meta Lingua's files); None: the rule of `split` decides."""


@dataclass(frozen=True)
class BadDocument:
    """A place where a document should have been."""

    id: str | None
    location: str
    reason: str
    """broken_json, not_an_object, missing_field, wrong_type, invalid_utf8, empty, blank_line or too_long."""
    detail: str


def file_part(file: Path) -> dict[str, Any]:
    """What of a work item names a file: path, size and time of modification. Raises `OSError`."""
    stat = file.stat()
    return {"file": str(file), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


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
