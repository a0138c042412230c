"""The runs of a sweep as a table: what they are, what they need, how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from topklm.launch.config import SweepConfig
from topklm.launch.estimate import Size, size_of, speed
from topklm.launch.plan import PlannedRun, plan_runs, swept_keys
from topklm.launch.progress import clock
from topklm.launch.state import RunState, contradictions, state_of
from topklm.launch.sweep import ranks_of, summary

if TYPE_CHECKING:
    from rich.table import Table


def listing(config: SweepConfig) -> list[Any]:
    """A rich table with a row per run, and sentences on the whole and on the estimates."""
    runs, ranks = plan_runs(config), ranks_of(config)
    sizes = {run.name: size_of(run, ranks) for run in runs}
    states = {run.name: state_of(run) for run in runs}
    flops_per_second, source = speed(runs, ranks, config.estimate)
    seconds = {name: size.flops / flops_per_second if flops_per_second else None for name, size in sizes.items()}
    left = [
        each * (1 - min(1.0, states[run.name].step / run.config.steps))
        for run in runs
        if (each := seconds[run.name]) is not None
    ]
    total = f"{sum(size.tokens for size in sizes.values()):,} tokens, {sum(s.flops for s in sizes.values()):.3g} FLOP"
    n = config.slurm.array_parallelism if config.slurm else config.max_parallel
    time = f", {clock(max(sum(left) / n, max(left)))} to go (h:mm:ss, {n} at a time)" if left else ""
    lines = [
        _table(config, runs, sizes, states, seconds),
        f"{summary(states)}; {total}{time}",
        f"Time: {source}. Memory: per device, weights, gradients, moments and roughly the activations; an estimate.",
    ]
    if not all(size.knows_vocabulary for size in sizes.values()):
        lines.append("The data are not prepared: parameters, memory and time are without embedding and head.")
    return [*lines, *(f"It would be refused: {problem}" for problem in contradictions(runs, ranks))]


def _table(
    config: SweepConfig,
    runs: list[PlannedRun],
    sizes: dict[str, Size],
    states: dict[str, RunState],
    seconds: dict[str, float | None],
) -> Table:
    from rich.table import Table

    table = Table(title=config.title or config.name, title_justify="left")
    keys = swept_keys(config)
    for title in ("run", *keys, "seed"):
        table.add_column(title, overflow="fold")
    for title in ("params (M)", "tokens (M)", "memory (GiB)", "time", "steps"):
        table.add_column(title, justify="right")
    table.add_column("state")
    for run in runs:
        size, state, needed = sizes[run.name], states[run.name], seconds[run.name]
        table.add_row(
            run.name,
            *(_value(run, key) for key in keys),
            str(run.seed),
            f"{size.parameters / 1e6:,.2f}",
            f"{size.tokens / 1e6:,.2f}",
            f"{size.memory / 2**30:,.2f}",
            "?" if needed is None else clock(needed),
            f"{state.step:,}/{run.config.steps:,}",
            state.state + (f": {state.reason}" if state.reason else ""),
        )
    return table


def _value(run: PlannedRun, key: str) -> str:
    return str(run.swept[key]) if key in run.swept else "-"
