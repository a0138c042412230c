"""NaN or infinity in the loss or the gradient: no optimizer step is taken with it, and nothing is saved after it.

The verdict of a step is a 0-d tensor on the device, handed to the fused optimizer, which then leaves weights and
moments as they are. So the step is stopped without waiting for the device; the host reads the verdicts when it reads
the metrics, and before every validation and save. On a CPU it looks at every step, which costs nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from topklm.errors import NonFiniteError


class NonFiniteGuard:
    """Watches loss and gradient norm. `describe(step)` tells this rank's documents of a step, for the message."""

    def __init__(
        self,
        mode: Literal["stop", "skip"],
        limit: int,
        device: torch.device,
        describe: Callable[[int], str],
        skipped: int = 0,
    ):
        self.mode, self.limit, self.describe = mode, limit, describe
        # Bad steps in a row now and at most; skipped steps; first step of the last row; then, of that step: whether
        # the loss of this rank, and the loss over all ranks, was finite.
        self._state = torch.zeros(6, device=device, dtype=torch.float64)
        in_a_row, longest, self._skipped, self._first, own_fine, loss_fine = self._state.unbind()
        self._in_a_row, self._longest, self._own_fine, self._loss_fine = in_a_row, longest, own_fine, loss_fine
        self._skipped.fill_(skipped)

    def verdict(self, step: int, own_loss: Tensor, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1.0 where this optimizer step must not be taken, else 0.0: a 0-d fp32 tensor, for `optimizer.found_inf`.

        `own_loss` is of this rank; `loss` and `grad_norm` are global, so that all ranks decide alike. With "stop",
        every step after a bad one is refused as well, until the host has seen it.
        """
        bad = ~(loss.isfinite() & grad_norm.isfinite())
        begins = bad & (self._in_a_row == 0)
        if self.mode == "stop":
            bad = bad | (self._in_a_row > 0)
        for kept, value in (
            (self._first, step),
            (self._own_fine, own_loss.isfinite()),
            (self._loss_fine, loss.isfinite()),
        ):
            kept.copy_(torch.where(begins, value, kept))
        self._in_a_row.add_(1).mul_(bad)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)
        self._skipped.add_(bad)
        return bad.float()

    def check(self) -> int:
        """Read the verdicts; the number of skipped steps so far. Raises `NonFiniteError`. Synchronises."""
        _, longest, skipped, first, own_fine, loss_fine = map(int, self._state.tolist())
        if longest > (0 if self.mode == "stop" else self.limit):
            if own_fine and not loss_fine:
                where = "The loss of this rank's documents was finite; another rank names its own."
            else:
                where = self.describe(first)
            raise NonFiniteError(f"{self._what(first, longest)} {where}\n{_ADVICE}")
        return skipped

    def _what(self, first: int, longest: int) -> str:
        if self.mode == "stop":
            return (
                f"loss or gradient of step {first} (counted from 0) is not finite; the weights are as before it and "
                "nothing was saved since."
            )
        return (
            f"{longest} steps in a row, from step {first} on, had a loss or gradient that is not finite; "
            f"max_nonfinite allows {self.limit}."
        )


_ADVICE = (
    "Resume with a lower learning rate or other data, set on_nonfinite=skip, or find the operation with "
    "distributed.detect_anomaly=true."
)
