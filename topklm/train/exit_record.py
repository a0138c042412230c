"""How a run ended, for a batch script: torchrun exits with 1 whatever its workers said."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from topklm.errors import EXIT_PREEMPTED, PeerError, exit_code_of, storing

log = logging.getLogger("topklm.train")
EXIT = "exit.json"


class _HasStep(Protocol):
    step: int


class ExitRecord:
    """Writes `exit.json`: {"code", "reason", "step", "time", "rank"}. A context manager around a run.

    `code` is the exit code of the rank that wrote it, null while the run goes on: where it stays null, the main rank
    was killed. The main rank writes at the beginning and at every orderly end; another rank when it fails by itself.
    A `PeerError` replaces nothing, since the rank that was lost may have said why. `step` counts the optimizer steps
    done; null before the model is there.
    """

    def __init__(self, dump_dir: Path, rank: int):
        self.path, self.rank = dump_dir / EXIT, rank
        self.trainer: _HasStep | None = None
        """Whose step is written."""
        self._code: int | None = None
        self._reason = ""

    def ends_with(self, code: int, signal_name: str = "") -> None:
        """What to write at the end of a run that returned `code`."""
        self._code = code
        self._reason = f"stopped by {signal_name}" if code == EXIT_PREEMPTED else "done"

    def __enter__(self) -> ExitRecord:
        if self.rank == 0:
            with storing(self.path):
                self._write(None, "running")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is None:
                if self.rank == 0:
                    self._write(self._code, self._reason)
            elif not isinstance(error, PeerError):
                self._write(exit_code_of(error), str(error) or type(error).__name__)
            elif self.rank == 0 and read_exit(self.path.parent).get("code") is None:
                self._write(error.exit_code, str(error))
        except OSError as failure:  # a full disk: what ended the run is worth more
            log.warning("%s cannot be written: %s", self.path, failure)

    def _write(self, code: int | None, reason: str) -> None:
        content = {
            "code": code,
            "reason": reason,
            "step": None if self.trainer is None else self.trainer.step,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "rank": self.rank,
        }
        part = self.path.with_name(f"{EXIT}.{self.rank}.{os.getpid()}.tmp")
        try:
            part.write_text(json.dumps(content, indent=1) + "\n")
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)


def read_exit(dump_dir: Path) -> dict[str, object]:
    """What `exit.json` of a run says; empty if there is none."""
    try:
        return dict(json.loads((dump_dir / EXIT).read_text()))
    except (OSError, ValueError):
        return {}
