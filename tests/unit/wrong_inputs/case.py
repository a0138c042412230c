"""One mistake of a user, what is told then, and the program run in this process as a user runs it."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch

from tests.programs import ROOT

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
"""What torchrun sets: with it a program that got as far would open a process group, which ends the test."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A command that cannot work, and what its message must hold."""

    mistake: str
    """What the user did, in words."""
    program: str
    """Module below `apps`, with its mode: "label words"."""
    args: tuple[str, ...] = ()
    make: Callable[[], object] | None = None
    """Breaks something in the working directory, a copy of `place`."""
    exit_code: int = 2
    key: str
    """The setting or file that is named."""
    value: str
    """What is wrong there, as it is shown."""
    remedy: str
    """Words of the way out."""
    also: tuple[str, ...] = ()
    """Further texts: the other mistakes where there are several."""
    leaves: tuple[str, ...] = ()
    """Files and directories that may be written: work that is kept for the next start."""
    environment: dict[str, str] = field(default_factory=dict)
    words_of: str | None = None
    """A regular expression of what another library says or what differs from time to time: not on the page."""

    def with_args(self, *args: str) -> Case:
        """The same command with more arguments."""
        return dataclasses.replace(self, args=(*self.args, *args))

    @property
    def command(self) -> str:
        name, *mode = self.program.split()
        shown = " ".join(f"'{arg}'" if re.search(r"[\s{}\[\]&|;<>$()]", arg) else arg for arg in self.args)
        variables = "".join(f"{key}={value} " for key, value in self.environment.items())
        return f"{variables}python -m apps.{' '.join([name, *mode])} {shown}".rstrip()


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    message: str
    """What `apps._program` printed, paths relative."""
    n_messages: int
    log: str
    """Everything on the terminal."""
    changed: list[str]
    """Files and directories that are otherwise than before, new or gone."""


class Touched(BaseException):
    """A process group was opened or a GPU initialised. No `Exception`, so that nothing takes it for an error."""


def run(case: Case) -> Outcome:
    """Run the program in this process, in the working directory."""
    name, *mode = case.program.split()
    variables = (TORCHRUN if name == "train" else {}) | case.environment
    before = _tree(Path())
    with ExitStack() as stack:
        stack.enter_context(_untouched())
        stack.enter_context(mock.patch.dict(os.environ, variables))
        stack.enter_context(mock.patch.object(sys, "argv", [f"apps.{name}", *mode, *case.args]))
        stack.enter_context(_handlers_restored())
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        stack.enter_context(redirect_stdout(output))
        stack.enter_context(redirect_stderr(output))
        code = _exit_code(f"apps.{name}")
        output.flush()
        told = output.buffer.getvalue().decode()
    return _outcome(case, code, told, _changes(before, _tree(Path())))


def _exit_code(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _outcome(case: Case, code: int, told: str, changed: list[str]) -> Outcome:
    start = re.compile(rf"^{re.escape(case.program)}: ", re.MULTILINE)
    found = list(start.finditer(told))
    message = told[found[-1].start() :] if found else ""
    for path, shown in ((str(Path.cwd()) + "/", ""), (str(Path.cwd()), "."), (str(ROOT) + "/", "")):
        message = message.replace(path, shown)
    return Outcome(code, message.rstrip("\n"), len(found), told, changed)


@contextmanager
def _untouched() -> Iterator[None]:
    def touched(*_: object, **__: object) -> None:
        raise Touched

    with ExitStack() as stack:
        for module, name in (
            (torch.distributed, "init_process_group"),
            (torch.cuda, "_lazy_init"),
            (torch.cuda, "init"),
            (torch.cuda, "set_device"),
        ):
            stack.enter_context(mock.patch.object(module, name, touched))
        yield


@contextmanager
def _handlers_restored() -> Iterator[None]:
    names = ("topklm", "topklm.config")
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    try:
        yield
    finally:
        for name, (level, handlers) in before.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).handlers = handlers


def _tree(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of modification of everything below; of directories neither, as a file in them comes and goes."""
    found = {}
    for path in root.rglob("*"):
        stat = path.lstat()
        found[str(path)] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
    return found


def _changes(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
