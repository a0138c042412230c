"""Tables of a sweep: every run in one row, and means over seeds like the paper's tables 3, 4 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topklm.optional import require
from topklm.report.evals.figures import Column as EvalColumn
from topklm.report.sweeps.groups import Group, shown
from topklm.report.sweeps.rows import PERPLEXITY, Row, Rows
from topklm.report.table import Column, Table


def tidy_table(found: Rows, swept: Sequence[str]) -> Table:
    """One row per run with everything that is known of it; what is not measured, or not final, is missing."""
    keys = sorted({key for row in found.rows for key in row.values})
    ratios = sorted({key for row in found.rows for key in row.ratios})
    differences = sorted({key for row in found.rows for key in row.differences})
    more = list(dict.fromkeys(key for row in found.rows for key in row.more))
    swept = _besides(swept)
    names = ["run", "state", "reason", "kind", *swept, "seed", "twin", "steps", "planned_steps", "tokens"]
    names += [*keys, *(f"{key}/dense" for key in ratios)]
    names += [*(f"{key}-dense" for key in differences), *more, "path"]
    rows = []
    for row in found.rows:
        run = row.run
        rows.append(
            {
                "run": run.name, "state": run.state, "reason": run.reason or None,
                "kind": "dense" if run.is_dense else "topk",
                **{key: _plain(run.swept.get(key)) for key in swept}, "seed": run.seed, "twin": run.twin,
                "steps": run.step, "planned_steps": run.steps, "tokens": row.tokens, **row.values,
                **{f"{key}/dense": value for key, value in row.ratios.items()},
                **{f"{key}-dense": value for key, value in row.differences.items()}, **row.more, "path": str(run.path),
            }
        )  # fmt: skip
    return Table("Runs", "Every run; figures are those after its last step.", [Column(n, n) for n in names], rows)


def write_parquet(table: Table, path: Path) -> None:
    """A table as Parquet. A column of values of several types is text. Raises `ConfigError` without pyarrow."""
    pyarrow = require("pyarrow", "topklm[bundles]")
    parquet = require("pyarrow.parquet", "topklm[bundles]")
    columns = {}
    for column in table.columns:
        values = [row.get(column.key) for row in table.rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} and len(kinds) == 2:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else shown(value) for value in values]
        columns[column.key] = pyarrow.array(values)
    parquet.write_table(pyarrow.table(columns), path)


def states_table(found: Rows, swept: Sequence[str]) -> Table:
    """One row per run: what it is, how far it is, and its perplexities."""
    swept = _besides(swept)
    columns = [Column("run", "run"), *(Column(key, key) for key in swept), Column("seed", "seed")]
    columns += [Column("state", "state"), Column("steps", "steps", "{:,}"), Column("planned_steps", "of", "{:,}")]
    for key in found.views:
        columns += [Column(key, _title(key), "{:.2f}"), Column(f"{key}/dense", "x dense twin", "{:.3f}")]
    columns += [Column("checkpoint", "checkpoint")]
    tidy = tidy_table(found, swept)
    rows: list[dict[str, Any]] = [
        {
            **row,
            **{key: shown(row[key]) if key in one.run.swept else None for key in swept},
            "state": row["state"] + (f": {row['reason']}" if row["reason"] else ""),
        }
        for row, one in zip(tidy.rows, found.rows, strict=True)
    ]
    return Table("Runs", "Figures only of finished runs, after their last step.", columns, rows)


def summary_table(groups: Sequence[Group], found: Rows, swept: Sequence[str]) -> Table:
    """One row per point of the sweep: means and standard deviations over its finished seeds."""
    columns = [Column("kind", "model"), *(Column(key, key) for key in swept), Column("seeds", "seeds")]
    rows: list[dict[str, Any]] = [
        {
            "kind": "dense" if one.is_dense else "TopK",
            **{key: shown(one.swept[key]) if key in one.swept else None for key in swept},
            "seeds": f"{one.finished} of {one.planned}",
        }
        for one in groups
    ]
    for key in found.views:
        columns += [
            Column(key, _title(key), "{:.2f}"), Column(f"{key} sd", "sd", "{:.2f}"),
            Column(f"{key}/dense", "x dense twin", "{:.3f}"), Column(f"{key}/dense sd", "sd", "{:.3f}"),
            Column(f"{key}/dense low", "95 % from", "{:.3f}"), Column(f"{key}/dense high", "to", "{:.3f}"),
            Column(f"{key}/dense detectable", "detectable from", "{:.3f}"),
        ]  # fmt: skip
        for row, one in zip(rows, groups, strict=True):
            values, ratios, spread = one.values(key), one.ratios(key), one.ratio_spread(key)
            low, high = spread.interval or (None, None)
            row |= {
                key: values.mean, f"{key} sd": values.sd, f"{key}/dense": ratios.mean, f"{key}/dense sd": ratios.sd,
                f"{key}/dense low": low, f"{key}/dense high": high, f"{key}/dense detectable": spread.detectable,
            }  # fmt: skip
    for key, score in main_scores(found).items():
        form = "{:.3f}" if score.scale == "mean" else "{:.2f}"
        columns += [Column(key, score.title, form), Column(f"{key} sd", "sd", form)]
        columns += [Column(f"{key} twin", "x dense" if score.scale == "perplexity" else "less dense", "{:.3f}")]
        columns += [Column(f"{key} twin sd", "sd", "{:.3f}")]
        for row, one in zip(rows, groups, strict=True):
            against = one.ratios(key) if score.scale == "perplexity" else one.differences(key)
            row |= {key: one.values(key).mean, f"{key} sd": one.values(key).sd}
            row |= {f"{key} twin": against.mean, f"{key} twin sd": against.sd}
    note = (
        "Means and standard deviations over the finished seeds; ratios are to the dense twin of the same seed, less "
        "dense is a score less the twin's. 95 %: Student's t of the log ratios over the seeds. Detectable: the "
        "smallest ratio that so many seeds with this spread would tell from 1 in about 80 % of the cases."
    )
    return Table("Over the seeds", note, columns, rows)


def main_scores(found: Rows) -> dict[str, EvalColumn]:
    """Of a task with an accuracy that and its perplexity, of the others everything."""
    with_accuracy = {column.task for column in found.scores.values() if column.metric == "acc"}
    return {
        key: column
        for key, column in found.scores.items()
        if column.task not in with_accuracy or column.metric in ("acc", "perplexity")
    }


def unfinished(rows: Sequence[Row]) -> list[str]:
    """A sentence per run that is not finished."""
    words = {"new": "has not begun", "busy": "is being trained", "partial": "is not finished", "failed": "failed"}
    return [
        f"{row.run.name} {words[row.run.state]}{f' ({row.run.reason})' if row.run.reason else ''}: "
        f"{row.run.step:,} of {row.run.steps:,} steps are saved."
        for row in rows
        if not row.run.is_finished
    ]


def _besides(swept: Sequence[str]) -> list[str]:
    """Swept keys that are not columns of every run anyway."""
    return [key for key in swept if key not in ("steps", "seed")]


def _plain(value: Any) -> Any:
    """A value that fits one field."""
    return shown(value) if isinstance(value, dict | list) else value


def _title(key: str) -> str:
    return f"ppl @{key.removeprefix(PERPLEXITY)}"
