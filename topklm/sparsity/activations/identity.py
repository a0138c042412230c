"""`identity`: A(x) = x, the dense model run through the code of a sparse one, as a control. k is not used."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from topklm.sparsity.activation import Activation
from topklm.sparsity.registry import register


@register("identity")
class Identity(Activation):
    """Every entry."""

    cuts: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    forms: ClassVar[tuple[str, ...]] = ("identity",)
    schedules: ClassVar[tuple[str, ...]] = ("none",)
    gradients: ClassVar[tuple[str, ...]] = ("plain",)
    uses_k: ClassVar[bool] = False

    def apply(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        return x

    def selected(self, x: Tensor) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)

    def active(self, x: Tensor) -> Tensor:
        return x != 0
