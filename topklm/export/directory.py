"""The directory of an export: written beside its place, and moved there when it is complete and checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, ParityError, Problem

MARK = "export.json"
"""File of every export that tells what it was made of; what holds one may be replaced by another export."""


@contextmanager
def export_directory(out: Path, source: Path, facts: dict[str, Any], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty `<out>.tmp`; when the block ends without an error, `facts` go into it and it becomes `out`.

    After an error nothing stands at `out` that was not there before; a `ParityError` leaves `<out>.tmp` to look at.
    Raises `ConfigError` if `out` is there and is no earlier export (unless `overwrite`), or holds the `source`.
    """
    check_place(out, source, overwrite=overwrite)
    out = out.absolute()
    part = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write_mark(part, facts)  # from the beginning: what is left of an interrupted export is known by it
    except OSError as error:
        raise ConfigError([Problem("out", f"{part} cannot be written: {error.strerror}")]) from error
    try:
        yield part
    except ParityError:
        raise
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    _write_mark(part, facts)
    doomed = out.with_name(f"{out.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    if out.exists():
        os.replace(out, doomed)
    os.replace(part, out)
    shutil.rmtree(doomed, ignore_errors=True)


def check_place(out: Path, source: Path, *, overwrite: bool = False) -> None:
    """Raise `ConfigError` if an export to `out` would destroy something."""
    out = out.absolute()
    for beside in (out.with_name(f"{out.name}.tmp"), out.with_name(f"{out.name}.old.tmp")):
        if beside.exists() and not (beside / MARK).is_file():
            raise ConfigError([Problem("out", f"{beside}, where it is written first, is no export; move it away")])
    if source.resolve().is_relative_to(out.resolve()):
        raise ConfigError([Problem("out", f"{out} holds the checkpoint {source} itself; give another directory")])
    if out.exists() and not out.is_dir():
        raise ConfigError([Problem("out", f"{out} is a file; give a directory")])
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file() and not overwrite:
        raise ConfigError(
            [Problem("out", f"{out} is there and is no earlier export; give another directory, or overwrite=true")]
        )


def _write_mark(part: Path, facts: dict[str, Any]) -> None:
    (part / MARK).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
