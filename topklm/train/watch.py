"""What a run does about steps that went wrong: it stops, or skips and lists them; spikes of the loss are reported.

Every rank has one and calls the same methods; the main rank writes `skipped.jsonl` and `spikes.jsonl`. All of it works
on what the host reads at log steps and before it saves, and is the same for a run that was interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from topklm.data import TrainLoader
from topklm.errors import NonFiniteError
from topklm.train.config import TrainConfig
from topklm.train.metrics import append_line
from topklm.train.nonfinite import NonFiniteGuard, StepRecord, as_json
from topklm.train.optim import learning_rate
from topklm.train.parallel import World
from topklm.train.spikes import Spike, SpikeDetector

log = logging.getLogger("topklm.train")
SKIPPED = "skipped.jsonl"
SPIKES = "spikes.jsonl"


class Watch:
    """Watches the steps of a run.

    `loader(rank, world_size)` makes a loader, to name documents; `explain(record, title)` finds out why a step was
    not finite; `state` is that of a checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        loader: Callable[[int, int], TrainLoader],
        explain: Callable[[StepRecord, str], NonFiniteError],
        state: dict[str, Any],
    ):
        self.config, self.world = config, world
        self._dump_dir, self._loader, self._explain = Path(config.dump_dir), loader, explain
        skipped, row = state.get("skipped_steps", 0), state.get("nonfinite_row", ())
        self._guard = NonFiniteGuard(
            config.on_nonfinite, config.max_nonfinite, world.device, config.logging.freq, skipped, row
        )
        self._spikes = SpikeDetector(config.spikes, state.get("spikes")) if config.spikes is not None else None
        self._skipped_at_save = skipped

    def verdict(self, step: int, own_loss: Tensor, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """For the optimizer: `NonFiniteGuard.verdict`. On a CPU the host looks at once."""
        refused = self._guard.verdict(step, own_loss, loss, grad_norm)
        if self.world.device.type == "cpu":
            self.look()
        return refused

    def look(self) -> None:
        """Read what the device kept of the steps since the last time. Raises `NonFiniteError`. Synchronises."""
        records = self._guard.read()
        if skipped := [record for record in records if self._guard.was_skipped(record)]:
            self._list_skipped(skipped)
        if self._guard.failed:
            bad = next(record for record in records if record.step in self._guard.row and not record.is_finite)
            raise self._explain(bad, self._title(bad))
        for record in records:
            if not record.refused and self._spikes is not None:
                self._see_loss(self._spikes, record)

    def figures(self) -> dict[str, int]:
        """Counts since the run began, of the steps that were read."""
        spikes = {} if self._spikes is None else {"loss/spikes": self._spikes.count}
        return {"optim/skipped_steps": self._guard.skipped, **spikes}

    @property
    def sick(self) -> str | None:
        """Why a checkpoint that is written now is not one of a healthy run; None if it is."""
        if skipped := self._guard.skipped - self._skipped_at_save:
            return f"steps skipped since the checkpoint before: {skipped}"
        if self._spikes is not None and (spike := self._spikes.current) is not None:
            return f"the loss is in a spike since step {spike.step + 1}"
        return None

    def saved(self) -> None:
        """A checkpoint was written."""
        self._skipped_at_save = self._guard.skipped

    def state_dict(self) -> dict[str, Any]:
        """For the train state of a checkpoint."""
        spikes = {} if self._spikes is None else {"spikes": self._spikes.state_dict()}
        return {"skipped_steps": self._guard.skipped, "nonfinite_row": self._guard.row, "sick": self.sick, **spikes}

    def _title(self, bad: StepRecord) -> str:
        if self.config.on_nonfinite == "stop":
            return (
                f"loss or gradient of step {bad.global_step} is not finite; the step was not taken and nothing was "
                "saved since"
            )
        return (
            f"loss or gradient is not finite in step {self._guard.row[0] + 1} and those after it, more than the "
            f"max_nonfinite={self.config.max_nonfinite} in a row that may be skipped; none was taken"
        )

    def _list_skipped(self, skipped: Sequence[StepRecord]) -> None:
        own = [math.isfinite(record.own_loss) for record in skipped]
        fine: list[Any] = [own] * self.world.size
        if self.world.cpu_group is not None:
            dist.all_gather_object(fine, own, group=self.world.cpu_group)
        if not self.world.is_main:
            return
        for i, record in enumerate(skipped):
            ranks = [rank for rank, of_rank in enumerate(fine) if not of_rank[i]]
            what = f"loss of rank {', '.join(map(str, ranks))}" if ranks else "gradient"
            log.warning("step %d skipped: the %s is not finite", record.global_step, what)
            documents = [name for rank in ranks for name in self._documents(record.step, rank, self.world.size)]
            self._append(SKIPPED, record, ranks=ranks, documents=documents or self._documents(record.step, 0, 1))

    def _see_loss(self, detector: SpikeDetector, record: StepRecord) -> None:
        spike = detector.see(record.step, record.loss)
        if spike is None or not self.world.is_main:
            return
        if detector.current is None:
            after = record.step - spike.step
            self._append(SPIKES, record, spike_at=spike.step + 1, recovered_after=after)
            log.warning("step %d: the loss is as usual again, %d steps after its spike", record.global_step, after)
            return
        self._begin(spike, record)

    def _begin(self, spike: Spike, record: StepRecord) -> None:
        log.warning(
            "step %d: the loss of %.4f is %.1f deviations above the median of %.4f; its documents are in %s",
            record.global_step, spike.loss, spike.multiple, spike.median, SPIKES,
        )  # fmt: skip
        self._append(
            SPIKES, record, median=spike.median, deviation=spike.deviation, multiple=spike.multiple,
            lr=learning_rate(self.config.optim, record.step, self.config.steps),
            documents=self._documents(record.step, 0, 1),
        )  # fmt: skip

    def _documents(self, step: int, rank: int, world_size: int) -> list[str]:
        """Of one rank's sequences at a step; as one rank of 1, of the global batch."""
        return self._loader(rank, world_size).documents_of_step(step)

    def _append(self, name: str, record: StepRecord, **more: Any) -> None:
        figures = {"loss": as_json(record.loss), "grad_norm": as_json(record.grad_norm)}
        append_line(self._dump_dir / name, {"global_step": record.global_step, **figures, **more})
