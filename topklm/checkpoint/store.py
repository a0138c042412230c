"""The checkpoints of one run: written whole or not at all, verified, found again, and cleaned up.

Layout, as in Meta Lingua: `checkpoints/{step:010d}/` with torch.distributed.checkpoint files (keys `model.<parameter>`
and `optim...`; thresholds and norms of activations as `activation...`), `params.json` (the whole configuration),
`train_state_{rank:05d}.json`; ours beside it: `tokenizer/` and `files.json` (integrity.py). A checkpoint is written to
`<step>.tmp` and renamed when all its files are there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from topklm.checkpoint import dcp
from topklm.checkpoint.config import CheckpointConfig
from topklm.checkpoint.integrity import FILES, defects, digest, make_durable, write_json
from topklm.errors import CheckpointError, StorageError

log = logging.getLogger("topklm.checkpoint")
T = TypeVar("T")
ACTIVATIONS = "activation"
"""Key of a checkpoint, beside `model` and `optim`, that holds the state of activations."""
_STEP_NAME = re.compile(r"\d{10}")


def step_of(directory: Path) -> int:
    """The optimizer steps that a checkpoint directory is named after."""
    return int(directory.name)


def list_checkpoints(directory: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(p for p in directory.iterdir() if p.is_dir() and _STEP_NAME.fullmatch(p.name))


def was_sick(path: Path) -> bool:
    """Whether a checkpoint was written while its run was sick: key `sick` of its train state, a reason or null.

    One that does not tell any more is not counted among the healthy ones.
    """
    try:
        return bool(json.loads((path / "train_state_00000.json").read_text()).get("sick"))
    except (OSError, ValueError, AttributeError):
        return True


def newest_good(directory: Path) -> Path | None:
    """The newest checkpoint without defects; broken newer ones are named in the log. None if there are none at all.

    Raises `CheckpointError` if there are checkpoints and every one is broken.
    """
    found = list_checkpoints(directory)
    broken = []
    for path in reversed(found):
        wrong = defects(path)
        if not wrong:
            return path
        broken.append(f"{path}: {'; '.join(wrong)}")
        log.error("broken checkpoint, trying the one before: %s", broken[-1])
    if broken:
        raise CheckpointError(
            "every checkpoint of this run is broken; restore one of them, or remove the directory to start anew:\n  "
            + "\n  ".join(broken)
        )
    return None


class CheckpointStore:
    """Saves, restores and retires the checkpoints of one run. Every rank makes one and calls the same methods.

    `group` is a gloo group of its own (saving in the background must not share one with training), or None for a
    single process.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, rank: int, group: dist.ProcessGroup | None):
        self.directory = directory
        self.config = config
        self.rank = rank
        self.group = group
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None
        if rank == 0:
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in directory.glob("*.tmp"):
                log.warning("%s was not finished by a former process", leftover)
                _remove(leftover)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        train_state: dict[str, Any],
        params: dict[str, Any],
        tokenizer_dir: Path,
        activations: dict[str, Tensor] | None = None,
    ) -> None:
        """Write the checkpoint of `step`. `train_state` is this rank's own; `params` the whole configuration;
        `activations` what `ActivationSteps.state_dict` gives, the same on every rank.

        With `async_save` it returns once the state is copied; the writing goes on in a thread. A failure there is
        raised by the next call of `save` or `finish`.

        Raises `StorageError`, on all ranks, if one of them cannot write; earlier checkpoints are untouched then.
        """
        self.finish()
        final = self.directory / f"{step:010d}"
        part = self.directory / f"{step:010d}.tmp"

        def write_small_files() -> None:
            if self.rank == 0 and not self.directory.is_dir():
                log.warning("%s has vanished, and older checkpoints with it; it is made anew", self.directory)
            part.mkdir(parents=True, exist_ok=True)
            write_json(part / f"train_state_{self.rank:05d}.json", train_state)
            if self.rank == 0:
                write_json(part / "params.json", params)
                shutil.copytree(tokenizer_dir, part / "tokenizer", dirs_exist_ok=True)

        with self._saving(part):
            self._together(write_small_files)
            model_state, optim_state = get_state_dict(model, optimizer)
            state: dict[str, Any] = {"model": model_state, "optim": optim_state}
            if activations:
                state[ACTIVATIONS] = activations
            if not self.config.async_save:
                dcp.save(state, part, self.group)
                self._complete(part, final, step)
                return
            written = dcp.async_save(state, part, self.group)
        self._writing = threading.Thread(target=self._in_background, args=(written, part, final, step))
        self._writing.start()

    def finish(self) -> None:
        """Wait until a save in the background is done; raise what went wrong in it."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, StorageError):
                raise failure
            raise CheckpointError(f"saving in the background failed: {failure}") from failure

    def restore(
        self, path: Path, model: nn.Module, optimizer: Optimizer, activations: dict[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """Load weights, optimizer state and `activations` in place, for any number of ranks; returns a rank's train
        state.

        The train state is this rank's own, or rank 0's if the checkpoint was written by fewer ranks.
        """
        model_state, optim_state = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": model_state, "optim": optim_state}
        if activations:
            state[ACTIVATIONS] = activations
        dcp.load(state, path, self.group)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        own = path / f"train_state_{self.rank:05d}.json"
        return json.loads((own if own.exists() else path / "train_state_00000.json").read_text())

    def _in_background(self, written: Callable[[], Any], part: Path, final: Path, step: int) -> None:
        try:
            with self._saving(part):
                written()
                self._complete(part, final, step)
        except BaseException as error:
            log.error("%s", error)
            self._failure = error

    @contextmanager
    def _saving(self, part: Path) -> Iterator[None]:
        """A save that cannot be written frees what it took and tells what to do."""
        try:
            yield
        except StorageError as error:
            if self.rank == 0:
                shutil.rmtree(part, ignore_errors=True)
            raise StorageError(
                f"{part.with_suffix('')} was not saved: {error}. Earlier checkpoints are untouched: make room or mend "
                "the disk, then start the same command; it goes on from the newest"
            ) from error

    def _complete(self, part: Path, final: Path, step: int) -> None:
        """After all ranks wrote their part: record the hashes, rename, retire old checkpoints."""
        mine = [part / f"train_state_{self.rank:05d}.json", *part.glob(f"__{self.rank}_*.distcp")]
        if self.rank == 0:
            mine += [
                part / ".metadata",
                part / "params.json",
                *(p for p in (part / "tokenizer").rglob("*") if p.is_file()),
            ]

        def record() -> dict[str, Any]:
            for path in mine:  # torch flushes `.metadata` only after it has synced it
                make_durable(path)
            return {str(path.relative_to(part)): digest(path) for path in mine}

        digests = {name: value for of_rank in self._together(record) for name, value in of_rank.items()}
        self._together(lambda: self._publish(part, final, digests) if self.rank == 0 else None)
        if self.rank == 0:
            log.info("saved %s", final)
            self._retire(step)

    def _publish(self, part: Path, final: Path, digests: dict[str, Any]) -> None:
        write_json(part / FILES, digests)
        make_durable(part / "tokenizer")
        make_durable(part)
        if final.exists():  # a broken checkpoint that was passed over when resuming
            os.replace(final, _free_name(final))
        os.replace(part, final)
        make_durable(self.directory)

    def _retire(self, newest: int) -> None:
        """Remove what the retention rules no longer keep; never the checkpoint just written, which is their last."""
        # Later ones are broken, or they would have been resumed from: they must not push out good ones.
        by_step = {step: path for path in list_checkpoints(self.directory) if (step := step_of(path)) <= newest}
        sick = [step for step, path in by_step.items() if was_sick(path)]
        for step in self.config.retired(list(by_step), sick):
            _remove(by_step[step])

    def _together(self, action: Callable[[], T]) -> list[T]:
        """What `action` gives on every rank. A file error of one is raised by all: none waits for one that has left."""
        mine: T | None = None
        failure: str | None = None
        try:
            mine = action()
        except OSError as error:
            failure = f"rank {self.rank}: {error}"
        outcomes: list[Any] = [(mine, failure)]
        if self.group is not None:
            outcomes *= dist.get_world_size(self.group)
            dist.all_gather_object(outcomes, (mine, failure), self.group)
        failures = [failure for _, failure in outcomes if failure is not None]
        if failures:
            raise StorageError("; ".join(failures[:4]))
        return [result for result, _ in outcomes]


def _remove(directory: Path) -> None:
    """Remove what nobody needs any more; that it cannot be is no reason to stop a run."""
    # Renamed first: a process killed while removing leaves a .tmp, not half a checkpoint.
    doomed = directory.with_suffix(".tmp")
    try:
        os.replace(directory, doomed)
        shutil.rmtree(doomed)
        log.info("removed %s", directory)
    except OSError as error:
        log.warning("%s could not be removed: %s", directory, error)


def _free_name(path: Path) -> Path:
    number = 0
    while (candidate := path.with_name(f"{path.name}.broken{number or ''}")).exists():
        number += 1
    return candidate
