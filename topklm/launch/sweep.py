"""A sweep from its configuration to trained runs."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from topklm.config import save_config, to_dict
from topklm.errors import EXIT_PREEMPTED
from topklm.launch.attempt import Place, command
from topklm.launch.check import check_runs
from topklm.launch.config import SweepConfig
from topklm.launch.estimate import size_of
from topklm.launch.local import places, train_here
from topklm.launch.plan import PlannedRun, plan_runs, swept_keys
from topklm.launch.progress import SweepProgress
from topklm.launch.slurm import submit
from topklm.launch.state import RunState, state_of

log = logging.getLogger("topklm.launch")

INDEX = "sweep.json"
"""What the runs are, and the command that trains each of them alone: in the directory of the sweep."""


def run_sweep(config: SweepConfig) -> int:
    """Train every run of a sweep that is not finished; returns the exit code.

    0: all are finished, or were given to SLURM; 1: some failed, the log says which and why; 75: stopped by a signal
    after the runs saved. The same call again goes on. Raises `ConfigError` with everything that is wrong with any run
    before the first one starts.
    """
    runs = plan_runs(config)
    check_runs(runs, ranks_of(config))
    place = place_of(config)
    write_index(config, runs, place)
    states = {run.name: state_of(run) for run in runs}
    wanted = [run for run in runs if states[run.name].state != "finished"]
    log.info("%s: %s", config.name, summary(states))
    if not wanted:
        return 0
    if config.slurm is not None:
        submit(wanted, config)
        return 0
    work = {run.name: size_of(run, ranks_of(config)).flops / run.config.steps for run in runs}
    with SweepProgress(runs, {name: state.step for name, state in states.items()}, work) as progress:
        outcomes, signum = train_here(wanted, config, progress)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    for outcome in failed:
        log.error("%s: %s; its log: %s", outcome.run.name, outcome.reason, outcome.run.dump_dir)
    if failed:
        log.error("%d of %d runs failed; the same command tries them again", len(failed), len(runs))
        return 1
    if signum or any(outcome.state == "stopped" for outcome in outcomes):
        log.warning("stopped; the same command goes on")
        return EXIT_PREEMPTED
    return 0


def ranks_of(config: SweepConfig) -> int:
    """Processes of each run."""
    return max(1, config.gpus_per_run) * (config.slurm.nodes if config.slurm else 1)


def place_of(config: SweepConfig) -> Place:
    """What a run gets when it is trained alone. Raises `ConfigError` if there are too few GPUs here."""
    if config.slurm is not None:
        return Place(gpus=config.gpus_per_run, nodes=config.slurm.nodes, rendezvous="HOST:PORT")
    # Which GPUs it gets here is nothing that it needs elsewhere; how many threads is part of its rounding.
    first = places(config)[0]
    return Place(gpus=first.gpus, threads=first.threads)


def write_index(config: SweepConfig, runs: Sequence[PlannedRun], place: Place) -> Path:
    """Write sweep.yaml, sweep.json and the configuration of every run; returns the path of sweep.json."""
    directory = Path(config.dump_dir)
    directory.mkdir(parents=True, exist_ok=True)
    save_config(config, directory / "sweep.yaml")
    for run in runs:
        run.dump_dir.mkdir(parents=True, exist_ok=True)
        save_config(run.config, run.yaml)
    content = {
        "format_version": 1,
        "name": config.name,
        "swept": swept_keys(config),
        "runs": [
            {
                "name": run.name, "dump_dir": str(run.dump_dir), "swept": run.swept, "seed": run.seed, "twin": run.twin,
                "command": command(run, place),
            }
            for run in runs
        ],
    }  # fmt: skip
    part = directory / f".{INDEX}.{uuid.uuid4().hex}.tmp"  # another machine may write its own
    part.write_text(json.dumps(content, indent=1, default=to_dict) + "\n")
    part.replace(directory / INDEX)
    return directory / INDEX


def summary(states: dict[str, RunState]) -> str:
    """How many runs are how far."""
    names = {
        "finished": "finished",
        "partial": "to go on",
        "failed": "failed before",
        "busy": "being trained",
        "new": "new",
    }
    counts = {state: sum(each.state == state for each in states.values()) for state in names}
    return f"{len(states)} runs: " + ", ".join(f"{n} {names[state]}" for state, n in counts.items() if n)
