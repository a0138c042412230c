"""One row per run of a sweep: what it is, how far it is, and what it has come to."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, TopklmError
from topklm.report.evals.figures import HELD_OUT, cells
from topklm.report.evals.figures import Column as EvalColumn
from topklm.report.evals.read import EVALS, read_evaluation
from topklm.report.runs import Run, number, read_run

PERPLEXITY = "val/ppl@"
"""The validation perplexity of a view is `val/ppl@<view>`."""


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run as the sweep planned it, and how far it is."""

    name: str
    path: Path
    """Its directory."""
    swept: Mapping[str, Any]
    """The values of the swept keys; of a dense twin, of those that a dense model has."""
    seed: int
    is_dense: bool
    twin: str | None = None
    """Name of the dense run of the same configuration and seed."""
    steps: int
    """Steps that it was planned to have."""
    step: int = 0
    """Steps of its newest checkpoint."""
    state: str = "new"
    """new, partial, finished, failed or busy."""
    reason: str = ""
    """Of a failed run: how it ended."""
    checkpoint_sha256: str | None = None
    """Hash of its newest checkpoint."""

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run with its figures. They are there only if it is finished: an unfinished run's are of another model."""

    run: SweepRun
    values: Mapping[str, float] = field(default_factory=dict)
    """Final figures by key: val/ppl@256, val/bpb@256, last_word/acc@256, ..."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """Of a TopK run: perplexities over those of its dense twin, by the same keys."""
    differences: Mapping[str, float] = field(default_factory=dict)
    """Of a TopK run: every other figure less its dense twin's, by the same keys."""
    tokens: int | None = None
    """Training tokens done."""
    scored: Mapping[str, float] = field(default_factory=dict)
    """What each figure is over, by its key: tokens of a validation, documents of a task."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else is known: parameters, loss, L0, speed, hashes."""


@dataclass(frozen=True)
class Rows:
    """All rows of a sweep, in its order, with what a reader has to know."""

    rows: list[Row]
    scores: dict[str, EvalColumn]
    """The figures of tasks by key; the keys of `values` that are perplexities of held-out text are not among them."""
    notes: list[str]

    @property
    def views(self) -> list[str]:
        """Keys of the validation perplexities, smallest context first."""
        found = {key for row in self.rows for key in row.values if key.startswith(PERPLEXITY)}
        return sorted(found, key=lambda key: (int(key.removeprefix(PERPLEXITY).partition("-")[0]), key))


def read_rows(runs: Sequence[SweepRun]) -> Rows:
    """Read what every run has come to. Damaged files are told in the notes, and the run stays without figures."""
    notes: list[str] = []
    scores: dict[str, EvalColumn] = {}
    rows = {run.name: _row(run, scores, notes) for run in runs}
    found = [_against_twin(row, rows, notes) for row in rows.values()]
    if len({row.more.get("tokenizer") for row in found} - {None}) > 1:
        notes.append("The runs have different tokenizers: perplexities per token do not compare.")
    # A seed decides the order of the samples too, which is part of the fingerprint.
    fingerprints = {(row.run.seed, row.more["data"]) for row in found if row.more.get("data") is not None}
    if len(fingerprints) > len({seed for seed, _ in fingerprints}):
        notes.append("Runs of the same seed were trained on different data.")
    return Rows(found, scores, notes)


def _row(sweep_run: SweepRun, scores: dict[str, EvalColumn], notes: list[str]) -> Row:
    if not (sweep_run.path / "metrics.jsonl").is_file():
        return Row(run=sweep_run)
    try:
        run = read_run(sweep_run.path)
    except TopklmError as error:
        notes.append(f"{sweep_run.name} cannot be read: {error}")
        return Row(run=sweep_run)
    tokens = run.step * run.tokens_per_step
    values, scored = _validation(sweep_run, run, notes) if sweep_run.is_finished else ({}, {})
    if sweep_run.is_finished:
        for key, (score, documents) in _scores(sweep_run, scores, notes).items():
            values[key] = score
            if documents is not None:
                scored[key] = documents
    return Row(
        run=sweep_run,
        values=values,
        tokens=None if math.isnan(tokens) else round(tokens),
        scored=scored,
        more=_more(sweep_run, run),
    )


def _validation(sweep_run: SweepRun, run: Run, notes: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """(figures of the last validation by key, tokens of each perplexity), if that is the one at the end."""
    last = run.validation[-1] if run.validation else {}
    if last.get("global_step") != sweep_run.step:
        notes.append(f"{sweep_run.name} has no validation at its last step, {sweep_run.step}.")
        return {}, {}
    keys = {f"val/{metric}@{view}": f"val/tokens@{view}" for view in run.views for metric in ("ppl", "bpb")}
    values = {key: value for key in keys if (value := number(last, key)) is not None}
    if any(not math.isfinite(value) for value in values.values()):
        notes.append(f"{sweep_run.name}: its validation is not finite.")
    scored = {key: tokens for key in values if (tokens := number(last, keys[key])) is not None}
    return {key: value for key, value in values.items() if math.isfinite(value)}, scored


def _scores(run: SweepRun, scores: dict[str, EvalColumn], notes: list[str]) -> dict[str, tuple[float, int | None]]:
    """(score, documents) of tasks at the last step, if the run was evaluated there."""
    try:
        evaluation = read_evaluation(run.path / EVALS / f"{run.step:010d}")
    except ConfigError:
        return {}
    except TopklmError as error:
        notes.append(f"{run.name}: {error}")
        return {}
    found = {}
    for column, cell in cells(evaluation).items():
        if column.task.partition("/")[0] != HELD_OUT:
            scores.setdefault(column.key, column)
            found[column.key] = cell.value, cell.n
    return found


def _against_twin(row: Row, rows: Mapping[str, Row], notes: list[str]) -> Row:
    """The row with ratios and differences to its dense twin, where both are of the same tokens and training data."""
    twin = rows.get(row.run.twin or "")
    if twin is None or not row.values or not twin.values:
        return row
    if row.more.get("data") != twin.more.get("data"):
        notes.append(f"{row.run.name} and its dense twin {twin.run.name} were trained on different data: no ratio.")
        return row
    ratios, differences = {}, {}
    for key in row.values.keys() & twin.values.keys():
        if row.scored.get(key) != twin.scored.get(key):
            what = "validated on different tokens" if key.startswith("val/") else "scored on different documents"
            notes.append(f"{row.run.name} and its dense twin were {what} ({key}): they are not compared.")
        elif _is_perplexity(key):
            ratios[key] = row.values[key] / twin.values[key]
        else:
            differences[key] = row.values[key] - twin.values[key]
    return dataclasses.replace(row, ratios=ratios, differences=differences)


def _is_perplexity(key: str) -> bool:
    metric = key.partition("@")[0].rpartition("/")[2]
    return metric == "ppl" or metric.endswith("perplexity")


def _more(sweep_run: SweepRun, run: Run) -> dict[str, Any]:
    points = math.ceil(len(run.training) / 10)
    losses = [value for line in run.training[-points:] if (value := number(line, "loss/out")) is not None]
    speeds = [value for line in run.training[1:] if (value := number(line, "speed/tokens_per_second")) is not None]
    last = run.validation[-1] if run.validation else {}
    return {
        "parameters": run.recorded("n_parameters"),
        "train_loss": statistics.fmean(losses) if points and losses else None,
        "validated_step": last.get("global_step"),
        "alpha": number(last, "val/alpha"),
        "l0_mean": number(last, "topk/l0_mean"),
        "dead": number(last, "topk/dead"),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "data": run.short_hash("data_fingerprint"),
        "tokenizer": run.short_hash("tokenizer_sha256"),
        "checkpoint": None if sweep_run.checkpoint_sha256 is None else sweep_run.checkpoint_sha256[:12],
        "device": run.recorded("device"),
        "ranks": run.recorded("ranks"),
        "torch": run.recorded("versions.torch"),
    }
