"""Preemption: SIGTERM, SIGUSR1 and SIGUSR2 ask for a checkpoint and an exit, agreed between the ranks."""

from __future__ import annotations

import logging
import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

log = logging.getLogger("topklm.train")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that a signal came. A context manager; the former handlers return at its end."""

    def __init__(self) -> None:
        self.signum = 0
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for signum in STOP_SIGNALS:
            self._former[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def agreed(self, group: dist.ProcessGroup | None) -> int:
        """The signal that any rank received (0: none), the same on every rank. `group` lives on the CPU: the
        exchange costs no device synchronisation."""
        if group is None:
            return self.signum
        flag = torch.tensor(self.signum)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group)
        return int(flag)
