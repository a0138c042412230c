"""What can fail before training and has nothing to do with GPUs: told before a process group is opened."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from topklm.data import TrainData, Windows, n_scored_tokens
from topklm.errors import ConfigError, DataError, Problem
from topklm.model.lingua import find_lingua
from topklm.optional import require
from topklm.train.config import TrainConfig


def preflight(config: TrainConfig, data: TrainData, *, is_main: bool) -> TextIO | None:
    """Check packages, held-out tokens and the dump directory, which is made.

    Returns the run's lock, held by the main rank as long as the file is open: two processes that write one run
    would destroy each other's checkpoints. Raises `ConfigError` with everything that is wrong.
    """
    problems = []
    for wanted, module, extra in (
        (config.logging.wandb, "wandb", "topklm[wandb]"),
        (config.logging.tensorboard, "torch.utils.tensorboard", "topklm[tensorboard]"),
    ):
        if wanted:
            try:
                require(module, extra)
            except ConfigError as error:
                problems += error.problems
    if config.model.backend == "lingua":
        try:
            find_lingua()
        except ConfigError as error:
            problems += error.problems
    if config.eval is not None:
        try:
            n_scored_tokens(data.held_out, Windows(context=config.data.seq_len))
        except DataError as error:
            problems.append(Problem("eval", f"{error}; or set eval=null"))
    lock = None
    try:
        Path(config.dump_dir).mkdir(parents=True, exist_ok=True)
        if is_main:
            lock = _lock(Path(config.dump_dir) / ".lock")
    except BlockingIOError:
        problems.append(Problem("dump_dir", f"{config.dump_dir} is in use by another process; stop it or take another"))
    except OSError as error:
        problems.append(Problem("dump_dir", f"{config.dump_dir} cannot be written: {error.strerror}"))
    if problems:
        raise ConfigError(problems)
    return lock


def _lock(path: Path) -> TextIO:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
