"""`jumprelu`: a learned threshold for each neuron of each layer.

Definition: A(x) = x H(x - theta), theta [D] >= 0 in fp32, H the step. Source: JumpReLU (arXiv 2407.14435), for
autoencoders; constants are recall or ours, see the options. The gradient is that of a straight-through estimator with
the rectangle kernel K(u) = 1[|u| < 1/2] of width eps:

    dA/dx = H(x - theta),  dA/dtheta = -(theta / eps) K((x - theta) / eps),  dH/dtheta = -1 / eps K((x - theta) / eps).

The loss has for each layer the term weight ((L0 - k) / k)^2 (`penalty: target`, k is then the mean L0 that is aimed at)
or weight L0 (`penalty: linear`), L0 being the mean number of kept entries over the global batch. It moves thresholds
only, so its gradient is added between the backward pass and the step, from counts: the same whatever the division into
micro-batches and ranks. Its value is reported as `loss/l0`, and is no part of `loss/out`. Thresholds have an Adam of
their own, without weight decay and outside the clipping of gradients.

While annealing (schedule mask) unselected entries are alpha x, and dA/dtheta has the factor 1 - alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from topklm.errors import Problem
from topklm.sparsity.activation import Activation
from topklm.sparsity.masks import above
from topklm.sparsity.registry import register

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class JumpReLUOptions:
    """Options of `jumprelu`."""

    threshold: float = 0.001
    """theta at the start. 0.001: recall."""
    bandwidth: float = 0.2
    """eps. 0.001 in the source (recall), where activations are scaled to unit mean square; 0.2: ours, a tenth of the
    standard deviation of a stream that is about 2. Like `lr` it is in the stream's own unit: look before a long run."""
    penalty: Literal["target", "linear"] = "target"
    """target: weight ((L0 - k) / k)^2; linear: weight L0, where k is not used."""
    weight: float = 1.0
    """Of the penalty; ours."""
    lr: float = 0.03
    """Highest learning rate of the thresholds; it follows the schedule of `optim.lr`. Adam moves a threshold by at most
    about this much per step, so steps times lr must reach the stream's scale. Ours."""

    def problems(self) -> Iterator[Problem]:
        for name in ("bandwidth", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                yield Problem(name, f"{getattr(self, name)} must be a finite number above 0")
        for name in ("threshold", "weight"):
            if not 0 <= getattr(self, name) < math.inf:
                yield Problem(name, f"{getattr(self, name)} must be a finite number that is not negative")


@register("jumprelu")
class JumpReLU(Activation):
    """Learned thresholds, which a checkpoint holds as `layers.<i>.threshold`."""

    Options: ClassVar[type] = JumpReLUOptions
    forms: ClassVar[tuple[str, ...]] = ("blend",)
    gradients: ClassVar[tuple[str, ...]] = ("plain",)
    state_names: ClassVar[tuple[str, ...]] = ("threshold",)
    trains_differently = True

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        self.lr = self.options.lr
        start = torch.full((dim or 0,), self.options.threshold, dtype=torch.float32, device="cpu")
        self.threshold = nn.Parameter(start)  # [D]
        self.seen = torch.zeros(2 + len(start), dtype=torch.float64, device="cpu")  # tokens, kept entries, near [D]

    def selected(self, x: Tensor) -> Tensor:
        return above(x.detach(), self.threshold.detach())

    def apply(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        mask = self.selected(x)
        return _JumpReLU.apply(x, self.threshold, alpha, mask, self.options.bandwidth)

    def in_training(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        assert self.seen is not None
        with torch.no_grad():
            mask, near = self.selected(x), _near(x.detach(), self.threshold.detach(), self.options.bandwidth)
            tokens = self.seen.new_full((1,), x[..., 0].numel())
            counts = (tokens, mask.sum(dtype=torch.float64).view(1), near.flatten(0, -2).sum(0, dtype=torch.float64))
            self.seen.copy_(torch.cat(counts))
        return self(x, alpha)

    def update(self, seen: Tensor, skip: Tensor) -> Tensor | None:
        l0, slope = seen[1] / seen[0], -seen[2:] / seen[0] / self.options.bandwidth  # dL0/dtheta [D]
        weight, k = self.options.weight, self.k
        if self.options.penalty == "linear":
            value, gradient = weight * l0, weight * slope
        else:
            value, gradient = weight * ((l0 - k) / k) ** 2, 2 * weight * (l0 - k) / k**2 * slope
        if self.threshold.grad is None:
            self.threshold.grad = torch.zeros_like(self.threshold)
        self.threshold.grad += torch.where(skip, 0.0, gradient).float()
        return value

    @torch.no_grad()
    def after_step(self) -> None:
        self.threshold.clamp_(min=0)


def _near(x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K((x - theta) / eps) as bool [..., D]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) - threshold.to(wide)).abs() < bandwidth / 2


class _JumpReLU(torch.autograd.Function):
    """x where selected, alpha x (None: 0) elsewhere. Saves two bool masks instead of x."""

    @staticmethod
    def forward(x: Tensor, threshold: Tensor, alpha: Tensor | None, mask: Tensor, bandwidth: float) -> Tensor:
        return torch.where(mask, x, x.new_zeros(()) if alpha is None else x * alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, threshold, alpha, mask, ctx.bandwidth = inputs
        ctx.save_for_backward(mask, _near(x, threshold, ctx.bandwidth), threshold, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        mask, near, threshold, alpha = ctx.saved_tensors
        to_x = torch.where(mask, grad, grad.new_zeros(()) if alpha is None else grad * alpha)
        total = torch.where(near, grad, 0).flatten(0, -2).sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
        jump = -(threshold / ctx.bandwidth) * total  # [D]
        return to_x, (jump if alpha is None else jump * (1 - alpha)).to(threshold.dtype), None, None, None
