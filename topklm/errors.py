"""What can go wrong, as types. Every error says what to do; each has the exit code of the programs in `apps/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration."""

    key: str
    """Dotted key, relative to the section that reports it; the loader adds the section's own path."""
    message: str
    """The value, the rule it breaks, and what to do."""

    def under(self, path: str) -> Problem:
        return Problem(".".join(part for part in (path, self.key) if part), self.message)

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class TopklmError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = 1


class ConfigError(TopklmError):
    """The configuration is wrong. Holds all problems, not only the first."""

    exit_code = 2

    def __init__(self, problems: str | Iterable[Problem]):
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        n = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(str(self.problems[0]) if n == 1 else f"{n} problems in the configuration:\n{lines}")


class DataError(TopklmError):
    """Documents, token shards or tokenizers are broken, missing, or not what the run was started with."""

    exit_code = 3


class NonFiniteError(TopklmError):
    """A loss or gradient is NaN or infinite; the optimizer step was not taken and nothing was saved."""

    exit_code = 4


class CheckpointError(TopklmError):
    """A checkpoint is missing, incomplete, damaged, or does not fit."""

    exit_code = 5


class ParityError(TopklmError):
    """Two forms of one model, such as a checkpoint and its export, do not compute the same."""

    exit_code = 6


class EndpointError(TopklmError):
    """A service that is asked over the network does not answer, after all attempts."""

    exit_code = 7


class StorageError(TopklmError):
    """A file of the run cannot be written: the disk is full, read-only, broken or gone. Earlier checkpoints stay."""

    exit_code = 8


@contextmanager
def storing(what: str | Path) -> Iterator[None]:
    """Inside, an `OSError` becomes a `StorageError` that names `what` could not be written: a full disk does not."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} cannot be written: {error.strerror or error}; make room or mend the disk, then start the same "
            "command again"
        ) from error


class PeerError(TopklmError):
    """Another rank of the same job has died or does not answer."""

    exit_code = 9


def exit_code_of(error: BaseException) -> int:
    """The exit code of a program that `error` ends: its own, `StorageError`'s for files, 130 for Ctrl-C, else 1."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    of_files = isinstance(error, OSError) and not isinstance(error, ConnectionError)
    return getattr(error, "exit_code", StorageError.exit_code if of_files else 1)


EXIT_PREEMPTED = 75
"""Stopped by a signal after saving: start the same command again to go on (EX_TEMPFAIL, which SLURM requeues on)."""
