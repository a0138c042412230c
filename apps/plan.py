"""What a training run needs, before it runs: memory per GPU by part, time, checkpoints, and what would make it fit.

    python -m apps.plan config=configs/paper/topk_d2048_l24.yaml gpus=8 gpu=h200
    python -m apps.plan config=FILE gpus=1 gpu=a100-40 data.batch_size=8 vocab_size=32000
    python -m apps.plan config=FILE nodes=4 mfu=0.4 out=plans/mine

Every key of the training configuration may be given. Neither data nor a GPU is needed. Exit codes: 0 it fits, 1 it
does not, 2 wrong configuration. See docs/plan.md.
"""

from __future__ import annotations

if __package__ != "apps":
    raise SystemExit("start it from the repository's root: python -m apps.plan config=FILE")

from pathlib import Path

from apps._program import run, say
from topklm.budget import PlanConfig


def main(config: PlanConfig) -> int:
    from rich.console import Console

    from topklm.budget import make_plan, page
    from topklm.report.budget import memory_drawing
    from topklm.report.result import Result, write_result
    from topklm.report.table import grid

    plan = make_plan(config)
    said, tables = page.statements(plan), page.tables(plan)
    console = Console()
    if not console.is_terminal:  # what is written to a file is not cut to the columns of a terminal that is not there
        console = Console(width=140)
    for table in tables.values():
        console.print(grid(table))
    written = []
    if config.out is not None:
        bars = {
            mode.name: mode.peak.in_gib() | {"slack and CUDA": (mode.needed - mode.peak.total) / 2**30}
            for mode in plan.modes
        }
        provenance = page.provenance(plan)
        drawing = memory_drawing(plan.name, bars, plan.gpu.memory / 2**30, provenance)
        result = Result(
            kind="plan", title=f"Plan: {plan.name}", statements=said, provenance=provenance, tables=tables,
            drawings={"memory": drawing}, data=page.data(plan),
        )  # fmt: skip
        written = write_result(result, Path(config.out))
    say(said, written)
    return 0 if plan.fits else 1


if __name__ == "__main__":
    run(main, PlanConfig, "plan", __doc__ or "")
