"""Meta Lingua's layout of documents: `root_dir/<source>/NAME.chunk.NN.jsonl` to train on, `NAME.val.jsonl` held out.

Lingua reads these files while it trains; here `apps.prepare` makes token shards of them once (kind `lingua`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CHUNKS = "*.chunk.*.jsonl"
HELD_OUT = "*.val.jsonl"


@dataclass(frozen=True, kw_only=True)
class LinguaFiles:
    """The files of one source, each list sorted by name. Hidden files are in none."""

    chunks: list[Path]
    """Training documents."""
    held_out: list[Path]
    """Validation documents. A name that fits both patterns is one of these."""
    others: list[Path]
    """JSONL files, compressed ones too, that neither Lingua nor the kind `lingua` reads."""


def lingua_files(directory: Path) -> LinguaFiles:
    """What lies in the directory of one source; its subdirectories are not looked into, as in Lingua."""
    files = sorted(file for file in directory.glob("*") if file.is_file() and not file.name.startswith("."))
    held_out = [file for file in files if file.match(HELD_OUT)]
    chunks = [file for file in files if file.match(CHUNKS) and file not in held_out]
    others = [file for file in files if ".jsonl" in file.suffixes and file not in held_out and file not in chunks]
    return LinguaFiles(chunks=chunks, held_out=held_out, others=others)


def lingua_sources(root: Path) -> list[str]:
    """Names of the directories in `root` that hold chunks."""
    return sorted(path.name for path in root.glob("*") if path.is_dir() and any(path.glob(CHUNKS)))


def prepare_command(root: Path, sources: Iterable[str], out_dir: Path, settings: dict[str, str]) -> str:
    """The shell command that prepares sources of this layout; `settings` are further keys of `apps.prepare`."""
    listed = ", ".join(
        f"{json.dumps(name)}: {{kind: lingua, path: {json.dumps(str(root / name))}}}" for name in sources
    )
    args = [f"out_dir={out_dir}", f"sources={{{listed}}}", *(f"{key}={value}" for key, value in settings.items())]
    return "python -m apps.prepare " + " ".join(map(shlex.quote, args))
