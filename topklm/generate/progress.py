"""Progress of many completions: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any, Self

log = logging.getLogger("topklm.generate")


class GenerateProgress:
    """Counts finished completions and the tokens made; does nothing unless `shown`."""

    def __init__(self, total: int, shown: bool, log_every: float = 10.0):
        self._total, self._shown, self._log_every = total, shown, log_every
        self._finished = self._tokens = 0
        self._began = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        if self._shown and console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn("generate"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[speed]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(elapsed_when_finished=False),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, tokens: int, finished: int) -> None:
        """So many tokens more were made, and so many completions finished."""
        self._tokens += tokens
        self._finished += finished
        if not self._shown:
            return
        now = time.monotonic()
        elapsed = max(now - self._began, 1e-9)
        speed = f"{self._tokens / elapsed:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._finished, speed=speed)
        elif now - self._last >= self._log_every:
            self._last = now
            left = f"{elapsed * (self._total - self._finished) / self._finished:.0f} s" if self._finished else "unknown"
            log.info("generate: %d of %d finished, %s, time left %s", self._finished, self._total, speed, left)
