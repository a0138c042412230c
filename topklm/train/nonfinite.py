"""NaN or infinity in the loss or the gradient: no optimizer step is taken with it, and nothing is saved after it.

The verdict of a step is a 0-d tensor on the device, handed to the fused optimizer, which then leaves weights and
moments as they are. So the step is stopped without waiting for the device. What every step was like stays there too,
until the host reads it: with the metrics, and before every validation and save. On a CPU it looks at every step, which
costs nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, as the host reads it."""

    step: int
    """Its number, counted from 0; in metrics.jsonl and in all files it is the one after."""
    loss: float
    """Mean over the tokens of the global batch, nats."""
    own_loss: float
    """Summed over the tokens of this rank."""
    grad_norm: float
    """Over all ranks, before clipping."""
    refused: bool
    """Whether the optimizer left everything as it was."""

    @property
    def global_step(self) -> int:
        return self.step + 1

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def as_json(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)


class NonFiniteGuard:
    """Watches loss and gradient norm; the same on every rank but for `own_loss`.

    "stop" allows no bad step, "skip" allows `limit` in a row. Once more are there, all later steps are refused, until
    the host has seen it: the weights stay those that the row began with. Parameters: `capacity`, the most steps
    between two readings; `skipped` and `row`, of the process before: how many steps were skipped, and the bad ones in a
    row with which it ended.
    """

    def __init__(
        self,
        mode: Literal["stop", "skip"],
        limit: int,
        device: torch.device,
        capacity: int,
        skipped: int = 0,
        row: Sequence[int] = (),
    ):
        self.allowed = 0 if mode == "stop" else limit
        self.skipped = skipped
        """Steps that were not taken, of those that were read."""
        self.row = list(row)[-self.allowed :] if self.allowed else []  # the configuration may allow fewer now
        """Numbers of the bad steps in a row with which what was read ends."""
        self._in_a_row = torch.full((), float(len(self.row)), device=device)
        self._kept = torch.zeros(capacity, 4, dtype=torch.float64, device=device)
        self._unread: list[int] = []

    def verdict(self, step: int, own_loss: Tensor, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1.0 where this optimizer step must not be taken, else 0.0: a 0-d fp32 tensor, for `optimizer.found_inf`.

        `own_loss` is of this rank; `loss` and `grad_norm` are global, so that all ranks decide alike.
        """
        bad = ~(loss.isfinite() & grad_norm.isfinite()) | (self._in_a_row > self.allowed)
        self._in_a_row.add_(1).mul_(bad)
        figures = [t.detach().to(self._kept) for t in (loss, own_loss, grad_norm, bad)]
        self._kept[len(self._unread)] = torch.stack(figures)
        self._unread.append(step)
        return bad.float()

    def read(self) -> list[StepRecord]:
        """The steps since the last call, in their order. Waits for the device."""
        rows = self._kept[: len(self._unread)].tolist()
        records = [
            StepRecord(step, loss, own_loss, grad_norm, bool(refused))
            for step, (loss, own_loss, grad_norm, refused) in zip(self._unread, rows, strict=True)
        ]
        self._unread = []
        for record in records:
            self.skipped += record.refused
            self.row = [*self.row, record.step] if record.refused else []
        return records

    @property
    def failed(self) -> bool:
        """Whether what was read ends with a row that is too long."""
        return len(self.row) > self.allowed

    def was_skipped(self, record: StepRecord) -> bool:
        """Whether a step that was read was left out by rule, and is not one of those that end the run."""
        return record.refused and record.step not in self.row[self.allowed :]
