"""Compare runs: `python -m apps.report runs=[runs/quickstart/dense,runs/quickstart/topk] out=report/quickstart`

Reads each run's config.yaml and metrics.jsonl (finished, interrupted or still training), prints a table and writes it
as Markdown and CSV, with figures of training and of the TopK's health as PNG and SVG. See docs/report.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.report config=FILE")

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apps._program import run
from topklm.errors import Problem
from topklm.report import compare, read_runs, write_report


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which runs are compared, and where to."""

    runs: list[str] = field(default_factory=list)
    """Directories of runs (their dump_dir), in the order of the table."""
    out: str = "report"
    """Directory of the report; an earlier report in it is replaced."""

    def problems(self) -> Iterator[Problem]:
        if not self.runs:
            yield Problem("runs", "is empty; give the directories of the runs to compare, runs=[a,b]")
        if not self.out:
            yield Problem("out", "is empty; give the directory of the report")


def main(config: ReportConfig) -> None:
    from rich.console import Console

    from topklm.report.tables import rich_tables

    runs = read_runs(config.runs)
    comparison = compare(runs)
    console = Console()
    console.print(rich_tables(comparison))
    written = write_report(comparison, runs, Path(config.out))
    console.print("written: " + ", ".join(map(str, written)), highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main, ReportConfig, "report", __doc__ or "")
