"""When checkpoints are written and which are kept, in Meta Lingua's names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class SaveEvery:
    """One schedule of checkpoints."""

    every: int = 0
    """Save every so many steps; 0: never by this schedule."""
    keep: int = 0
    """Keep only the newest so many checkpoints of this schedule; 0 or below: all."""

    def problems(self) -> Iterator[Problem]:
        if self.every < 0:
            yield Problem("every", f"{self.every} is negative; 0 means never")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a run. One is always written at the end and on preemption."""

    dump: SaveEvery = field(default_factory=lambda: SaveEvery(every=1000))
    """Checkpoints to resume from."""
    eval: SaveEvery = field(default_factory=SaveEvery)
    """Checkpoints to evaluate and trace later; kept apart from `dump`'s retention."""
    path: str | None = None
    """Where they go; dump_dir/checkpoints if null."""
    init_ckpt_path: str | None = None
    """Start a new run from these weights: a run, a checkpoint directory or a consolidated file. Ignored when the run
    has a checkpoint of its own to resume from."""
    continue_training_from_init: bool = False
    """With init_ckpt_path: take optimizer state and step from there as well."""
    async_save: bool = False
    """Write while training goes on; costs a copy of the state in host memory."""

    def problems(self) -> Iterator[Problem]:
        if self.continue_training_from_init and self.init_ckpt_path is None:
            yield Problem("continue_training_from_init", "needs init_ckpt_path")

    def kind_of(self, step: int) -> str | None:
        """The schedule that saves at `step`: eval outlives dump where both do."""
        for name, schedule in (("eval", self.eval), ("dump", self.dump)):
            if schedule.every > 0 and step % schedule.every == 0:
                return name
        return None
