"""`relu`: A(x) = relu(x), the simplest cut, and the control for what a nonlinearity alone does to the stream.

k is not used. With `schedule: mask` alpha is the slope of the negative side, 1 dense ... 0 ReLU.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from topklm.sparsity.activation import Activation
from topklm.sparsity.registry import register


@register("relu")
class ReLU(Activation):
    """Every positive entry."""

    forms: ClassVar[tuple[str, ...]] = ("blend", "relu")
    uses_k: ClassVar[bool] = False

    def selected(self, x: Tensor) -> Tensor:
        return ~(x.detach() <= 0)
