"""Where a run's figures go: metrics.jsonl, the console with progress and ETA, wandb and TensorBoard if asked for."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from topklm.checkpoint.integrity import make_durable
from topklm.errors import Problem, storing
from topklm.optional import require

log = logging.getLogger("topklm.train")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """What is passed to wandb.init; the run's name and configuration are passed too."""

    unused_keys: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("resume", "resume_from", "fork_from"),
            "a run that goes on in its dump_dir goes on with its wandb run; give logging.wandb.id for another",
        ),
        **dict.fromkeys(("tensorboard", "sync_tensorboard"), "logging.tensorboard writes TensorBoard files"),
        **dict.fromkeys(("anonymous", "monitor_gym"), "not passed on to wandb"),
    }

    project: str | None = None
    """Project name."""
    entity: str | None = None
    """User or team."""
    group: str | None = None
    """Group of runs, for example both twins."""
    job_type: str | None = None
    """Kind of run within a group."""
    name: str | None = None
    """Display name; the run's own name if null."""
    id: str | None = None
    """Run id to continue; null: made at the first start and kept in dump_dir, so that a resumed run goes on with its
    curves."""
    tags: list[str] | None = None
    """Tags."""
    notes: str | None = None
    """Free text."""
    mode: str | None = None
    """online, offline (syncs later; needs no network) or disabled."""
    dir: str | None = None
    """Where wandb writes; dump_dir if null."""
    config_exclude_keys: list[str] | None = None
    """Sections of the run's configuration that are not sent."""
    config_include_keys: list[str] | None = None
    """The only sections that are sent."""
    allow_val_change: bool | None = None
    """Whether values of the configuration that wandb knows may change."""
    force: bool | None = None
    """Whether to end the run when nobody is logged in to wandb, instead of logging offline."""
    save_code: bool | None = None
    """Whether to send the code."""

    def problems(self) -> Iterator[Problem]:
        if self.mode not in (None, "online", "offline", "disabled"):
            yield Problem("mode", f"{self.mode} is not one of online, offline, disabled")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What is logged, how often and where."""

    unused_keys: ClassVar[dict[str, str]] = {"acc_freq": "metrics are logged per optimizer step only"}

    freq: int = 10
    """Log every so many optimizer steps; between them nothing is read back from the device."""
    tensorboard: bool = False
    """Also write TensorBoard files to dump_dir/tensorboard."""
    wandb: WandbConfig | None = None
    """Also log to Weights & Biases; null: do not."""

    def problems(self) -> Iterator[Problem]:
        if self.freq < 1:
            yield Problem("freq", f"{self.freq} is below 1")


def rewind_metrics(path: Path, step: int) -> None:
    """Keep the lines up to `step`; later ones, of steps that a resumed run does again, move to *.superseded.jsonl."""
    if not path.exists():
        return
    kept: list[str] = []
    superseded: list[str] = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            entry = json.loads(line)
            (kept if entry["global_step"] <= step else superseded).append(line)
        except (json.JSONDecodeError, KeyError):
            superseded.append(line)  # half a line: the process was killed while writing it
    if superseded:
        with storing(path):
            with path.with_suffix(".superseded.jsonl").open("a") as aside:
                aside.writelines(superseded)
            rewritten = path.with_suffix(".tmp")
            rewritten.write_text("".join(kept))
            make_durable(rewritten)
            os.replace(rewritten, path)


def append_line(path: Path, metrics: dict[str, Any]) -> None:
    """Append one line to a file of metrics: `global_step`, and figures by name, flat or by task."""
    with storing(path), path.open("a") as file:
        file.write(json.dumps({**metrics, "created_at": datetime.now(UTC).isoformat()}, default=str) + "\n")


class MetricsWriter:
    """Writes one dictionary per logged step to every sink. A context manager; only the main rank makes one."""

    def __init__(self, config: LoggingConfig, dump_dir: Path, name: str, run_config: dict[str, Any], step: int):
        self.path = dump_dir / "metrics.jsonl"
        rewind_metrics(self.path, step)
        self._file = self.path.open("a")
        self._wandb = _open_wandb(config.wandb, dump_dir, name, run_config) if config.wandb else None
        self._tensorboard = _open_tensorboard(dump_dir) if config.tensorboard else None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)
        if self._tensorboard is not None:
            self._tensorboard.close()
        with storing(self.path):  # it writes what could not be written before
            self._file.close()

    def write(self, metrics: dict[str, Any]) -> None:
        """`metrics` holds `global_step` and flat `room/name` keys; values that are None or NaN become null in JSON.

        Raises `StorageError` if the file cannot be written.
        """
        entry = {**metrics, "created_at": datetime.now(UTC).isoformat()}
        with storing(self.path):
            self._file.write(json.dumps({k: _finite(v) for k, v in entry.items()}) + "\n")
            self._file.flush()
        numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float) and k != "global_step"}
        step = metrics["global_step"]
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)
        if self._tensorboard is not None:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, step)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_wandb(config: WandbConfig, dump_dir: Path, name: str, run_config: dict[str, Any]) -> Any:
    wandb = require("wandb", "topklm[wandb]")
    stored = dump_dir / "wandb_id"
    if config.id is None and not stored.exists():
        stored.write_text(secrets.token_hex(4))
    given = {key: value for key, value in asdict(config).items() if value is not None}
    ours = {"name": name, "dir": str(dump_dir), "id": config.id or stored.read_text()}
    return wandb.init(**{**ours, **given}, resume="allow", config=run_config)


def _open_tensorboard(dump_dir: Path) -> Any:
    tensorboard = require("torch.utils.tensorboard", "topklm[tensorboard]")
    return tensorboard.SummaryWriter(str(dump_dir / "tensorboard"))


class Console:
    """Progress of a run: a rich bar with ETA on a terminal, a log line with the same figures elsewhere."""

    def __init__(self, steps: int, step: int, enabled: bool):
        self._steps, self._first, self._began = steps, step, time.monotonic()
        self._bar: Any = None
        self._enabled = enabled
        if enabled and sys.stderr.isatty():
            self._bar = _progress_bar()
            self._task = self._bar.add_task("", total=steps, completed=step, figures="")

    def __enter__(self) -> Console:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, there is no bar: something else shows its own progress."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def update(self, step: int, figures: str | None = None, more: str = "") -> None:
        """Advance to `step`; `figures`, if given, are shown, and logged with `more` where there is no terminal."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, **({"figures": figures} if figures else {}))
        elif self._enabled and figures:
            log.info("step %d/%d  %s%s  eta %s", step, self._steps, figures, more, self.eta(step))

    def eta(self, step: int) -> str:
        """Time to the end at the mean speed so far."""
        done = step - self._first
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._began) / done * (self._steps - step)
        hours, rest = divmod(int(seconds), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _progress_bar() -> Any:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(  # fits 80 columns
        BarColumn(bar_width=8), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TextColumn("eta"),
        TimeRemainingColumn(), console=RichConsole(stderr=True),
    )  # fmt: skip
