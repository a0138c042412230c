"""A sweep's report: the planned runs with their states, given to `topklm.report.sweeps`."""

from __future__ import annotations

from pathlib import Path

from topklm.checkpoint import list_checkpoints
from topklm.checkpoint.integrity import checkpoint_hash
from topklm.errors import ConfigError
from topklm.launch.config import SweepConfig
from topklm.launch.plan import PlannedRun, plan_runs, swept_keys
from topklm.launch.state import contradictions, state_of
from topklm.launch.sweep import ranks_of
from topklm.report.result import Result
from topklm.report.sweeps import SweepRun, write_sweep


def report(config: SweepConfig) -> tuple[Result, list[Path]]:
    """Write what came of a sweep so far; returns the result and its files. Unfinished runs are shown as such.

    Raises `ConfigError` if a run is there with another configuration, whose figures these would be.
    """
    runs = plan_runs(config)
    if problems := contradictions(runs, ranks_of(config)):
        raise ConfigError(problems)
    return write_sweep(
        [_with_state(run) for run in runs],
        Path(config.out or Path(config.dump_dir) / "report"),
        name=config.name,
        title=config.title or config.name,
        swept=swept_keys(config),
        x=config.figures.x,
        log_x=config.figures.log_x,
    )


def _with_state(run: PlannedRun) -> SweepRun:
    state = state_of(run)
    found = list_checkpoints(run.config.checkpoint_dir)
    try:
        digest = checkpoint_hash(found[-1]) if found else None
    except OSError:
        digest = None
    return SweepRun(
        name=run.name,
        path=run.dump_dir,
        swept=run.swept,
        seed=run.seed,
        is_dense=run.is_dense,
        twin=run.twin,
        steps=run.config.steps,
        step=state.step,
        state=state.state,
        reason=state.reason,
        checkpoint_sha256=digest,
    )
