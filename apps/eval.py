"""Evaluate checkpoints: tasks of lm-evaluation-harness, and perplexity on held-out text.

    python -m apps.eval config=configs/eval/paper.yaml ckpt=runs/paper/topk_d1024_l8
    torchrun --nproc-per-node 8 -m apps.eval config=configs/eval/paper.yaml ckpts=[runs/a,runs/b]
    python -m apps.eval compare runs/a runs/b [out=report/evaluation]

Results go to evals/STEP of the run, task by task; the same command again goes on where it was. `compare` makes a table
of evaluations, with standard errors and the paired difference of twins. Exit codes: 0 done, 2 wrong configuration,
3 data, or some tasks could not run (the others have), 5 checkpoint. See docs/evaluation.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.eval config=FILE")

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from apps._program import bare_paths, job, run, say
from topklm.errors import DataError, Problem
from topklm.evaluate.app_config import EvalAppConfig


def main(config: EvalAppConfig) -> int:
    from rich.console import Console

    from topklm.evaluate.checkpoints import evaluate_checkpoints
    from topklm.evaluate.summary import summary_table

    with job(config.device, config.timeout_minutes, nccl=True) as ranks:
        evaluated = evaluate_checkpoints(config, ranks)
    if not ranks.is_first:
        return 0
    console = Console()
    for one in evaluated:
        # What is written to a file is not cut to the 80 columns of a terminal that is not there.
        console.print(summary_table(one), width=None if console.is_terminal else 120, soft_wrap=False)
    failed = {name: reason for one in evaluated for name, reason in one.failed.items()}
    for name, reason in failed.items():
        print(f"eval: {name} was not run: {reason}", file=sys.stderr)
    return DataError.exit_code if failed else 0


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which evaluations are compared, and where to."""

    runs: list[str] = field(default_factory=list)
    """Runs (their newest evaluation) or directories of evaluations (evals/STEP), in the order of the table."""
    out: str = "report/evaluation"
    """Directory of the tables."""

    def problems(self) -> Iterator[Problem]:
        if not self.runs:
            yield Problem("runs", "is empty; name the runs: python -m apps.eval compare RUN RUN ...")


def compare(config: CompareConfig) -> None:
    from rich.console import Console

    from topklm.report.evals import compare_evaluations, rich_tables, write_comparison

    comparison = compare_evaluations([Path(path) for path in config.runs])
    console = Console()
    console.print(rich_tables(comparison))
    written = write_comparison(comparison, Path(config.out))
    say([], written)


if __name__ == "__main__":
    if sys.argv[1:2] == ["compare"]:
        runs, others = bare_paths(sys.argv[2:])
        run(compare, CompareConfig, "eval compare", __doc__ or "", [*others, *([f"runs={runs!r}"] if runs else [])])
    run(main, EvalAppConfig, "eval", __doc__ or "")
