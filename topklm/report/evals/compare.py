"""Evaluations side by side, and each TopK model against its dense twin on the same documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from topklm.errors import ConfigError, DataError, Problem, TopklmError
from topklm.report.evals.figures import PER_TOKEN, Cell, Column, cells, documents_left_out, units
from topklm.report.evals.pairs import Paired, paired
from topklm.report.evals.read import Evaluation, read_evaluation
from topklm.report.runs import Run
from topklm.report.twins import dense_twin, same_recipe, why_no_twin


@dataclass(frozen=True)
class EvalRow:
    """One model's evaluation."""

    evaluation: Evaluation
    run: Run
    """The run as far as the evaluation tells of it, under a name that no other row has."""
    cells: dict[Column, Cell]
    """What was measured, by column."""

    @property
    def step(self) -> int | None:
        """Optimizer steps of the evaluated weights."""
        return self.evaluation.provenance.get("step")

    @property
    def alpha(self) -> float | None:
        """The alpha that it was evaluated at; None for a dense model."""
        return self.evaluation.provenance.get("alpha")


@dataclass(frozen=True)
class Difference:
    """A TopK model less its dense twin, in one figure. `paired` is in nats for a perplexity: its exp is a ratio."""

    run: str
    twin: str
    column: Column
    paired: Paired
    near_chance: bool
    """Whether neither model's score differs from guessing: then a difference says nothing of the task."""


@dataclass(frozen=True)
class EvalComparison:
    """Rows in the order that they were given."""

    rows: list[EvalRow]
    columns: list[Column]
    """Every figure of any row, the held-out text first."""
    differences: list[Difference]
    """By row and column."""
    notes: list[str]
    """What a reader has to know, in sentences."""

    @property
    def main_columns(self) -> list[Column]:
        """What a table shows: all sources together; of a task with an accuracy that, and its perplexity."""
        with_accuracy = {column.task for column in self.columns if column.metric == "acc"}
        return [
            column
            for column in self.columns
            if not column.task.startswith("val/")
            and (column.task not in with_accuracy or column.metric in ("acc", "perplexity"))
        ]


def compare_evaluations(paths: Sequence[str | Path]) -> EvalComparison:
    """Compare the evaluations in `paths`: runs (their newest evaluation) or directories of evaluations.

    Raises `ConfigError` with every path that holds no whole evaluation.
    """
    evaluations: list[Evaluation] = []
    problems: list[Problem] = []
    for i, path in enumerate(paths):
        try:
            found = read_evaluation(Path(path))
        except TopklmError as error:
            problems.append(Problem(f"runs[{i}]", str(error)))
            continue
        if any(found.path.resolve() == other.path.resolve() for other in evaluations):
            problems.append(Problem(f"runs[{i}]", f"{path} is given twice"))
        evaluations.append(found)
    if problems:
        raise ConfigError(problems)
    notes: list[str] = []
    rows = _rows(evaluations)
    columns = _columns(rows, notes)
    _note_settings(rows, notes)
    differences = _differences(rows, columns, notes)
    return EvalComparison(rows, columns, differences, notes)


def _rows(evaluations: Sequence[Evaluation]) -> list[EvalRow]:
    runs = [_run(evaluation) for evaluation in evaluations]
    names = [run.name for run in runs]
    for attribute in ("step", "alpha"):  # what tells evaluations of one run apart
        count = Counter(names)
        names = [
            f"{name}, {attribute} {evaluation.provenance.get(attribute)}" if count[name] > 1 else name
            for name, evaluation in zip(names, evaluations, strict=True)
        ]
    count = Counter(names)
    names = [str(e.path) if count[name] > 1 else name for name, e in zip(names, evaluations, strict=True)]
    return [
        EvalRow(evaluation, Run(name, run.path, run.config, [], [], run.provenance), cells(evaluation))
        for name, run, evaluation in zip(names, runs, evaluations, strict=True)
    ]


def _run(evaluation: Evaluation) -> Run:
    provenance = evaluation.provenance
    config = provenance.get("run")
    if not isinstance(config, dict):
        raise DataError(f"{evaluation.path}: the provenance has no configuration of the run; evaluate it again")
    known = {key: provenance[key] for key in ("data_fingerprint", "tokenizer_sha256") if provenance.get(key)}
    name = str(config.get("name") or evaluation.path)
    return Run(name, evaluation.path, config, [], [], known)


def _columns(rows: Sequence[EvalRow], notes: list[str]) -> list[Column]:
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    columns.sort(key=lambda column: not column.task.startswith("val"))  # stable: the order of the tasks is kept
    tokenizers = {row.run.recorded("tokenizer_sha256") for row in rows}
    if len(tokenizers) > 1:
        shown = ", ".join(f"{row.run.name} {row.run.short_hash('tokenizer_sha256')}" for row in rows)
        notes.append(
            f"The models have different tokenizers ({shown}): a token is not the same amount of text for each, so "
            "perplexities per token are left out. Bits per byte, and perplexities per word and per byte, compare."
        )
        columns = [column for column in columns if column.metric not in PER_TOKEN]
    return columns


def _note_settings(rows: Sequence[EvalRow], notes: list[str]) -> None:
    """What makes figures in one column less comparable than they look."""
    for row in rows:
        if row.alpha:
            notes.append(f"{row.run.name} was evaluated at alpha {row.alpha:.3g}: not yet a pure TopK model.")
        for task, reason in ((row.evaluation.harness or {}).get("failed") or {}).items():
            notes.append(f"{row.run.name}: {task} was not evaluated: {reason}")
        for task, (n, total) in documents_left_out(row.evaluation).items():
            notes.append(f"{row.run.name}: {task} is over {n:,} of its {total:,} documents.")
    if len({row.run.recorded("tokenizer_sha256") for row in rows}) == 1:
        texts = [(row.evaluation.validation or {}).get("held_out", {}).get("fingerprint") for row in rows]
        if len({text for text in texts if text is not None}) > 1:
            notes.append("The models were validated on different held-out text: these figures do not compare.")
    for key, what in (("dtype", "dtypes"), ("bos", "BOS policies")):
        values = {row.evaluation.provenance.get(key) for row in rows if row.evaluation.harness is not None}
        if len(values) > 1:
            notes.append(f"The models were evaluated with different {what}: {', '.join(sorted(map(str, values)))}.")
    for one, other in combinations(rows, 2):
        shared = one.cells.keys() & other.cells.keys()
        if shared and all(one.cells[column].value == other.cells[column].value for column in shared):
            hashes = {row.evaluation.provenance.get("checkpoint_sha256") for row in (one, other)}
            same = len(hashes) == 1 and None not in hashes
            why = "they are the same checkpoint" if same else "is one of them a copy of the other?"
            notes.append(f"{one.run.name} and {other.run.name} have the same value in every figure: {why}.")
    if near := sorted({c.task for row in rows for c, cell in row.cells.items() if cell.near_chance}):
        notes.append(
            f"~ marks a score within two standard errors of guessing ({', '.join(near)}): it does not tell a model "
            "from one that has learnt nothing of the task."
        )


def _differences(rows: Sequence[EvalRow], columns: Sequence[Column], notes: list[str]) -> list[Difference]:
    differences = []
    for row in rows:
        if row.run.is_dense:
            continue
        # A run evaluated at several steps is several rows: only those at this step can be its twin.
        beside = [other for other in rows if other is not row and other.step == row.step]
        runs = [other.run for other in beside]
        unknown = [key for key in ("steps", "data") if row.run.setting(key) is None]
        twin = None if unknown else dense_twin(row.run, runs)
        if twin is None:
            reason = (
                f"how it was trained is not known ({', '.join(unknown)})" if unknown else why_no_twin(row.run, runs)
            )
            notes.append(f"{row.run.name} has no dense twin at step {row.step} here: {reason}.")
            continue
        if not same_recipe(row.run, twin):
            notes.append(f"{row.run.name} and its dense twin {twin.name} differ in seed or optimiser settings.")
        differences += _against(row, beside[runs.index(twin)], columns, notes)
    if differences:
        n = len(differences)
        notes.append(
            "Differences are TopK less dense on the same documents, ratios for perplexities, with 95 % confidence "
            f"intervals: if no model differed from its twin, about {n / 20:.2g} of these {n} would look different. "
            "They are about these trainings on other documents, not about other seeds."
        )
    return differences


def _against(row: EvalRow, twin: EvalRow, columns: Sequence[Column], notes: list[str]) -> list[Difference]:
    found: list[Difference] = []
    refused: dict[str, list[str]] = {}
    for column in columns:
        if column not in row.cells or column not in twin.cells:
            continue
        mine, its = units(row.evaluation, column), units(twin.evaluation, column)
        result = "there is no log by document (log_samples)" if mine is None or its is None else paired(mine, its)
        if isinstance(result, str):
            refused.setdefault(result, []).append(column.title)
        else:
            near = row.cells[column].near_chance and twin.cells[column].near_chance
            found.append(Difference(row.run.name, twin.run.name, column, result, near))
    for reason, titles in refused.items():
        notes.append(f"No difference of {row.run.name} and {twin.run.name} in {', '.join(titles)}: {reason}.")
    return found
