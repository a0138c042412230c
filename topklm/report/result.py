"""What an analysis leaves behind: figures, tables and statements in a directory that people and reports read.

A directory holds `result.json` (what it is, its statements, provenance, tables and the `data` that it computed), each
figure as PNG and SVG, each table as CSV, and `<kind>.md` with all tables. `apps.report results=[...]` shows it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topklm.errors import ConfigError, Problem
from topklm.optional import require
from topklm.report.figure import save
from topklm.report.page import Picture, Section
from topklm.report.table import Column, Table, csv_text, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_VERSION = 1
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure that is to be saved."""

    title: str
    text: str
    """What it shows, for those who do not see it and below it."""
    figure: Figure
    """Made with `topklm.report.figure.framed`, so that its provenance stands on it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One analysis, ready to be written."""

    kind: str
    """What was done, one word, such as steering: `<kind>.md`."""
    title: str
    statements: Sequence[str]
    """What it shows, a sentence each, with what speaks against it."""
    provenance: Sequence[str]
    """Where the numbers come from: a line per model or bundle, with hashes, tokens and settings."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """By the name of their file."""
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    """By the name of their files."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Every number, for those who compute with it; NaN becomes null."""


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """A result as a page shows it."""

    path: Path
    kind: str
    statements: list[str]
    section: Section
    data: dict[str, Any]


def write_result(result: Result, out: Path) -> list[Path]:
    """Write a result to the directory `out`; returns the files, `result.json` first.

    Everything is made in a directory beside and then moved, `result.json` last and the old one removed before: an
    interrupted writing leaves no result that is half old. Figures and tables of an earlier result of this kind that
    this one does not have are removed, other files in `out` stay. Raises `ConfigError` if matplotlib is missing or
    `out` cannot be written.
    """
    if result.drawings:
        require("matplotlib", "topklm[plots]")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as making:
            made = _make(result, Path(making))
            earlier = _files_of_earlier(out, result.kind)
            (out / RESULT).unlink(missing_ok=True)
            for path in reversed(made):
                os.replace(path, out / path.name)
            for name in earlier - {path.name for path in made}:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"the result cannot be written to {out}: {error}") from error
    return [out / path.name for path in made]


def read_results(paths: Sequence[str | Path]) -> list[ReadResult]:
    """Read the results in some directories. Raises `ConfigError` with all that are none or are damaged."""
    found: list[ReadResult] = []
    problems: list[Problem] = []
    for i, path in enumerate(map(Path, paths)):
        try:
            found.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"{path} holds no readable {RESULT} ({error}); give the directory that an analysis wrote to"
            problems.append(Problem(f"results[{i}]", told))
    if problems:
        raise ConfigError(problems)
    return found


def _files_of_earlier(out: Path, kind: str) -> set[str]:
    """Names of the figures and tables of the result of this kind that is there; none if it cannot be read."""
    try:
        content = json.loads((out / RESULT).read_text(encoding="utf-8"))
        _check_types(content)
        figures = {f"{each['name']}{suffix}" for each in content["figures"] for suffix in (".png", ".svg")}
        names = figures | {f"{name}.csv" for name in content["tables"]}
        return {name for name in names if Path(name).name == name} if content["kind"] == kind else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _make(result: Result, directory: Path) -> list[Path]:
    provenance = "\n".join(result.provenance)
    paths = [directory / RESULT]
    figures = []
    for name, drawing in result.drawings.items():
        paths += save(drawing.figure, directory / name, provenance)
        figures.append({"name": name, "title": drawing.title, "text": drawing.text})
    for name, table in result.tables.items():
        paths.append(directory / f"{name}.csv")
        paths[-1].write_text(csv_text([table]), encoding="utf-8")
    paths.append(directory / f"{result.kind}.md")
    text = markdown(list(result.tables.values()), result.title, [*result.statements, *result.provenance])
    paths[-1].write_text(text, encoding="utf-8")
    content = {
        "format_version": FORMAT_VERSION, "kind": result.kind, "title": result.title,
        "statements": list(result.statements), "provenance": list(result.provenance), "figures": figures,
        "tables": {
            name: {"title": table.title, "note": table.note, "rows": table.rows,
                   "columns": [[c.key, c.title, c.form] for c in table.columns]}
            for name, table in result.tables.items()
        },
        "data": dict(result.data),
    }  # fmt: skip
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    paths[0].write_text(text + "\n", encoding="utf-8")
    return paths


def _read(path: Path) -> ReadResult:
    content = json.loads((path / RESULT).read_text(encoding="utf-8"))
    if content["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format version is {content['format_version']}, not {FORMAT_VERSION}")
    _check_types(content)
    provenance = "\n".join(content["provenance"])
    pictures = []
    for each in content["figures"]:
        svg = path / f"{Path(each['name']).name}.svg"  # a name, never a way out of the directory
        if not svg.is_file():
            raise ValueError(f"{svg.name} is missing")
        if "<svg" not in svg.read_text(encoding="utf-8"):
            raise ValueError(f"{svg.name} is no SVG")
        pictures.append(Picture(each["title"], svg, each["text"], provenance))
    tables = [
        Table(table["title"], table["note"], [Column(*column) for column in table["columns"]], table["rows"])
        for table in content["tables"].values()
    ]
    section = Section(content["title"], pictures=pictures, tables=tables, statements=content["statements"])
    return ReadResult(
        path=path, kind=content["kind"], statements=content["statements"], section=section, data=content["data"]
    )


def _check_types(content: dict[str, Any]) -> None:
    """Raises `TypeError` for what a page could not show."""
    tables = content["tables"].values()
    texts = [
        content["kind"],
        content["title"],
        *(each[key] for each in content["figures"] for key in ("title", "text")),
    ]
    texts += [each[key] for each in tables for key in ("title", "note")]
    lists = [content["statements"], content["provenance"], *(each["rows"] for each in tables)]
    if not isinstance(content["data"], dict) or not all(isinstance(each, list) for each in lists):
        raise TypeError("a section is of another type")
    texts += [*content["statements"], *content["provenance"]]
    rows = [row for each in tables for row in each["rows"]]
    if not all(isinstance(each, str) for each in texts) or not all(isinstance(row, dict) for row in rows):
        raise TypeError("a text or a row is of another type")


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have, and plain numbers for NumPy's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
