"""What can fail before training and has nothing to do with GPUs: told before a process group is opened."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from topklm.checkpoint import check_weights, list_checkpoints, resolve
from topklm.data import TrainData, n_scored_tokens, open_saved_tokenizer
from topklm.errors import CheckpointError, ConfigError, Problem, TopklmError
from topklm.evaluate import check_tasks, windows_of
from topklm.model.lingua import find_lingua
from topklm.optional import require
from topklm.train.config import TrainConfig
from topklm.train.optim import learning_rate
from topklm.train.room import check_room

log = logging.getLogger("topklm.train")
_LOCK_SECONDS = 1.0


def preflight(config: TrainConfig, data: TrainData, *, is_main: bool) -> TextIO | None:
    """Check packages, held-out tokens, the data of tasks, and the dump directory, which is made.

    Returns the run's lock, held by the main rank as long as the file is open: two processes that write one run
    would destroy each other's checkpoints. Raises `ConfigError` with everything that is wrong, `DataError` if
    the data have lost their tokenizer, `StorageError` if no checkpoint fits on the disk, `CheckpointError` if the
    weights to start from do not fit.
    """
    open_saved_tokenizer(data.tokenizer_dir)  # each checkpoint gets a copy
    _check_start(config)
    problems = []
    for wanted, module, extra in (
        (config.logging.wandb, "wandb", "wandb"),
        (config.logging.tensorboard, "torch.utils.tensorboard", "tensorboard"),
    ):
        if wanted:
            try:
                require(module, f"topklm[{extra}]")
            except ConfigError as error:
                problems += [problem.under(f"logging.{extra}") for problem in error.problems]
    if config.model.backend == "lingua":
        try:
            find_lingua()
        except ConfigError as error:
            problems += [problem.under("model.backend") for problem in error.problems]
    problems += _evaluation_problems(config, data, is_main=is_main)
    if is_main and config.optim.scheduler != "constant" and config.optim.warmup >= config.steps:
        last = learning_rate(config.optim, config.steps - 1, config.steps)
        log.warning(
            "the run of %d steps ends in its warm-up of %d: the highest learning rate is %.3g, not optim.lr=%g",
            config.steps, config.optim.warmup, last, config.optim.lr,
        )  # fmt: skip
    for key, place in (("dump_dir", Path(config.dump_dir)), ("checkpoint.path", config.checkpoint_dir)):
        problems += _place_problems(key, place)
    if problems:  # before anything is made
        raise ConfigError(problems)
    check_room(config, is_main=is_main)
    lock = None
    try:
        Path(config.dump_dir).mkdir(parents=True, exist_ok=True)
        if is_main:
            lock = _lock(Path(config.dump_dir) / ".lock")
    except BlockingIOError:
        told = f"{config.dump_dir} is in use by another process; stop it or take another"
        raise ConfigError([Problem("dump_dir", told)]) from None
    except OSError as error:
        told = f"{config.dump_dir} cannot be written: {error.strerror}; allow it, or choose another"
        raise ConfigError([Problem("dump_dir", told)]) from error
    return lock


def _check_start(config: TrainConfig) -> None:
    """Raise `CheckpointError` if a new run is to start from weights that are not there or of another model."""
    key = "init_from" if config.init_from is not None else "checkpoint.init_ckpt_path"
    source = config.init_from or config.checkpoint.init_ckpt_path
    if source is None or list_checkpoints(config.checkpoint_dir):
        return
    try:
        check_weights(resolve(Path(source)), config.model)
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error


def _place_problems(key: str, place: Path) -> Iterator[Problem]:
    """Why the directory `place` could not be made or written; nothing is made to find out."""
    there = next(path for path in (place, *place.absolute().parents) if path.exists())
    if not there.is_dir():
        yield Problem(key, f"{place} cannot be written, because {there} is a file; choose another directory")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield Problem(key, f"{place} cannot be written, {there} does not allow it; allow it, or choose another")


def _evaluation_problems(config: TrainConfig, data: TrainData, *, is_main: bool) -> Iterator[Problem]:
    """What would otherwise fail at the first evaluation, when many steps are done."""
    if config.eval is None:
        return
    try:
        for windows in windows_of(config.eval.validation, config.data.seq_len):
            n_scored_tokens(data.held_out, windows)
        data.held_out.tokenizer  # noqa: B018 (bits per byte need it)
    except TopklmError as error:
        yield Problem("eval", f"{error}; or set eval=null")
    harness = config.eval.harness
    if harness is None or not harness.tasks or not is_main:  # only the main rank has the tasks' data
        return
    try:
        failed = check_tasks(harness, config.eval.tasks_dir)
    except ConfigError as error:
        yield from (problem.under("eval") for problem in error.problems)
    else:
        for task, reason in failed.items():
            yield Problem("eval.harness.tasks", f"{task}: {reason}; or leave it out")


def _lock(path: Path) -> TextIO:
    """The lock of a run. One who looks whether it is held holds it for an instant, so it is tried for a second."""
    file = path.open("w")
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() >= until:
                file.close()
                raise
            time.sleep(0.05)
