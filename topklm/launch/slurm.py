"""Giving the runs of a sweep to SLURM: an array of jobs, through submitit."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topklm.errors import ConfigError, Problem, TopklmError
from topklm.launch.attempt import LOG, Attempt, Place
from topklm.launch.config import SlurmConfig, SweepConfig
from topklm.launch.plan import PlannedRun
from topklm.launch.state import is_locked
from topklm.optional import require

log = logging.getLogger("topklm.launch")

JOBS = "jobs.json"
"""Which job trains which run: in the directory slurm/ of the sweep."""
_PORT_FROM, _PORTS = 20_000, 20_000


class RunFailedError(TopklmError):
    """A run that a job trained has failed; the job fails with it."""


class Job:
    """What one job does: train one run. On each of its nodes it starts the same command.

    submitit calls it in the job, and `checkpoint` shortly before the time limit or at a preemption; what that returns
    is queued again.
    """

    def __init__(self, run: PlannedRun, gpus: int, nodes: int):
        self.run, self.gpus, self.nodes = run, gpus, nodes
        self._attempt: Attempt | None = None

    def __call__(self) -> str:
        submitit = require("submitit", "topklm[slurm]")
        place = Place(gpus=self.gpus, nodes=self.nodes)
        if self.nodes > 1:
            job = submitit.JobEnvironment()
            port = _PORT_FROM + int("".join(c for c in job.job_id if c.isdigit())) % _PORTS
            place = Place(gpus=self.gpus, nodes=self.nodes, rendezvous=f"{job.hostnames[0]}:{port}", job=job.job_id)
        self._attempt = Attempt(self.run, place)
        outcome = self._attempt.wait()
        if outcome.state == "failed":
            lines = "".join(f"\n    {line}" for line in outcome.tail)
            raise RunFailedError(
                f"{self.run.name} failed: {outcome.reason}; the end of {self.run.dump_dir / LOG}:{lines}"
            )
        return outcome.state

    def checkpoint(self) -> Any:
        """Let the run save, and queue it again."""
        submitit = require("submitit", "topklm[slurm]")
        if self._attempt is not None:
            self._attempt.stop_and_wait()
        return submitit.helpers.DelayedSubmission(Job(self.run, self.gpus, self.nodes))


def submit(runs: Sequence[PlannedRun], config: SweepConfig) -> dict[str, str]:
    """Queue the runs that no job and no process has; returns the job of each run by name.

    Raises `ConfigError` if submitit or SLURM is missing.
    """
    settings = config.slurm or SlurmConfig()
    submitit = require("submitit", "topklm[slurm]")
    folder = Path(config.dump_dir) / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = _read_jobs(folder / JOBS)
    wanted = []
    for run in runs:
        if run.name in jobs and settings.cluster == "slurm" and _is_alive(submitit, folder, jobs[run.name]):
            log.info("%s: job %s has it", run.name, jobs[run.name])
        elif is_locked(run.dump_dir):
            log.info("%s: is being trained", run.name)
        else:
            wanted.append(run)
    if wanted:
        executor = _executor(submitit, config, settings, folder)
        queued = executor.submit_array([Job(run, config.gpus_per_run, settings.nodes) for run in wanted])
        for run, job in zip(wanted, queued, strict=True):
            jobs[run.name] = job.job_id
            log.info("%s: job %s", run.name, job.job_id)
        part = folder / f"{JOBS}.tmp"
        part.write_text(json.dumps(jobs, indent=1) + "\n")
        part.replace(folder / JOBS)
    return {run.name: jobs[run.name] for run in runs if run.name in jobs}


def parameters(config: SweepConfig, settings: SlurmConfig) -> dict[str, Any]:
    """What submitit's AutoExecutor is told; null is left out."""
    wanted = {
        "name": config.name,
        "timeout_min": settings.time_minutes,
        "nodes": settings.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": config.gpus_per_run or None,
        "cpus_per_task": settings.cpus_per_task,
        "mem_gb": settings.mem_gb,
        "slurm_partition": settings.partition,
        "slurm_account": settings.account,
        "slurm_qos": settings.qos,
        "slurm_constraint": settings.constraint,
        "slurm_array_parallelism": settings.array_parallelism,
        "slurm_signal_delay_s": settings.signal_seconds,
        "slurm_setup": settings.setup or None,
        "slurm_additional_parameters": settings.more or None,
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _executor(submitit: Any, config: SweepConfig, settings: SlurmConfig, folder: Path) -> Any:
    limits = {f"{settings.cluster}_max_num_timeout": settings.max_requeues}
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=settings.cluster, **limits)
    except RuntimeError as error:
        problem = f"SLURM cannot be reached ({error}); start it on a cluster's login node, or with slurm=null"
        raise ConfigError([Problem("slurm", problem)]) from error
    executor.update_parameters(**parameters(config, settings))
    return executor


def _is_alive(submitit: Any, folder: Path, job: str) -> bool:
    """Whether a job of an earlier submission is waiting or running."""
    return not submitit.SlurmJob(folder=folder / "%j", job_id=job).done(force_check=True)


def _read_jobs(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
