"""The comparison of evaluations as tables: Markdown, CSV, LaTeX, terminal.

A row a model, as in the paper's Table 1; on the terminal, where that is too wide, a row a figure.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from topklm.report.evals.compare import Difference, EvalComparison, EvalRow
from topklm.report.evals.figures import Cell, Column

if TYPE_CHECKING:
    from rich.console import Group

NEAR = "~"
"""Marks a score that does not differ from guessing."""


def markdown(comparison: EvalComparison) -> str:
    """The comparison as a Markdown page: models, differences of twins, notes, provenance."""
    columns = comparison.main_columns
    models = [["model", "activation", "k", "D", "L", "step", *(column.title for column in columns)]]
    models += [[*_description(row), *(value_text(row.cells.get(c), c) for c in columns)] for row in comparison.rows]
    models.append(["chance", *[""] * 5, *(_chance_text(comparison, column) for column in columns)])
    parts = ["# Evaluation", _pipes(models, left=2), "± one standard error."]
    if comparison.differences:
        lines = [["TopK", "dense twin", "figure", "n", "difference", "95 % interval", "bootstrap interval", ""]]
        for difference in _main(comparison):
            lines.append([difference.run, difference.twin, *_difference_texts(difference)])
        parts += ["## Against the dense twin", _pipes(lines, left=3)]
    if comparison.notes:
        parts.append("\n".join(f"- {note}" for note in comparison.notes))
    provenance = [["model", *PROVENANCE]]
    provenance += [[row.run.name, *(_shown(_recorded(row, key)) for key in PROVENANCE)] for row in comparison.rows]
    parts += ["## Provenance", _pipes(provenance, left=len(provenance[0]))]
    return "\n\n".join(parts) + "\n"


PROVENANCE = (
    "directory", "checkpoint", "checkpoint_sha256", "step", "alpha", "tokenizer_sha256", "context", "bos", "dtype",
    "device", "seed", "date", "topklm", "torch", "lm_eval",
)  # fmt: skip
"""Where a row's figures come from."""


def csv_text(comparison: EvalComparison) -> str:
    """Every figure of every model, unrounded, a row each; empty: not known."""
    head = ["model", "task", "metric", "setting", "value", "stderr", "chance", "near_chance", "documents",
            "higher_is_better", *PROVENANCE]  # fmt: skip
    lines: list[list[Any]] = []
    for row in comparison.rows:
        for column in comparison.columns:
            if (cell := row.cells.get(column)) is not None:
                lines.append([
                    row.run.name, column.task, column.metric, column.setting, cell.value, cell.stderr, cell.chance,
                    cell.near_chance, cell.n, column.higher_is_better, *(_recorded(row, key) for key in PROVENANCE),
                ])  # fmt: skip
    return _csv([head, *lines])


def differences_csv(comparison: EvalComparison) -> str:
    """Every paired difference, unrounded; for a perplexity of logarithms, in nats, and its exponential beside it."""
    head = ["model", "twin", "task", "metric", "setting", "n", "difference", "stderr", "low", "high", "bootstrap_low",
            "bootstrap_high", "ratio"]  # fmt: skip
    lines: list[list[Any]] = []
    for d in comparison.differences:
        p, c = d.paired, d.column
        ratio = math.exp(p.difference) if c.scale == "perplexity" else None
        lines.append([d.run, d.twin, c.task, c.metric, c.setting, p.n, p.difference, p.stderr, p.low, p.high,
                      p.bootstrap_low, p.bootstrap_high, ratio])  # fmt: skip
    return _csv([head, *lines])


def latex(comparison: EvalComparison) -> str:
    """For LaTeX (booktabs): the table of models, that of the differences of twins, and the notes."""
    columns = comparison.main_columns
    models = [["model", "$k$", "$D$", "$L$", *(_tex(column.title) for column in columns)]]
    for row in comparison.rows:
        name, _, k, dim, layers, _ = map(_tex, _description(row))
        models.append([name, k, dim, layers, *(_tex_number(value_text(row.cells.get(c), c)) for c in columns)])
    models.append(["chance", "", "", "", *(_chance_text(comparison, column) for column in columns)])
    tables = [_tabular(models, left=1)]
    if main := _main(comparison):
        heads = ["TopK", "dense twin", "figure", "$n$", "difference", r"95\,\% interval", ""]
        lines = []
        for difference in main:
            title, n, value, interval, _, says = _difference_texts(difference)
            texts = [
                *map(_tex, (difference.run, difference.twin, title)),
                *map(_tex_number, (n, value, interval)),
                says,
            ]
            lines.append(texts)
        tables.append(_tabular([heads, *lines], left=3))
    marks = r"$\pm$ one standard error; $\sim$ within two of guessing."
    notes = [marks, *map(_tex, comparison.notes)]
    return "\n\\par\\medskip\n".join(tables) + "".join(f"\n\\par{{\\footnotesize {note}}}" for note in notes) + "\n"


def rich_tables(comparison: EvalComparison) -> Group:
    """The comparison for a terminal: a row a figure, a column a model, then a table for each pair of twins, and notes.

    Two models fit 80 characters.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> Table:
        made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i, head in enumerate(heads):
            made.add_column(Text(head), justify="left" if i < left else "right", overflow="fold")
        for line in lines:
            made.add_row(*map(Text, line))
        return made

    heads = ["± one standard error", *(row.run.name for row in comparison.rows), "chance"]
    lines = [
        [c.title, *(value_text(row.cells.get(c), c) for row in comparison.rows), _chance_text(comparison, c)]
        for c in comparison.main_columns
    ]
    tables = [table("Evaluation", heads, lines, 1)]
    heads = ["paired by document", "n", "difference", "95 % interval", ""]
    pairs: dict[str, list[list[str]]] = {}
    for difference in _main(comparison):
        title, n, value, interval, _, says = _difference_texts(difference)
        pairs.setdefault(f"{difference.run} less {difference.twin}", []).append([title, n, value, interval, says])
    tables += [table(title, heads, lines, 1) for title, lines in pairs.items()]
    return Group(*tables, *(Text(f"- {note}") for note in comparison.notes))


def value_text(cell: Cell | None, column: Column) -> str:
    """A value with its standard error and the mark of guessing: `0.2710 ± 0.0134 ~`."""
    if cell is None:
        return "-"
    if not math.isfinite(cell.value):
        return "not finite"
    form = ",.4f" if column.scale != "perplexity" else ",.2f" if cell.value < 1e6 else ".2e"
    error = "" if cell.stderr is None else f" ± {cell.stderr:{form}}"
    return f"{cell.value:{form}}{error}{f' {NEAR}' if cell.near_chance else ''}"


def interval_of(difference: Difference) -> tuple[float, float, float]:
    """(value, low, high) as they are shown: a ratio for a perplexity, else a difference."""
    p = difference.paired
    values = (p.difference, p.low, p.high)
    return tuple(map(_exp, values)) if difference.column.scale == "perplexity" else values  # type: ignore[return-value]


def verdict(difference: Difference) -> str:
    """worse or better where neither the interval nor the bootstrap's holds "no difference", else nothing; and nothing
    where both models guess."""
    p = difference.paired
    if difference.near_chance or not (min(p.low, p.bootstrap_low) > 0 or max(p.high, p.bootstrap_high) < 0):
        return ""
    return "better" if (p.low > 0) == difference.column.higher_is_better else "worse"


def _main(comparison: EvalComparison) -> list[Difference]:
    shown = set(comparison.main_columns)
    return [difference for difference in comparison.differences if difference.column in shown]


def _difference_texts(difference: Difference) -> list[str]:
    """Title, n, value, interval, bootstrap interval, verdict."""
    p, is_ratio = difference.paired, difference.column.scale == "perplexity"

    def text(value: float) -> str:
        return f"x {_exp(value):.4f}" if is_ratio else f"{value:+.4f}"

    def span(low: float, high: float) -> str:
        return "-" if math.isnan(low) else f"{text(low)} to {text(high)}".replace("x ", "")

    return [
        difference.column.title,
        f"{p.n:,}",
        text(p.difference),
        span(p.low, p.high),
        span(p.bootstrap_low, p.bootstrap_high),
        "both guess" if difference.near_chance else verdict(difference),
    ]


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _description(row: EvalRow) -> list[str]:
    """Name, activation, k, D, L, step."""
    setting = row.run.setting
    activation = "dense" if row.run.is_dense else setting("topk.activation") or "topk"
    values = [row.run.k, setting("model.dim"), setting("model.n_layers"), row.step]
    return [row.run.name, activation, *map(_shown, values)]


def _chance_text(comparison: EvalComparison, column: Column) -> str:
    levels = {cell.chance for row in comparison.rows if (cell := row.cells.get(column)) and cell.chance is not None}
    return " / ".join(f"{level:.4f}" for level in sorted(levels))


def _recorded(row: EvalRow, key: str) -> Any:
    provenance = row.evaluation.provenance
    if key == "directory":
        return str(row.evaluation.path)
    return provenance[key] if key in provenance else provenance.get("versions", {}).get(key)


def _shown(value: Any) -> str:
    text = "-" if value is None or value == "" else str(value)
    return text[:12] if len(text) == 64 else text  # a hash


def _pipes(lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    cells = [lines[0], rule, *([text.replace("|", "\\|") for text in line] for line in lines[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{c: f"\\{c}" for c in "&%$#_{}"}}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _tex_number(text: str) -> str:
    signs = {"±": r"$\pm$", NEAR: r"$\sim$", ",": "{,}", "-": "$-$", "+": "$+$", "x ": r"$\times$ "}
    if text == "-":
        return text
    for sign, tex in signs.items():
        text = text.replace(sign, tex)
    return text


def _tabular(lines: Sequence[Sequence[str]], left: int) -> str:
    """The first line is the head; `left` columns are texts."""
    head, *body = [" & ".join(cells) + r" \\" for cells in lines]
    spec = "l" * left + "r" * (len(lines[0]) - left)
    parts = [rf"\begin{{tabular}}{{{spec}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts)
