"""What an evaluation found, figure by figure, and the same figure unit by unit for a paired comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from topklm.report.evals.pairs import Units
from topklm.report.evals.read import Evaluation, Sample

Scale = Literal["mean", "perplexity", "bits"]
HELD_OUT = "val"
"""Name of the held-out text where the tasks stand."""
PER_TOKEN = ("ppl", "loss", "token_perplexity")
"""Metrics that are per token, and so cannot be compared between tokenizers."""
_PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity", "token_perplexity")
_IDENTITY = ("doc_id", "doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class Column:
    """One figure that models are compared by. Equal columns are the same measurement in the same setting."""

    task: str
    """`val`, `val/<source>`, or a task of the harness."""
    metric: str
    """Its name there: ppl, bpb, acc, word_perplexity, ..."""
    setting: str
    """The context in tokens and whatever else makes it another measurement: 256, 256-stride64, 256 5-shot."""
    scale: Scale = field(compare=False)
    """mean: a mean score; perplexity: exp of nats per word, token or byte; bits: bits per byte."""
    higher_is_better: bool = field(compare=False, default=False)
    """Whether a larger value is a better one."""

    @property
    def key(self) -> str:
        return f"{self.task}/{self.metric}@{self.setting}"

    @property
    def title(self) -> str:
        return f"{self.task} {self.metric.replace('_', ' ')} @{self.setting}"


@dataclass(frozen=True)
class Cell:
    """One model's value of a figure."""

    value: float
    stderr: float | None
    """Standard error; None where none is known."""
    n: int | None
    """Documents that it is over."""
    chance: float | None = None
    """What guessing would give; None where there is no such level."""
    near_chance: bool = False
    """Within two standard errors of it."""


def cells(evaluation: Evaluation) -> dict[Column, Cell]:
    """Everything that was measured, the held-out text first."""
    return dict(_held_out(evaluation)) | dict(_tasks(evaluation))


def units(evaluation: Evaluation, column: Column) -> Units | None:
    """A figure unit by unit; None if its log was not kept, or does not give the figure."""
    found = _documents(evaluation, column) if _is_held_out(column) else _samples(evaluation, column)
    if found is None or not len(found.above):
        return None
    value = math.exp(found.ratio) if column.scale == "perplexity" else found.ratio
    reported = cells(evaluation)[column].value
    return found if math.isclose(value, reported, rel_tol=1e-6, abs_tol=1e-9) else None


def _is_held_out(column: Column) -> bool:
    return column.task == HELD_OUT or column.task.startswith(f"{HELD_OUT}/")


def _held_out(evaluation: Evaluation) -> Iterator[tuple[Column, Cell]]:
    for view, content in (evaluation.validation or {}).get("views", {}).items():
        for source, row in content["sources"].items():
            task = HELD_OUT if source == "*" else f"{HELD_OUT}/{source}"
            for metric, scale in (("ppl", "perplexity"), ("bpb", "bits")):
                column = Column(task, metric, view, "perplexity" if scale == "perplexity" else "bits")
                if row[metric] is not None:
                    yield column, Cell(row[metric], row[f"{metric}_stderr"], row["documents"])


def _documents(evaluation: Evaluation, column: Column) -> Units | None:
    lines = evaluation.documents(column.setting)
    if lines is None:
        return None
    if column.task != HELD_OUT:
        lines = [line for line in lines if f"{HELD_OUT}/{line['source']}" == column.task]
    identities = [(line["source"], line["document"], line["hash"], line["tokens"]) for line in lines]
    above, below = ("nats", "tokens") if column.metric == "ppl" else ("text_nats", "bytes")
    unit = 1.0 if column.metric == "ppl" else math.log(2)
    return Units(
        identities, np.array([line[above] for line in lines]) / unit, np.array([float(line[below]) for line in lines])
    )


def _tasks(evaluation: Evaluation) -> Iterator[tuple[Column, Cell]]:
    harness = evaluation.harness or {}
    for task, metrics in harness.get("results", {}).items():
        shots = harness.get("n-shot", {}).get(task) or 0
        setting = f"{evaluation.provenance['context']}{f' {shots}-shot' if shots else ''}"
        better = harness.get("higher_is_better", {}).get(task) or {}
        chance = harness.get("chance", {}).get(task)
        for key, value in metrics.items():
            name, _, filter_ = key.partition(",")
            if not filter_ or name.endswith("_stderr") or _number(value) is None:
                continue
            scale: Scale = "perplexity" if name in _PERPLEXITIES else "bits" if name == "bits_per_byte" else "mean"
            label = name if filter_ == "none" else f"{name} {filter_}"
            column = Column(task, label, setting, scale, bool(better.get(name, scale == "mean")))
            yield (
                column,
                Cell(
                    float(value),
                    _number(metrics.get(f"{name}_stderr,{filter_}")),
                    metrics.get("sample_len"),
                    chance if name.startswith("acc") else None,
                    key in harness.get("near_chance", {}).get(task, []),
                ),
            )


def _samples(evaluation: Evaluation, column: Column) -> Units | None:
    lines = evaluation.samples(column.task)
    name, _, filter_ = column.metric.partition(" ")
    lines = [line for line in lines or () if line.get("filter", "none") == (filter_ or "none") and name in line]
    pairs = [_value(line[name], column.scale) for line in lines]
    if not pairs or None in pairs:
        return None
    above, below = np.array(pairs, np.float64).T
    return Units([tuple(line.get(key) for key in _IDENTITY) for line in lines], above, below)


def _value(value: Any, scale: Scale) -> tuple[float, float] | None:
    """(what is summed, what it is per) of one sample's score; None for a score of another form.

    The harness keeps the log-likelihood for a perplexity, and with it the number of words, bytes or tokens.
    """
    if isinstance(value, list | tuple):
        if scale == "mean" or len(value) != 2:
            return None
        log_p, size = float(value[0]), float(value[1])
        return -log_p / (math.log(2) if scale == "bits" else 1.0), size
    if not isinstance(value, int | float):
        return None
    return (float(value) if scale == "mean" else -float(value)), 1.0


def _number(value: Any) -> float | None:
    """A number that is there and is one; the harness writes "N/A" for a standard error that it does not know."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def documents_left_out(evaluation: Evaluation) -> dict[str, tuple[int, int]]:
    """(evaluated, all) documents of the tasks that were not evaluated as a whole."""
    counts: dict[str, Sample] = (evaluation.harness or {}).get("n-samples", {})
    return {t: (n["effective"], n["original"]) for t, n in counts.items() if n["effective"] < n["original"]}
