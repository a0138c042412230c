"""Preemption: SIGTERM, SIGUSR1 and SIGUSR2 ask for a checkpoint and an exit, agreed between the ranks."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Remembers that a signal came; further ones change nothing. A context manager.

    The former handlers return at its end only where the process goes on: after a signal, or as one of several ranks
    (`world_size`), it is about to leave, and the launcher sends SIGTERM to whoever takes longer than the first.
    """

    def __init__(self, world_size: int = 1) -> None:
        self.signum = 0
        """The signal that came, or that the ranks agreed on; 0: none."""
        self._world_size = world_size
        self._former: dict[signal.Signals, object] = {}

    @property
    def name(self) -> str:
        """SIGTERM, SIGUSR1 or SIGUSR2; empty if none came."""
        return signal.Signals(self.signum).name if self.signum else ""

    def __enter__(self) -> StopRequest:
        for signum in STOP_SIGNALS:
            self._former[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.signum or self._world_size > 1:
            return
        for signum, handler in self._former.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum

    def agreed(self, group: dist.ProcessGroup | None) -> int:
        """The signal that any rank received (0: none), the same on every rank. `group` lives on the CPU: the
        exchange costs no device synchronisation."""
        if group is None:
            return self.signum
        flag = torch.tensor(self.signum)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group)
        if agreed := int(flag):  # else one may have come meanwhile, which is for the next time
            self.signum = agreed
        return agreed
