"""A table of results: rows of values and how each column is written, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """One column: its name in the CSV, its title elsewhere, and the format of a number."""

    key: str
    title: str
    form: str = "{}"


@dataclass(frozen=True)
class Table:
    """Rows of values by column key. None is not defined; a list is of token pieces."""

    title: str
    note: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]]

    def cell(self, row: dict[str, Any], column: Column) -> str:
        """The text of one value but of token pieces."""
        value = row.get(column.key)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        return column.form.format(value)

    def is_number(self, column: Column) -> bool:
        """Whether the column stands at the right."""
        return any(isinstance(row.get(column.key), int | float) for row in self.rows)


def grid(table: Table) -> Any:
    """A table for a terminal (rich), under its title."""
    from rich.markup import escape
    from rich.table import Table as Grid
    from rich.text import Text

    shown = Grid(title=Text(table.title), title_justify="left")
    for column in table.columns:
        shown.add_column(escape(column.title), justify="right" if table.is_number(column) else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(table.cell(row, column)) for column in table.columns))
    return shown


def markdown(tables: Sequence[Table], heading: str, statements: Sequence[str]) -> str:
    """Tables under a heading, with statements above them."""
    parts = [f"# {heading}", *map(_md, statements)]
    for table in tables:
        lines = [
            [_md(c.title) for c in table.columns],
            ["---:" if table.is_number(c) else "---" for c in table.columns],
        ]
        lines += [[_md_cell(table, row, column) for column in table.columns] for row in table.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines) if table.rows else "None."
        parts += [f"## {_md(table.title)}", _md(table.note), body]
    return "\n\n".join(parts) + "\n"


def csv_text(tables: Sequence[Table], first: Callable[[Table], str] | None = None) -> str:
    """The rows of tables with the same columns, unrounded; `first` names a table in a column `table` before them."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [column.key for column in tables[0].columns]
    writer.writerow([*(["table"] if first else []), *keys])
    for table in tables:
        for row in table.rows:
            values = [" ".join(v) if isinstance(v := row.get(key), list) else v for key in keys]
            writer.writerow([*([first(table)] if first else []), *values])
    return out.getvalue()


def _md(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_[]<>|~$&" else c for c in text)


def _md_cell(table: Table, row: dict[str, Any], column: Column) -> str:
    value = row.get(column.key)
    return "  ".join(map(_md, value)) if isinstance(value, list) else _md(table.cell(row, column))
