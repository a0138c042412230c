"""The comparison as a table: on the terminal, as Markdown, as CSV. All three have the same columns."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from topklm.report.compare import Comparison, Row
from topklm.report.runs import Run

if TYPE_CHECKING:
    from rich.console import Group

BESIDE = 4
"""So many runs stand beside each other on a terminal."""


@dataclass(frozen=True)
class Column:
    """One column: its name in the CSV, its title elsewhere, its value, and that value as text."""

    key: str
    title: str
    value: Callable[[Row], Any]
    form: str = "{}"
    """Format of a value that is there and finite."""

    def text(self, row: Row) -> str:
        value = self.value(row)
        if value is None:
            return "-"
        if isinstance(value, float) and not math.isfinite(value):
            return "not finite"
        return self.form.format(value)


def result_columns(comparison: Comparison) -> list[Column]:
    """What the runs are and have come to; the run's name first."""
    columns = [
        Column("name", "run", lambda row: row.run.name),
        Column("activation", "activation", lambda row: row.run.setting("topk.activation") or _kind(row.run)),
        Column("k", "k", lambda row: row.run.k),
        Column("n_dense_tail", "dense tail", lambda row: row.run.setting("topk.n_dense_tail")),
        Column("dim", "D", lambda row: row.run.setting("model.dim")),
        Column("n_layers", "L", lambda row: row.run.setting("model.n_layers")),
        Column("parameters_m", "params (M)", lambda row: _millions(row.run), "{:,.2f}"),
        Column("train_loss", "train loss (nats)", lambda row: row.loss, "{:.4f}"),
        Column("train_loss_points", "loss points", lambda row: row.loss_points),
    ]
    for view in comparison.views:
        columns.append(Column(f"val_ppl@{view}", f"val ppl@{view}", _of("perplexity", view), "{:.2f}"))
        columns.append(Column(f"val_ppl_ratio@{view}", f"x dense@{view}", _of("ratio", view), "{:.3f}"))
    columns += [
        Column("l0_mean", "L0 mean", lambda row: row.l0_mean, "{:.1f}"),
        Column("dead", "dead neurons", lambda row: row.dead, "{:.2%}"),
        Column("tokens_per_second", "tokens/s", lambda row: row.tokens_per_second, "{:,.0f}"),
    ]
    if any(row.mfu is not None for row in comparison.rows):
        columns.append(Column("mfu", "MFU", lambda row: row.mfu, "{:.1%}"))
    return columns


def provenance_columns(comparison: Comparison) -> list[Column]:
    """Where the numbers of a row come from."""
    columns = [
        Column("path", "directory", lambda row: str(row.run.path)),
        Column("steps", "steps", lambda row: row.run.step, "{:,}"),
        Column("planned_steps", "planned steps", lambda row: row.run.config.get("steps"), "{:,}"),
        Column("training_tokens", "training tokens", lambda row: _tokens(row.run), "{:,}"),
        Column("validated_step", "validated at step", lambda row: row.validated_step, "{:,}"),
    ]
    for view in comparison.views:
        columns.append(Column(f"val_tokens@{view}", f"val tokens@{view}", _of("scored", view), "{:,.0f}"))
    return [
        *columns,
        Column("health_tokens", "health tokens", lambda row: row.health_tokens, "{:,.0f}"),
        Column("alpha", "alpha", lambda row: row.alpha, "{:.3g}"),
        Column("dense_twin", "dense twin", lambda row: row.twin),
        Column("seed", "seed", lambda row: row.run.seeds),
        Column("data_fingerprint", "data", lambda row: row.run.short_hash("data_fingerprint")),
        Column("tokenizer", "tokenizer", lambda row: row.run.short_hash("tokenizer_sha256")),
        Column("device", "device", lambda row: row.run.recorded("device")),
        Column("ranks", "ranks", lambda row: row.run.recorded("ranks")),
        Column("torch", "torch", lambda row: row.run.recorded("versions.torch")),
    ]


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown page: results, notes, provenance."""
    results = result_columns(comparison)
    parts = ["# Comparison", _markdown_table(results, comparison.rows)]
    if comparison.notes:
        parts.append("\n".join(f"- {note}" for note in comparison.notes))
    parts += ["## Provenance", _markdown_table([results[0], *provenance_columns(comparison)], comparison.rows)]
    return "\n\n".join(parts) + "\n"


def csv_text(comparison: Comparison) -> str:
    """The comparison as CSV: a row per run, numbers unrounded; empty: not measured, nan: not finite."""
    columns = [*result_columns(comparison), *provenance_columns(comparison)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(column.key for column in columns)
    writer.writerows([column.value(row) for column in columns] for row in comparison.rows)
    return out.getvalue()


def rich_tables(comparison: Comparison) -> Group:
    """The comparison for a terminal: few runs beside each other (fits 80 characters), many below."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows, results = comparison.rows, result_columns(comparison)
    tables = []
    if len(rows) <= BESIDE:
        table = Table(title="Comparison", title_justify="left")
        table.add_column("")
        for row in rows:
            table.add_column(Text(row.run.name), justify="right", overflow="fold")
        for section in (results[1:], provenance_columns(comparison)):
            for column in section:
                table.add_row(column.title, *(Text(column.text(row)) for row in rows))
            table.add_section()
        tables.append(table)
    else:
        for title, columns in (("Comparison", results), ("Provenance", [results[0], *provenance_columns(comparison)])):
            table = Table(title=title, title_justify="left")
            for column in columns:
                table.add_column(column.title, justify="right" if _is_number(column, rows) else "left", overflow="fold")
            for row in rows:
                table.add_row(*(Text(column.text(row)) for column in columns))
            tables.append(table)
    return Group(*tables, *(Text(f"- {note}") for note in comparison.notes))


def _kind(run: Run) -> str:
    return "dense" if run.is_dense else "topk"


def _millions(run: Run) -> float | None:
    n = run.recorded("n_parameters")
    return None if n is None else n / 1e6


def _of(field: str, view: str) -> Callable[[Row], Any]:
    return lambda row: getattr(row, field).get(view)


def _tokens(run: Run) -> int | None:
    per_step = run.tokens_per_step
    return None if math.isnan(per_step) else round(run.step * per_step)


def _markdown_table(columns: list[Column], rows: list[Row]) -> str:
    cells = [[column.title for column in columns], [_rule(column, rows) for column in columns]]
    cells += [[column.text(row).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _rule(column: Column, rows: list[Row]) -> str:
    return "---:" if _is_number(column, rows) else "---"


def _is_number(column: Column, rows: list[Row]) -> bool:
    return any(isinstance(column.value(row), int | float) for row in rows)
