"""Progress of a long job: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("topklm.data")


class PrepareProgress:
    """Shows the share of finished work items, documents, text read and the time left.

    `total` and `finished` are in the items' sizes; `finished` is what an earlier start has done.
    """

    def __init__(self, title: str, total: int, finished: int, log_every: float = 10.0):
        self.title, self.total, self.finished = title, total, finished
        self._at_start, self._began = finished, time.monotonic()
        self._log_every, self._next_log = log_every, self._began + log_every
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[speed]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.finished, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, finished: int, documents: int, characters: int) -> None:
        """Tell the state: size of the finished items, documents and characters read since the start."""
        now = time.monotonic()
        elapsed = max(now - self._began, 1e-9)
        speed = f"{documents:,} documents, {characters / elapsed / 1e6:.1f} M characters/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, speed=speed)
        elif now >= self._next_log:
            self._next_log = now + self._log_every
            left = "unknown"
            if finished > self._at_start:
                left = _duration(elapsed * (self.total - finished) / (finished - self._at_start))
            log.info("%s: %.0f %%, %s, time left %s", self.title, 100 * finished / self.total, speed, left)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
