"""Running means over training steps: thresholds and scales that a step uses are those of the steps before it."""

from __future__ import annotations

import torch
from torch import Tensor


def follow(value: Tensor, steps: Tensor, found: Tensor, skip: Tensor, momentum: float) -> None:
    """In place, value <- value + max(1 - momentum, 1 / (steps + 1)) (found - value) and steps <- steps + 1; all 0-d.

    So it is the plain mean at first and an exponential one later. Nothing moves where `skip` is true, or where what
    was found is not finite. No sync.
    """
    found = found.to(value.dtype)
    rate = torch.clamp(1 / (steps + 1), min=1 - momentum)
    taken = ~skip & found.isfinite()
    value.copy_(torch.where(taken, torch.lerp(value, found, rate), value))
    steps.add_(taken)
