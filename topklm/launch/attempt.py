"""One attempt at one run: the process of `python -m apps.train`, what it wrote, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from topklm.config import save_config
from topklm.errors import EXIT_PREEMPTED
from topklm.launch.plan import PlannedRun
from topklm.launch.state import OUTCOME

LOG = "output.log"
"""What the run's process wrote, all attempts after each other, in the run's directory."""
MEANING = {
    2: "wrong configuration",
    3: "data",
    4: "a loss or gradient was not finite",
    5: "checkpoint",
    8: "the disk: full, read-only or gone",
    9: "another rank was lost",
    EXIT_PREEMPTED: "stopped by a signal after saving",
}
_POLL_SECONDS = 0.2
_SHOWN = 6
"""Last lines of the log that tell of a failure."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What of this machine a run gets."""

    gpus: int = 0
    """Processes, one per GPU; 0: one process, which finds its device by itself."""
    devices: tuple[str, ...] = ()
    """Its GPUs (CUDA_VISIBLE_DEVICES); empty: as it stands in the environment."""
    threads: int | None = None
    """OMP_NUM_THREADS; None: as it stands in the environment."""
    nodes: int = 1
    """Nodes of the run, all of which start this command."""
    rendezvous: str = ""
    """host:port where the processes of several nodes meet."""
    job: str = ""
    """What tells this meeting from others: the job's number."""

    @property
    def environment(self) -> dict[str, str]:
        """Variables that are set for the run."""
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**threads, **({"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {})}


def arguments(run: PlannedRun, place: Place) -> list[str]:
    """What follows `python -m` to train a run."""
    train = ["apps.train", f"config={run.yaml}"]
    if place.gpus <= 1 and place.nodes == 1:
        return train
    where = ["--standalone"]
    if place.nodes > 1:
        where = [f"--nnodes={place.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={place.rendezvous}"]
        where += [f"--rdzv-id={place.job}"] if place.job else []
    # torchrun passes on only these signals, and gives its workers half a minute to save otherwise.
    signals = ["--signals-to-handle=SIGTERM,SIGUSR1,SIGUSR2", "--shutdown-timeout=300"]
    return ["torch.distributed.run", *where, *signals, f"--nproc-per-node={place.gpus}", "-m", *train]


def command(run: PlannedRun, place: Place) -> str:
    """The same as a line for a shell, with which a user trains this run alone."""
    words = arguments(run, place)
    words = ["torchrun", *words[1:]] if words[0] == "torch.distributed.run" else ["python", "-m", *words]
    return " ".join([*(f"{key}={value}" for key, value in place.environment.items()), shlex.join(words)])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended."""

    run: PlannedRun
    code: int
    """Exit code; negative: the signal that killed it."""
    seconds: float
    tail: list[str] = field(default_factory=list)
    """Last lines of its log."""
    was_asked: bool = False
    """Whether it was asked to stop: torchrun's own code (1) does not tell."""

    @property
    def state(self) -> Literal["finished", "stopped", "failed"]:
        if self.code == 0:
            return "finished"
        return "stopped" if self.code == EXIT_PREEMPTED or self.was_asked else "failed"

    @property
    def reason(self) -> str:
        """In one line."""
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-self.code).name}"
        meaning = MEANING.get(self.code)
        return f"exit code {self.code}" + (f" ({meaning})" if meaning else "")


class Attempt:
    """A training that was started. Its process has a session of its own, so that Ctrl-C reaches it only through
    `stop`, and it can save."""

    def __init__(self, run: PlannedRun, place: Place):
        self.run, self._began, self._was_asked = run, time.monotonic(), False
        run.dump_dir.mkdir(parents=True, exist_ok=True)
        save_config(run.config, run.yaml)
        (run.dump_dir / OUTCOME).unlink(missing_ok=True)
        self._log: IO[bytes] = (run.dump_dir / LOG).open("ab")
        self._log_from = self._log.tell()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments(run, place)], stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **place.environment},
        )  # fmt: skip

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Ask it to save and end; with SIGKILL, end it and all that it started."""
        self._was_asked = True
        # torchrun's workers have sessions of their own, and outlive it when it cannot end them any more.
        for pid in _family(self._process.pid) if signum == signal.SIGKILL else [self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def stop_and_wait(self) -> None:
        """The same for a signal handler, which may have interrupted `wait`: takes no lock of the process's object."""
        self.stop()
        with contextlib.suppress(ChildProcessError):  # it has been waited for already
            while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(_POLL_SECONDS)

    def poll(self) -> Outcome | None:
        """How it ended; None while it goes on."""
        return None if self._process.poll() is None else self._end()

    def wait(self) -> Outcome:
        """Wait for its end."""
        while (outcome := self.poll()) is None:
            time.sleep(_POLL_SECONDS)
        return outcome

    def _end(self) -> Outcome:
        self._log.close()
        outcome = Outcome(
            run=self.run,
            code=self._process.returncode,
            seconds=time.monotonic() - self._began,
            tail=_tail(self.run.dump_dir / LOG, self._log_from),
            was_asked=self._was_asked,
        )
        content = {
            "state": outcome.state,
            "exit_code": outcome.code,
            "reason": outcome.reason,
            "last_lines": outcome.tail,
        }
        (self.run.dump_dir / OUTCOME).write_text(json.dumps(content, indent=1) + "\n")
        return outcome


def _family(root: int) -> list[int]:
    """A process and all that come from it, by /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _tail(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            lines = deque((line.decode(errors="replace").rstrip() for line in file if line.strip()), maxlen=_SHOWN)
    except OSError:
        return []
    return list(lines)
