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
    """Watches loss and gradient norm. `describe(step)` tells the documents of a step's batch, for the message."""

    def __init__(self, mode: Literal["stop", "skip"], limit: int, device: torch.device, describe: Callable[[int], str]):
        self.mode, self.limit, self.describe = mode, limit, describe
        zeros = torch.zeros(4, device=device, dtype=torch.float64)
        self._in_a_row, self._longest, self._skipped, self._first_bad = zeros.unbind()
        self._first_bad.fill_(-1)

    def verdict(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1.0 where this optimizer step must not be taken, else 0.0: a 0-d fp32 tensor, for `optimizer.found_inf`.

        With "stop", every step after a bad one is refused as well, until the host has seen it.
        """
        bad = ~(loss.isfinite() & grad_norm.isfinite())
        self._first_bad.copy_(torch.where(bad & (self._first_bad < 0), step, self._first_bad))
        if self.mode == "stop":
            bad = self._first_bad >= 0
        self._in_a_row.add_(1).mul_(bad)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)
        self._skipped.add_(bad)
        return bad.float()

    def check(self) -> int:
        """Read the verdicts; the number of skipped steps so far. Raises `NonFiniteError`. Synchronises."""
        longest, skipped, first = (
            int(t) for t in torch.stack((self._longest, self._skipped, self._first_bad)).tolist()
        )
        if self.mode == "stop" and first >= 0:
            raise NonFiniteError(
                f"loss or gradient of step {first} (counted from 0) is not finite; the weights are as before it and "
                f"nothing was saved since. {self.describe(first)}\n"
                "Resume with a lower learning rate or other data, set on_nonfinite=skip, or find the operation with "
                "distributed.detect_anomaly=true."
            )
        if longest > self.limit:
            raise NonFiniteError(
                f"{longest} steps in a row had a loss or gradient that is not finite (the first: step {first}); "
                f"max_nonfinite allows {self.limit}. {self.describe(first)}"
            )
        return skipped
