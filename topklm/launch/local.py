"""Training the runs of a sweep on this machine, one after the other or some at a time."""

from __future__ import annotations

import logging
import math
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
from topklm.launch.state import is_locked, state_of

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
    crew = _Crew(runs, places(config), progress)
    with _Signals() as signals:
        try:
            while crew.going or (crew.waiting and not signals.seen):
                crew.collect()
                if not signals.seen:
                    crew.begin()
                if signals.pending():
                    crew.stop(signal.SIGTERM if signals.seen == 1 else signal.SIGKILL)
                progress.update()
                time.sleep(_POLL_SECONDS)
        except BaseException:  # a full disk, say: what runs must not be left alone
            crew.stop(signal.SIGTERM)
            raise
    return crew.outcomes, signals.number


class _Crew:
    """The runs that wait, those that are trained, and the places for more."""

    def __init__(self, runs: Sequence[PlannedRun], free: list[Place], progress: SweepProgress):
        self.waiting = deque(runs)
        self.going: dict[Attempt, Place] = {}
        self.outcomes: list[Outcome] = []
        self._free, self._progress = free, progress
        self._looked: dict[str, float] = {}

    def collect(self) -> None:
        """Take note of the attempts that have ended."""
        for attempt in list(self.going):
            if (outcome := attempt.poll()) is not None:
                self._free.append(self.going.pop(attempt))
                # 2 is apps.train's own, 1 torchrun's: between a look at the lock and taking it lie the imports.
                if outcome.code in (1, 2) and is_locked(outcome.run.dump_dir):
                    self._progress.ended(outcome.run, "another process was faster")
                    self.waiting.append(outcome.run)
                    continue
                self.outcomes.append(outcome)
                self._progress.ended(outcome.run, outcome.state, outcome.reason)
                if outcome.state == "failed":
                    lines = "".join(f"\n    {line}" for line in outcome.tail)
                    log_file = outcome.run.dump_dir / LOG
                    log.error("%s failed: %s; the end of %s:%s", outcome.run.name, outcome.reason, log_file, lines)

    def begin(self) -> None:
        """Start the next runs, as far as there are places; those of other processes are passed over for now."""
        for _ in range(len(self.waiting)):
            if not self._free:
                return
            run = self.waiting.popleft()
            if time.monotonic() < self._looked.get(run.name, -math.inf) + _PATIENCE_SECONDS:
                self.waiting.append(run)
                continue
            state = state_of(run)
            if state.state == "finished":  # another process has done it meanwhile
                self._progress.ended(run, "finished")
            elif state.state == "busy":
                if run.name not in self._looked:
                    log.warning("%s: another process is training it; it is waited for", run.name)
                self._looked[run.name] = time.monotonic()
                self.waiting.append(run)
            else:
                attempt = Attempt(run, self._free[0])
                self.going[attempt] = self._free.pop(0)
                self._progress.started(run, state.step)

    def stop(self, signum: int) -> None:
        """Send a signal to all that are trained."""
        for attempt in self.going:
            attempt.stop(signum)


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
        if signum == signal.SIGHUP and self.seen:  # the kernel and the shell each send one
            return
        self.seen += 1
        self.number = signum

    def pending(self) -> bool:
        """Whether one has come since the last call."""
        told, self._told = self._told, self.seen
        if told == self._told:
            return False
        log.warning("signal %d: %s", self.number, "the runs save and end" if self.seen == 1 else "the runs are killed")
        return True


def _devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
