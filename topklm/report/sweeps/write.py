"""A sweep's report: one result for `apps.report results=[...]`, the tidy table as CSV and Parquet, LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topklm.report.result import Drawing, Result, write_result
from topklm.report.sweeps.between import between_table
from topklm.report.sweeps.figures import against_swept
from topklm.report.sweeps.groups import Group, group
from topklm.report.sweeps.latex import latex_table
from topklm.report.sweeps.rows import PERPLEXITY, Row, Rows, SweepRun, read_rows
from topklm.report.sweeps.tables import main_scores, states_table, summary_table, tidy_table, unfinished, write_parquet
from topklm.report.table import csv_text


def write_sweep(
    runs: Sequence[SweepRun], out: Path, *, name: str, title: str, swept: Sequence[str], x: str | None, log_x: bool
) -> tuple[Result, list[Path]]:
    """Write the report of a sweep to `out`; returns it and its files.

    `swept`: the swept keys in order; `x`: the one of the horizontal axis, None for the first. Beside the result's own
    files: runs.csv and runs.parquet (a row per run), sweep.tex. Raises `ConfigError` without matplotlib or pyarrow.
    """
    found = read_rows(runs)
    groups = group(found.rows)
    result = sweep_result(found, groups, name=name, title=title, swept=swept, x=x, log_x=log_x)
    paths = write_result(result, out)
    tidy = tidy_table(found, swept)
    extra = [out / "runs.csv", out / "runs.parquet", out / "sweep.tex"]
    extra[0].write_text(csv_text([tidy]), encoding="utf-8")
    write_parquet(tidy, extra[1])
    caption = f"{title}: mean and standard deviation over seeds; ratios to the dense twin of the same seed."
    extra[2].write_text(latex_table(groups, found, swept, caption, f"tab:{name}"), encoding="utf-8")
    return result, paths + extra


def sweep_result(
    found: Rows,
    groups: Sequence[Group],
    *,
    name: str,
    title: str,
    swept: Sequence[str],
    x: str | None,
    log_x: bool,
) -> Result:
    """The result: statements, tables, and a figure per view and for the scores of tasks."""
    lines = provenance(found, name)
    axis = x or next(iter(swept), None)
    drawings = {}
    if axis is not None and any(row.values for row in found.rows):
        for key in found.views:
            view = key.removeprefix(PERPLEXITY)
            panels: list[tuple[str, Any]] = [(f"validation perplexity\n(context {view})", _values(key))]
            if any(key in row.ratios for row in found.rows):
                panels.append(("ratio to the\ndense twin", _ratios(key)))
            text = f"Validation perplexity at context {view} against {axis} and its ratio to the dense twin's, by seed."
            drawings[f"perplexity-{view}"] = Drawing(
                title=f"Perplexity at context {view}",
                text=text,
                figure=against_swept(title, groups, panels, axis, log_x=log_x, provenance=lines),
            )
        if scores := main_scores(found):
            panels = [(column.title.replace(" @", "\n@"), _values(key)) for key, column in scores.items()]
            drawings["scores"] = Drawing(
                title="Scores",
                text=f"Scores of the tasks against {axis}, a point per seed.",
                figure=against_swept(title, groups, panels, axis, log_x=log_x, provenance=lines),
            )
    return Result(
        kind="sweep",
        title=title,
        statements=[*statements(found, groups), *found.notes],
        provenance=lines,
        tables={
            "summary": summary_table(groups, found, swept),
            **({"between": table} if (table := between_table(groups, found)).rows else {}),
            "states": states_table(found, swept),
        },
        drawings=drawings,
        data={"runs": [_plain(row) for row in found.rows], "swept": list(swept)},
    )


def statements(found: Rows, groups: Sequence[Group]) -> list[str]:
    """How many runs there are, what each point's ratio is and can be told from 1, and what is missing."""
    finished = sum(row.run.is_finished for row in found.rows)
    said = [f"{finished} of {len(found.rows)} runs are finished."]
    for key in found.views[:1]:
        for one in groups:
            if not one.is_dense and one.ratios(key).n:
                said.append(_ratio_sentence(one, key))
    return said + unfinished(found.rows)


def _ratio_sentence(one: Group, key: str) -> str:
    ratios, spread = one.ratios(key), one.ratio_spread(key)
    view = key.removeprefix(PERPLEXITY)
    said = f"{one.label}: {ratios.mean:.3f} times the dense twin's validation perplexity at context {view}"
    if spread.interval is None or spread.detectable is None:
        return f"{said} (one seed, so nothing is known of the spread)."
    low, high = spread.interval
    verdict = "" if spread.differs else ", so inconclusive"
    return (
        f"{said} ({ratios.n} seeds, 95 % interval {low:.3f} to {high:.3f}{verdict}; with this spread a ratio from "
        f"{spread.detectable:.3f} on would be told from 1)."
    )


def provenance(found: Rows, name: str) -> list[str]:
    """What all figures of the sweep come from, in a few lines."""
    rows = [row for row in found.rows if row.values]
    tokens = sorted({row.tokens for row in rows if row.tokens is not None})
    trained = f"{tokens[0]:,}" + (f" to {tokens[-1]:,}" if len(tokens) > 1 else "") if tokens else "no"
    scored = sorted({(key, count) for row in rows for key, count in row.scored.items() if key.startswith(PERPLEXITY)})
    validated = ", ".join(f"{count:,.0f} tokens @{key.removeprefix(PERPLEXITY)}" for key, count in scored)
    seeds = ", ".join(map(str, sorted({row.run.seed for row in rows})))
    directory = found.rows[0].run.path.parent if found.rows else ""
    counted = f"{len(rows)} of {len(found.rows)} runs"
    lines = [f"sweep {name}: {directory}, {counted}, {trained} training tokens each, seeds {seeds}"]
    told = [f"validated on {validated}"] if validated else []
    for key, title in (("data", "data"), ("tokenizer", "tokenizer"), ("device", "device"), ("torch", "torch")):
        values = sorted({str(row.more[key]) for row in rows if row.more.get(key) is not None})
        told += [f"{title} {', '.join(values)}"] if values else []
    return lines + (["; ".join(told)] if told else [])


def _values(key: str) -> Any:
    return lambda one: one.values(key)


def _ratios(key: str) -> Any:
    return lambda one: one.ratios(key)


def _plain(row: Row) -> dict[str, Any]:
    run = row.run
    return {
        "run": run.name, "state": run.state, "dense": run.is_dense, "swept": dict(run.swept), "seed": run.seed,
        "twin": run.twin, "steps": run.step, "planned_steps": run.steps, "tokens": row.tokens,
        "values": dict(row.values), "ratios": dict(row.ratios),
        "differences": dict(row.differences), **row.more,
    }  # fmt: skip
