"""Train many runs that differ in some settings, and put what came of them into tables and figures.

    python -m apps.sweep config=configs/sweeps/k.yaml --dry-run
    python -m apps.sweep config=configs/sweeps/k.yaml
    python -m apps.sweep report config=configs/sweeps/k.yaml

The same command again goes on: what is finished is skipped, what was interrupted resumes. Each run is an ordinary
one, in its own directory with its own run.yaml. Exit codes: 0 done, 1 some runs failed (the others are trained), 2
wrong configuration, 75 stopped by a signal after the runs saved. See docs/sweeps.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.sweep config=FILE")

import sys

from apps._program import run, say
from topklm.launch import SweepConfig, run_sweep


def main(config: SweepConfig) -> int:
    if config.dry_run:
        dry_run(config)
        return 0
    return run_sweep(config)


def dry_run(config: SweepConfig) -> None:
    """Print the runs with their sizes and states."""
    from rich.console import Console

    from topklm.launch.listing import listing

    console = Console()
    if not console.is_terminal:  # what is written to a file is not cut to the columns of a terminal that is not there
        console = Console(width=160)
    console.print(*listing(config), sep="\n", highlight=False, markup=False)


def report(config: SweepConfig) -> None:
    """Write what came of the sweep so far."""
    from topklm.launch.outcome import report as write_report

    result, written = write_report(config)
    say(result.statements, written)


if __name__ == "__main__":
    if sys.argv[1:2] == ["report"]:
        run(report, SweepConfig, "sweep report", __doc__ or "", sys.argv[2:])
    args = ["dry_run=true" if arg == "--dry-run" else arg for arg in sys.argv[1:]]
    run(main, SweepConfig, "sweep", __doc__ or "", args)
