"""When checkpoints are written and which are kept, in Meta Lingua's names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class SaveEvery:
    """One schedule of checkpoints."""

    every: int = 1000
    """Save every so many steps; 0: never by this schedule."""
    keep: int = 0
    """Keep only the newest so many checkpoints of this schedule; 0 or below: all. One that was written while the run
    was sick (steps skipped, or the loss in a spike) takes no healthy one's place."""

    def includes(self, step: int) -> bool:
        """Whether `step` is one of this schedule."""
        return self.every > 0 and step % self.every == 0

    def problems(self) -> Iterator[Problem]:
        if self.every < 0:
            yield Problem("every", f"{self.every} is negative; 0 means never")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a run. One is always written at the end and on preemption."""

    dump: SaveEvery = field(default_factory=SaveEvery)
    """Checkpoints to resume from."""
    eval: SaveEvery = field(default_factory=SaveEvery)
    """Checkpoints to evaluate and trace later; kept apart from `dump`'s retention. Its steps are those of the
    validation in training too, unless eval.every says otherwise."""
    path: str | None = None
    """Where they go; dump_dir/checkpoints if null."""
    init_ckpt_path: str | None = None
    """Start a new run from these weights: a run, a checkpoint directory, a consolidated file, or a Llama of Hugging
    Face; `model` must describe them (init_from takes it from there). Ignored when the run has a checkpoint of its
    own to resume from."""
    continue_training_from_init: bool = False
    """With init_ckpt_path: take optimizer state and step from there as well."""
    async_save: bool = False
    """Write while training goes on; costs a copy of the state in host memory."""

    def problems(self) -> Iterator[Problem]:
        if self.continue_training_from_init and self.init_ckpt_path is None:
            yield Problem("continue_training_from_init", "true needs init_ckpt_path, the checkpoint to go on from")

    def saves_at(self, step: int) -> bool:
        """Whether a schedule saves at `step`."""
        return any(schedule.includes(step) for schedule in (self.dump, self.eval))

    def retired(self, steps: list[int], sick: Collection[int] = ()) -> list[int]:
        """Of the saved `steps` (ascending), those that no schedule keeps. Others than the schedules' stay.

        A schedule keeps its newest `keep` healthy ones, and its newest if that is one of the `sick`, to resume from.
        """
        kept: set[int] = set()
        for schedule in (self.dump, self.eval):
            of_schedule = [step for step in steps if schedule.includes(step)]
            healthy = [step for step in of_schedule if step not in sick]
            kept.update(of_schedule if schedule.keep <= 0 else healthy[-schedule.keep :] + of_schedule[-1:])
        return [step for step in steps if self.saves_at(step) and step not in kept]
