"""Compare runs, and show what their neurons respond to:

    python -m apps.report runs=[runs/quickstart/dense,runs/quickstart/topk] out=report/quickstart
    python -m apps.report bundles=[runs/quickstart/dense/bundles,runs/quickstart/topk/bundles] out=report/neurons

Of runs it reads config.yaml and metrics.jsonl (finished, interrupted or still training), prints a table and writes it
as Markdown and CSV, with figures of training and of the TopK's health. Of bundles it reads what apps.collect and
apps.entropy wrote, and makes figures, tables and index.html, a page that stands alone; results=[...] adds what further
analyses wrote (steering, tracing, ...). See docs/report.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.report config=FILE")

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apps._program import run, say
from topklm.errors import ConfigError, Problem
from topklm.report import compare, read_runs, write_report


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which runs are compared, of which bundles neurons are shown, and where to."""

    runs: list[str] = field(default_factory=list)
    """Directories of runs (their dump_dir), in the order of the table."""
    bundles: list[str] = field(default_factory=list)
    """Bundles with entropies, or directories of such bundles; models, their controls and several checkpoints alike."""
    results: list[str] = field(default_factory=list)
    """Directories of further analyses of these models (steering, tracing, ...): sections of the page on neurons."""
    preset: Literal["recommended", "paper"] = "recommended"
    """Which of the bundles' entropies."""
    force: bool = False
    """Show bundles that differ in corpus, tokens, tokenizer or settings side by side; the reasons stand on the page."""
    out: str = "report"
    """Directory of the report; an earlier report in it is replaced."""

    def problems(self) -> Iterator[Problem]:
        if not self.runs and not self.bundles:
            yield Problem("runs", "is empty; give the directories of the runs to compare, runs=[a,b], or bundles=[c,d]")
        if self.results and not self.bundles:
            yield Problem(
                "results", "are shown on the page on neurons: give the bundles of their models too, bundles=[c,d]"
            )
        if not self.out:
            yield Problem("out", "is empty; give the directory of the report")


def main(config: ReportConfig) -> None:
    from rich.console import Console

    from topklm.report.neurons import over_seeds, read_measured, seed_statements, verdicts, write_neurons
    from topklm.report.result import read_results
    from topklm.report.tables import rich_tables

    runs, measured, results, problems = [], [], [], []
    try:
        runs = read_runs(config.runs)
    except ConfigError as error:
        problems += error.problems
    try:
        measured = read_measured(config.bundles, config.preset, config.force)
    except ConfigError as error:
        problems += error.problems
    try:
        results = read_results(config.results)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    console, out, written = Console(), Path(config.out), []
    if runs:
        comparison = compare(runs)
        console.print(rich_tables(comparison))
        written += write_report(comparison, runs, out)
    if measured:
        written += write_neurons(measured, out, results)
        say([*seed_statements(over_seeds(measured)), *verdicts(measured)])
    say([], written)


if __name__ == "__main__":
    run(main, ReportConfig, "report", __doc__ or "")
