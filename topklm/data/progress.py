"""Progress of a long job: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("topklm.data")


class PrepareProgress:
    """Shows the share of the work that is done, documents, text read and the time left.

    `total` and `already` (done by an earlier start) are in the items' sizes. What is read of unfinished items is
    estimated from the bytes of their text: first with `size_of_a_byte`, then with the ratio of the finished ones.
    """

    def __init__(self, title: str, total: int, already: int, size_of_a_byte: float, log_every: float = 10.0):
        self.title, self.total, self.already = title, total, already
        self._finished = self._finished_bytes = 0
        self._size_of_a_byte = size_of_a_byte
        self._began = time.monotonic()
        self._log_every, self._next_log = log_every, self._began + log_every
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[speed]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.already, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def finish(self, size: int, text_bytes: int) -> None:
        """An item is finished."""
        self._finished += size
        self._finished_bytes += text_bytes
        if self._finished_bytes:
            self._size_of_a_byte = self._finished / self._finished_bytes

    def done(self, text_bytes: int) -> float:
        """Size of what was done since the start: finished items, and an estimate of the text of the others."""
        unfinished = max(text_bytes - self._finished_bytes, 0) * self._size_of_a_byte
        return min(self._finished + unfinished, self.total - self.already)

    def update(self, documents: int, text_bytes: int) -> None:
        """Tell how many documents and bytes of text were read since the start."""
        now = time.monotonic()
        elapsed, done = max(now - self._began, 1e-9), self.done(text_bytes)
        speed = f"{documents:,} documents, {text_bytes / elapsed / 1e6:.1f} MB/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.already + done, speed=speed)
        elif now >= self._next_log:
            self._next_log = now + self._log_every
            left = self.total - self.already - done
            time_left = _duration(elapsed * left / done) if done else "unknown"
            share = 100 * (self.already + done) / self.total
            log.info("%s: %.0f %%, %s, time left %s", self.title, share, speed, time_left)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
