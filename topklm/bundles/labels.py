"""`labels.jsonl` beside a bundle: what neurons were called, by whom and on what grounds. Nothing in it is erased."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topklm.errors import DataError

log = logging.getLogger("topklm.bundles")

LABELS = "labels.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Label:
    """What one source calls one neuron: a line of the file."""

    format_version: int = FORMAT_VERSION
    """`FORMAT_VERSION` of the program that wrote it."""
    bundle: str
    """SHA-256 of the bundle whose statistics it rests on."""
    layer: int
    """Counted from 0."""
    neuron: int
    """Index in the layer."""
    source: str
    """tokens (its top tokens), wordnet (a class of WordNet), llm (a language model's words), or a person's name."""
    label: str
    """The name itself."""
    score: float | None = None
    """How well it fits, by the source's own measure: docs/labels.md. Larger is better."""
    p: float | None = None
    """p-value of the source's test; null: none was made."""
    q: float | None = None
    """The same, corrected for all neurons and classes that were tested."""
    significant: bool | None = None
    """Whether the source's test found it better than chance; null: none was made."""
    date: str
    """When, in UTC, ISO 8601."""
    version: str
    """Version of topklm."""
    settings: dict[str, Any | None] = field(default_factory=dict)
    """Everything that decided it beside the bundle."""

    @property
    def name(self) -> str:
        """The neuron as layer:index."""
        return f"{self.layer}:{self.neuron}"

    def says_the_same(self, other: Label) -> bool:
        """Whether only the date and the program's version differ."""
        return dataclasses.replace(self, date=other.date, version=other.version) == other


def append_labels(bundle: Path, labels: Sequence[Label]) -> int:
    """Add labels to a bundle's file; returns how many were new.

    A label that says what the newest of its neuron and source says already is not added again. All lines are written
    at once under a lock; half a line that an interruption left stays as it is, on a line of its own.
    """
    path = bundle / LABELS
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        newest = newest_labels(_parse(path, _lines(path)))
        added = []
        for label in labels:
            key = (label.layer, label.neuron, label.source)
            if key not in newest or not label.says_the_same(newest[key]):
                added.append(label)
                newest[key] = label
        if added:
            text = "".join(json.dumps(_finite(label), ensure_ascii=False, allow_nan=False) + "\n" for label in added)
            broken = file.seek(0, os.SEEK_END) > 0 and not _ends_a_line(path)
            file.write(("\n" if broken else "").encode() + text.encode())
            file.flush()
            os.fsync(file.fileno())
    return len(added)


def read_labels(bundle: Path, sha256: str | None = None) -> list[Label]:
    """The labels of a bundle, oldest first; empty without a file.

    `sha256`: only those of this very bundle; others, of one that was replaced, are counted and told. Lines that
    cannot be read (an interruption leaves half a line) are passed over and told. Raises `DataError` for a file of a
    newer format.
    """
    path = bundle / LABELS
    found = _parse(path, _lines(path))
    if sha256 is None:
        return found
    own = [label for label in found if label.bundle == sha256]
    if len(own) < len(found):
        log.warning("%s: %d labels are of another bundle, before it was replaced", path, len(found) - len(own))
    return own


def newest_labels(labels: Iterable[Label]) -> dict[tuple[int, int, str], Label]:
    """By (layer, neuron, source) the label that was added last, the one to show; in the order of being added."""
    found: dict[tuple[int, int, str], Label] = {}
    for label in labels:
        key = (label.layer, label.neuron, label.source)
        found.pop(key, None)
        found[key] = label
    return found


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n") if path.is_file() else []


def _parse(path: Path, lines: Sequence[bytes]) -> list[Label]:
    found, broken = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            version = content["format_version"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise DataError(
                    f"{path} has labels of format {version}, this program reads {FORMAT_VERSION}; update it"
                )
            found.append(_label(content))
        except (ValueError, TypeError, KeyError, RecursionError):
            broken.append(number)
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", ..." if len(broken) > 5 else "")
        log.warning("%s: line %s cannot be read and is passed over (was a program interrupted?)", path, shown)
    return found


def _label(content: dict[str, Any]) -> Label:
    label = Label(**content)
    texts = (label.bundle, label.source, label.label, label.date, label.version)
    numbers = (label.score, label.p, label.q)
    if not (
        all(isinstance(each, str) for each in texts)
        and all(isinstance(each, int) for each in (label.layer, label.neuron))
        and all(each is None or isinstance(each, int | float) for each in numbers)
        and (label.significant is None or isinstance(label.significant, bool))
        and isinstance(label.settings, dict)
    ):
        raise TypeError("a value of another type")
    return label


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _finite(label: Label) -> dict[str, Any]:
    """As JSON has it: null for NaN and infinity."""
    content = dataclasses.asdict(label)
    for key in ("score", "p", "q"):
        value = content[key]
        if value is not None:
            content[key] = float(value) if abs(value) < float("inf") else None
    return content
