"""Whether the checkpoints of a run fit on their disk: told before hours are spent."""

from __future__ import annotations

import logging
import shutil

from topklm.checkpoint import CheckpointConfig, list_checkpoints, step_of
from topklm.errors import StorageError
from topklm.train.config import TrainConfig

log = logging.getLogger("topklm.train")
BYTES_PER_PARAMETER = 12
"""fp32 weights and AdamW's two moments."""


def check_room(config: TrainConfig, *, is_main: bool) -> None:
    """Raise `StorageError` if the next checkpoint does not fit; warn on the main rank if not all that are kept do.

    While a checkpoint is written, those that it retires are still there: one more than the schedules keep is needed.
    """
    place = next(path for path in (config.checkpoint_dir, *config.checkpoint_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    held = list_checkpoints(config.checkpoint_dir)
    if held and step_of(held[-1]) >= config.steps:
        return
    one = BYTES_PER_PARAMETER * config.model.n_params
    if free < one:
        raise StorageError(
            f"the disk of {place} has {_size(free)} free, a checkpoint of this run needs about {_size(one)}: make "
            "room, or give another dump_dir or checkpoint.path"
        )
    kept = max_kept(config.checkpoint, config.steps)
    of_schedules = [path for path in held if config.checkpoint.saves_at(step_of(path))]  # others are kept beside them
    needed = one * (max(kept - len(of_schedules), 0) + 1)
    if is_main and free < needed:
        log.warning(
            "the disk of %s has %s free, and the %d checkpoints that this run keeps and one that is being written need "
            "about %s more: where one does not fit, the run ends with exit code %d",
            place, _size(free), kept, _size(needed), StorageError.exit_code,
        )  # fmt: skip


def max_kept(config: CheckpointConfig, steps: int) -> int:
    """Checkpoints that a run of `steps` steps has at its end, when there are most."""
    saved = {steps}
    for schedule in (config.dump, config.eval):
        if schedule.every > 0:
            saved.update(range(schedule.every, steps + 1, schedule.every))
    return len(saved) - len(config.retired(sorted(saved)))


def _size(n: float) -> str:
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.1f} MiB"
