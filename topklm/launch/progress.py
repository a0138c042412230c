"""How far the whole sweep is: bars with the time that is left on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from topklm.launch.plan import PlannedRun
from topklm.launch.state import last_step

log = logging.getLogger("topklm.launch")
_LINE_SECONDS = 60.0
_LOOK_SECONDS = 1.0


class SweepProgress:
    """Progress over the runs, each counted by its work: `work` is the FLOP (or tokens) of a step by run name, so that
    a wide model's step counts for more. A context manager."""

    def __init__(self, runs: Sequence[PlannedRun], done: Mapping[str, int], work: Mapping[str, float]):
        """`done`: steps that are saved already, by run name."""
        self._runs = {run.name: run for run in runs}
        self._steps = {run.name: min(done.get(run.name, 0), run.config.steps) for run in runs}
        self._work = work
        self._at_start = self._done()
        self._began = self._looked = self._said = time.monotonic()
        self._going: list[str] = []
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> SweepProgress:
        if sys.stderr.isatty():
            self._bar = _bar()
            self._tasks[""] = self._bar.add_task("sweep", total=1.0, completed=self._share(), figures="", eta="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._refresh()
            self._bar.stop()

    def started(self, run: PlannedRun, step: int) -> None:
        """A run begins, or goes on after `step` steps."""
        self._going.append(run.name)
        log.info("%s: %s", run.name, f"goes on after step {step} of {run.config.steps}" if step else "starts")
        if self._bar is not None:
            figures = f"{step}/{run.config.steps}"
            self._tasks[run.name] = self._bar.add_task(
                run.name, total=run.config.steps, completed=step, figures=figures, eta=""
            )

    def ended(self, run: PlannedRun, state: str, reason: str = "") -> None:
        """A run came to an end: finished, stopped or failed."""
        if run.name in self._going:
            self._going.remove(run.name)
        self._steps[run.name] = run.config.steps if state == "finished" else last_step(run.dump_dir)
        if self._bar is not None and run.name in self._tasks:
            self._bar.remove_task(self._tasks.pop(run.name))
        log.info("%s: %s%s  (%s)", run.name, state, f", {reason}" if state == "failed" else "", self._line())

    def update(self) -> None:
        """Look how far the runs are; cheap enough to be called many times a second."""
        now = time.monotonic()
        if now < self._looked + _LOOK_SECONDS:
            return
        self._looked = now
        for name in self._going:
            self._steps[name] = last_step(self._runs[name].dump_dir) or self._steps[name]
        if self._bar is not None:
            self._refresh()
        elif self._going and now >= self._said + _LINE_SECONDS:
            self._said = now
            going = ", ".join(f"{name} {self._steps[name]}/{self._runs[name].config.steps}" for name in self._going)
            log.info("%s: %s", self._line(), going)

    def eta(self) -> str:
        """Time to the end at the mean speed so far, h:mm:ss."""
        gained = self._done() - self._at_start
        if gained <= 0:
            return "?"
        return clock((time.monotonic() - self._began) / gained * (self._total() - self._done()))

    def _line(self) -> str:
        return (
            f"{self._finished()} of {len(self._runs)} runs finished, {self._share():.1%} of the work, eta {self.eta()}"
        )

    def _refresh(self) -> None:
        self._bar.update(
            self._tasks[""],
            completed=self._share(),
            figures=f"{self._finished()}/{len(self._runs)} runs",
            eta=self.eta(),
        )
        for name in self._going:
            step, steps = self._steps[name], self._runs[name].config.steps
            self._bar.update(self._tasks[name], completed=step, figures=f"{step}/{steps}")

    def _finished(self) -> int:
        done = [name for name, step in self._steps.items() if step >= self._runs[name].config.steps]
        return len(set(done) - set(self._going))  # one that is still saving its last step is not

    def _done(self) -> float:
        return sum(step * self._work[name] for name, step in self._steps.items())

    def _total(self) -> float:
        return sum(run.config.steps * self._work[name] for name, run in self._runs.items())

    def _share(self) -> float:
        return self._done() / self._total() if self._runs else 1.0


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TextColumn("{task.percentage:>5.1f}%"),
        TextColumn("{task.fields[figures]}"), TextColumn("{task.fields[eta]}"), console=Console(stderr=True),
    )  # fmt: skip
