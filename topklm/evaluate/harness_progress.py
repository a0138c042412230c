"""Progress of many requests: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("topklm.evaluate")

LOG_EVERY = 10.0
"""Seconds between log lines."""


@contextmanager
def shown(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Inside, call what it gives with how many more requests are done; more than `total` counts as all."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(description, total)
        return
    columns = (
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=min(total, bar.tasks[0].completed + done))


class _Lines:
    """Progress as lines of the log."""

    def __init__(self, description: str, total: int):
        self.description, self.total, self.done = description, total, 0
        self.began = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        self.done = min(self.total, self.done + done)
        now = time.monotonic()
        if now - self.told >= LOG_EVERY:
            self.told = now
            left = (now - self.began) * (self.total - self.done) / max(1, self.done)
            log.info("%s: %d of %d, time left %.0f s", self.description, self.done, self.total, left)
