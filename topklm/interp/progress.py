"""Progress of a pass over a corpus: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("topklm.interp")


class PassProgress:
    """Counts what is done, in some `unit`; silent unless `shown`."""

    def __init__(self, title: str, total: int, shown: bool, log_every: float = 15.0, unit: str = "tokens") -> None:
        self._unit = unit
        self._title, self._total, self._shown, self._log_every = title, total, shown, log_every
        self._done = self._here = 0
        self._began = self._told = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if self._shown and console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[speed]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def skip(self, tokens: int) -> None:
        """So many tokens were done before."""
        self._done += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""
        self._done += tokens
        self._here += tokens
        now = time.monotonic()
        per_second = self._here / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=f"{per_second:,.0f} {self._unit}/s")
        elif self._shown and now - self._told >= self._log_every:
            self._told = now
            left = (self._total - self._done) / per_second
            share = 100 * self._done / self._total
            log.info("%s: %.0f %%, %.0f %s/s, time left %.0f s", self._title, share, per_second, self._unit, left)
