"""Training the runs of a sweep on this machine, one after the other or some at a time."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType

from topklm.errors import ConfigError, Problem
from topklm.launch.attempt import LOG, Attempt, Outcome, Place
from topklm.launch.config import SweepConfig
from topklm.launch.plan import PlannedRun
from topklm.launch.progress import SweepProgress
from topklm.launch.state import state_of

log = logging.getLogger("topklm.launch")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
"""How often a run that another process trains is looked at."""


def places(config: SweepConfig) -> list[Place]:
    """What each of the runs that are trained at a time gets. Raises `ConfigError` if there are too few GPUs."""
    n, gpus = config.max_parallel, config.gpus_per_run
    if gpus == 0:
        # Several processes that take all cores each are slower than one after the other.
        several = n > 1 and "OMP_NUM_THREADS" not in os.environ
        return [Place(threads=max(1, (os.cpu_count() or 1) // n) if several else None)] * n
    devices = _devices()
    if n * gpus > len(devices):
        problem = f"{n} runs at a time with {gpus} GPUs each need {n * gpus}; there are {len(devices)}"
        raise ConfigError([Problem("gpus_per_run", f"{problem}; change it or max_parallel")])
    return [Place(gpus=gpus, devices=tuple(devices[i * gpus : (i + 1) * gpus])) for i in range(n)]


def train_here(runs: Sequence[PlannedRun], config: SweepConfig, progress: SweepProgress) -> tuple[list[Outcome], int]:
    """Train what is not finished; returns (how each attempt ended, the signal that stopped it all or 0).

    A run that fails does not stop the others. A run that another process is training is waited for. SIGINT, SIGTERM,
    SIGHUP and SIGUSR1/2 are passed on as SIGTERM, upon which the runs save; a second one ends them at once.
    """
    waiting = deque(runs)
    free = places(config)
    going: dict[Attempt, Place] = {}
    outcomes: list[Outcome] = []
    looked: dict[str, float] = {}
    with _Signals() as signals:
        while going or (waiting and not signals.seen):
            for attempt in list(going):
                if (outcome := attempt.poll()) is not None:
                    free.append(going.pop(attempt))
                    outcomes.append(outcome)
                    progress.ended(outcome.run, outcome.state, outcome.reason)
                    _tell(outcome)
            for _ in range(len(waiting) if free and not signals.seen else 0):
                run = waiting.popleft()
                if time.monotonic() < looked.get(run.name, 0.0) + _PATIENCE_SECONDS:
                    waiting.append(run)
                    continue
                state = state_of(run)
                if state.state == "finished":  # another process has done it meanwhile
                    progress.ended(run, "finished")
                elif state.state == "busy":
                    if run.name not in looked:
                        log.warning("%s: another process is training it; it is waited for", run.name)
                    looked[run.name] = time.monotonic()
                    waiting.append(run)
                elif free:
                    place = free.pop(0)
                    going[Attempt(run, place)] = place
                    progress.started(run, state.step)
                else:
                    waiting.appendleft(run)
                    break
            if signals.pending():
                for attempt in going:
                    attempt.stop(signal.SIGTERM if signals.seen == 1 else signal.SIGKILL)
            progress.update()
            time.sleep(_POLL_SECONDS)
    return outcomes, signals.number


class _Signals:
    """Counts the signals that ask for an end. A context manager; the former handlers return at its end."""

    def __init__(self) -> None:
        self.seen = 0
        self.number = 0
        self._told = 0

    def __enter__(self) -> _Signals:
        self._former = {signum: signal.signal(signum, self._note) for signum in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.seen += 1
        self.number = signum

    def pending(self) -> bool:
        """Whether one has come since the last call."""
        told, self._told = self._told, self.seen
        if told == self._told:
            return False
        log.warning("signal %d: %s", self.number, "the runs save and end" if self.seen == 1 else "the runs are killed")
        return True


def _tell(outcome: Outcome) -> None:
    run = outcome.run
    if outcome.state == "failed":
        lines = "".join(f"\n    {line}" for line in outcome.tail)
        log.error("%s failed: %s; the end of %s:%s", run.name, outcome.reason, run.dump_dir / LOG, lines)


def _devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
