"""A profile that a user takes of his own run: traces, CUDA memory snapshots, and where the time of a step goes.

Keys are Meta Lingua's. Outside of the chosen steps nothing is recorded, and inside nothing is computed otherwise: the
losses are the same to the bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from topklm.errors import Problem
from topklm.report.table import csv_text
from topklm.sparsity.patch import SparseState
from topklm.train.profile_tables import TOPK_SCOPE, as_text, operations_table, parts_table
from topklm.train.throughput import synchronize

log = logging.getLogger("topklm.train")
_SHOWN = 12
_MEMORY_EVENTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ProfilingConfig:
    """Profiling of chosen steps, in Meta Lingua's names. Steps are counted from the start of the process."""

    run: bool = False
    """Whether to profile."""
    trace_folder: str = "profiling"
    """Where the files go, under dump_dir."""
    mem_warmup: int = 100
    """Steps before the memory snapshot; only CUDA has one."""
    mem_steps: int = 2
    """Steps that it covers; 0: none."""
    profile_warmup: int = 102
    """Steps before the profile."""
    profile_steps: int = 2
    """Steps that it covers; 0: none."""

    def problems(self) -> Iterator[Problem]:
        for name in ("mem_warmup", "mem_steps", "profile_warmup", "profile_steps"):
            if getattr(self, name) < 0:
                yield Problem(name, f"{getattr(self, name)} is negative")
        if not self.trace_folder:
            yield Problem("trace_folder", "is empty; give a name, such as profiling")


class Profiler:
    """Profiles one process of a run. A context manager; `step` is called after each optimizer step.

    Every rank writes `trace_{rank:05d}.json.gz` (for chrome://tracing or ui.perfetto.dev) and, on CUDA,
    `memory_{rank:05d}.pickle` (for pytorch.org/memory_viz); the main rank also `parts.csv` and `operations.csv`, which
    it prints. They are in `folder/{step:010d}/`, the step being the last one that is covered. `names_topk`: whether
    blocks run eagerly, so that the activation can be told from other operations.
    """

    def __init__(
        self, config: ProfilingConfig, folder: Path, device: torch.device, rank: int, step: int, *, names_topk: bool
    ):
        self.config, self.folder, self.device, self.rank = config, folder, device, rank
        self._first, self._done, self._names_topk = step, 0, names_topk
        self._began = self._ended = 0.0
        self._running: profile | None = None
        self._recording: AbstractContextManager[None] | None = None
        self._remembers = False

    def __enter__(self) -> Profiler:
        if self.config.run and self.config.profile_steps:
            on_cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._running = profile(
                activities=[ProfilerActivity.CPU, *on_cuda],
                # One step of warm-up, where there is one before: the profiler's own start is slow.
                schedule=schedule(
                    wait=max(0, self.config.profile_warmup - 1), warmup=min(1, self.config.profile_warmup),
                    active=self.config.profile_steps, repeat=1,
                ),
                on_trace_ready=self._write, profile_memory=True, acc_events=True,
            )  # fmt: skip
            self._running.start()
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
        if self._running is not None:
            if self.config.profile_warmup >= self._done:
                log.warning(
                    "no profile was taken: profiling.profile_warmup is %d and the process made %d steps",
                    self.config.profile_warmup, self._done,
                )  # fmt: skip
            self._running.stop()
        if self._remembers:
            torch.cuda.memory._record_memory_history(enabled=None)

    def step(self) -> None:
        """One optimizer step was made."""
        if not self.config.run:
            return
        self._done += 1
        if self._running is not None:
            if self._done == self.config.profile_warmup + self.config.profile_steps:
                synchronize(self.device)
            self._ended = time.perf_counter()
            self._running.step()
        self._begin()
        if self._remembers and self._done == self.config.mem_warmup + self.config.mem_steps:
            self._write_memory()

    def _begin(self) -> None:
        """What begins with the next step."""
        config = self.config
        if self._running is not None and self._done == config.profile_warmup:
            synchronize(self.device)
            self._began = time.perf_counter()
            if self._names_topk:
                self._recording = _naming_topk()
                self._recording.__enter__()
        if config.run and config.mem_steps and self._done == config.mem_warmup and self.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
            self._remembers = True

    def _directory(self) -> Path:
        directory = self.folder / f"{self._first + self._done:010d}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _write_memory(self) -> None:
        path = self._directory() / f"memory_{self.rank:05d}.pickle"
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)
        self._remembers = False
        log.info("memory snapshot of %d steps: %s", self.config.mem_steps, path)

    def _write(self, found: profile) -> None:
        wall = self._ended - self._began
        n_steps = self._done - self.config.profile_warmup
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
        self._running, self._recording = None, None
        if n_steps < 1:
            return
        directory = self._directory()
        found.export_chrome_trace(str(directory / f"trace_{self.rank:05d}.json.gz"))
        if self.rank != 0:
            return
        events: Any = found.events()
        tables = [
            parts_table(events, wall, n_steps, self.device.type),
            operations_table(found.key_averages(), n_steps, self.device.type),
        ]
        for table, name in zip(tables, ("parts.csv", "operations.csv"), strict=True):
            (directory / name).write_text(csv_text([table]))
            log.info("%s, %s\n%s", table.title, table.note, as_text(table, _SHOWN))
        log.info("profile of %d steps: %s", n_steps, directory)


@contextmanager
def _naming_topk() -> Iterator[None]:
    """Inside, what sparse blocks do for their activation stands under one name in a profile."""
    call = SparseState.__call__

    def named(self: SparseState, *args: Any) -> Any:
        with record_function(TOPK_SCOPE):
            return call(self, *args)

    SparseState.__call__ = named  # type: ignore[method-assign, assignment]
    with ExitStack() as stack:
        stack.callback(setattr, SparseState, "__call__", call)
        yield
