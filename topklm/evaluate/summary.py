"""One evaluation as a table: every figure with its standard error, and how far it is from guessing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from topklm.evaluate.checkpoints import Evaluated

NEAR_CHANCE, NOT_RUN = "near chance", "not run"
_STYLES = {NEAR_CHANCE: "yellow", NOT_RUN: "red"}


def summary_table(evaluated: Evaluated) -> Table:
    """The figures of one checkpoint, for a terminal. n: documents of a task, scored tokens of held-out text; ±: one
    standard error."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"{evaluated.checkpoint}: {evaluated.directory}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("task", "n", "metric", "value", "±", "chance", ""):
        table.add_column(column, justify="left" if column in ("task", "metric", "") else "right", no_wrap=True)
    for row in _rows(evaluated):
        table.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in row))
    return table


def _rows(evaluated: Evaluated) -> Iterator[tuple[str, ...]]:
    for name, value in evaluated.figures.items():
        if name.startswith("val/") and "@" in name and "/tokens@" not in name:
            tokens = evaluated.figures.get(f"{name.rpartition('/')[0]}/tokens@{name.partition('@')[2]}", 0)
            yield "held-out text", f"{tokens:,.0f}", name, _number(value), "", "", ""
    harness = evaluated.harness or {}
    for task, metrics in harness.get("results", {}).items():
        chance = harness.get("chance", {}).get(task)
        label, n = task, f"{metrics.get('sample_len', ''):,}"
        for key, value in metrics.items():
            name, _, filter_ = key.partition(",")
            if not filter_ or name.endswith("_stderr"):
                continue
            is_near = key in harness.get("near_chance", {}).get(task, [])
            shown = name if filter_ == "none" else key
            error = metrics.get(f"{name}_stderr,{filter_}")
            guess = _number(chance) if chance is not None and name.startswith("acc") else ""
            yield label, n, shown, _number(value), _number(error), guess, NEAR_CHANCE if is_near else ""
            label = n = ""
    for task in evaluated.failed:
        yield task, "", NOT_RUN, "", "", "", ""


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}" if abs(value) < 1e5 else f"{value:.3e}"
