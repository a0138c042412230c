"""`jumprelu`: a learned threshold for each neuron of each layer.

Definition: A(x) = x H(x - s theta), theta [D] >= 0 in fp32, H the step, s the layer's scale. Source: JumpReLU (arXiv
2407.14435), for autoencoders; constants are recall or ours, see the options. The gradient is that of a straight-through
estimator with the rectangle kernel K(u) = 1[|u| < 1/2] of width eps; with u = (x / s - theta) / eps

    dA/dx = H(x - s theta),  dA/dtheta = -s (theta / eps) K(u),  dH/dtheta = -1 / eps K(u).

s is the root mean square of the layer's stream (0-d, fp32), so theta and eps mean the same in every layer: the source
scales its inputs to unit mean square, a residual stream cannot be scaled (its layers are 1 to 9). It follows, over
training steps, as the threshold of `batchtopk` does: the root of the mean square over the global batch of the steps
before, from sums, so it is causal and the same however the batch is divided; a checkpoint holds it, and validation,
generation and analysis use the stored one. 1 until the first step has been measured. That there is such a scale: ours.

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
from topklm.sparsity.running import follow

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class JumpReLUOptions:
    """Options of `jumprelu`."""

    threshold: float = 0.001
    """theta at the start, in root mean squares of the stream as all here. 0.001: recall."""
    bandwidth: float = 0.1
    """eps. 0.001 in the source (recall); 0.1: ours."""
    penalty: Literal["target", "linear"] = "target"
    """target: weight ((L0 - k) / k)^2; linear: weight L0, where k is not used."""
    weight: float = 1.0
    """Of the penalty; ours."""
    lr: float = 0.03
    """Highest learning rate of the thresholds; it follows the schedule of `optim.lr`. Adam moves a threshold by at most
    about this much per step, and about 1 to 2 are to be gone. Ours."""
    momentum: float = 0.9
    """Weight of the former scale at each step; ours."""

    def problems(self) -> Iterator[Problem]:
        if not 0 <= self.momentum < 1:
            yield Problem("momentum", f"{self.momentum} must be at least 0 and below 1")
        for name in ("bandwidth", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                yield Problem(name, f"{getattr(self, name)} must be a finite number above 0")
        for name in ("threshold", "weight"):
            if not 0 <= getattr(self, name) < math.inf:
                yield Problem(name, f"{getattr(self, name)} must be a finite number that is not negative")


@register("jumprelu")
class JumpReLU(Activation):
    """Learned thresholds, which a checkpoint holds as `layers.<i>.threshold` beside the scale they are given in."""

    Options: ClassVar[type] = JumpReLUOptions
    forms: ClassVar[tuple[str, ...]] = ("blend",)
    gradients: ClassVar[tuple[str, ...]] = ("plain",)
    state_names: ClassVar[tuple[str, ...]] = ("threshold", "scale", "measured")
    trains_differently = True

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        self.lr = self.options.lr
        start = torch.full((dim or 0,), self.options.threshold, dtype=torch.float32, device="cpu")
        self.threshold = nn.Parameter(start)  # [D]
        self.scale = torch.ones((), dtype=torch.float32, device="cpu")
        self.measured = torch.zeros((), dtype=torch.float32, device="cpu")  # steps that it was measured in
        # tokens, kept entries, mean squares of the tokens, near [D]
        self.seen = torch.zeros(3 + len(start), dtype=torch.float64, device="cpu")

    def selected(self, x: Tensor) -> Tensor:
        return above(x.detach(), self.threshold.detach() * self.scale)

    def apply(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        mask = self.selected(x)
        return _JumpReLU.apply(x, self.threshold, self.scale, alpha, mask, self.options.bandwidth)

    def in_training(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        assert self.seen is not None
        with torch.no_grad():
            mask = self.selected(x)
            near = _near(x.detach(), self.threshold.detach(), self.scale, self.options.bandwidth)
            squares = x.detach().to(torch.promote_types(x.dtype, torch.float32)).square().mean(-1)
            tokens = self.seen.new_full((1,), squares.numel())
            if self.counted is not None:
                rows = self.counted.view(-1, *(1,) * (squares.dim() - 1))  # [B, 1]
                mask, near, squares = mask & rows[..., None], near & rows[..., None], squares * rows
                tokens = tokens / len(rows) * rows.sum()
            counts = (
                tokens,
                mask.sum(dtype=torch.float64).view(1),
                squares.sum(dtype=torch.float64).view(1),
                near.flatten(0, -2).sum(0, dtype=torch.float64),
            )
            self.seen.copy_(torch.cat(counts))
        return self(x, alpha)

    def update(self, seen: Tensor, skip: Tensor) -> Tensor | None:
        l0, slope = seen[1] / seen[0], -seen[3:] / seen[0] / self.options.bandwidth  # dL0/dtheta [D]
        weight, k = self.options.weight, self.k
        if self.options.penalty == "linear":
            value, gradient = weight * l0, weight * slope
        else:
            value, gradient = weight * ((l0 - k) / k) ** 2, 2 * weight * (l0 - k) / k**2 * slope
        if self.threshold.grad is None:
            self.threshold.grad = torch.zeros_like(self.threshold)
        # In the first step the unit is not known yet, and one gradient of another size would slow Adam for long.
        self.threshold.grad += torch.where(skip | (self.measured == 0), 0.0, gradient).float()
        follow(self.scale, self.measured, (seen[2] / seen[0]).sqrt(), skip, self.options.momentum)
        return value

    @torch.no_grad()
    def after_step(self) -> None:
        self.threshold.clamp_(min=0)


def _near(x: Tensor, threshold: Tensor, scale: Tensor, bandwidth: float) -> Tensor:
    """K((x / s - theta) / eps) as bool [..., D]."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) - (threshold * scale).to(wide)).abs() < (scale * (bandwidth / 2)).to(wide)


class _JumpReLU(torch.autograd.Function):
    """x where selected, alpha x (None: 0) elsewhere. Saves two bool masks instead of x."""

    @staticmethod
    def forward(
        x: Tensor, threshold: Tensor, scale: Tensor, alpha: Tensor | None, mask: Tensor, bandwidth: float
    ) -> Tensor:
        return torch.where(mask, x, x.new_zeros(()) if alpha is None else x * alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, threshold, scale, alpha, mask, ctx.bandwidth = inputs
        ctx.save_for_backward(mask, _near(x, threshold, scale, ctx.bandwidth), threshold, scale, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        mask, near, threshold, scale, alpha = ctx.saved_tensors
        to_x = torch.where(mask, grad, grad.new_zeros(()) if alpha is None else grad * alpha)
        total = torch.where(near, grad, 0).flatten(0, -2).sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
        jump = -scale * (threshold / ctx.bandwidth) * total  # [D]
        return to_x, (jump if alpha is None else jump * (1 - alpha)).to(threshold.dtype), None, None, None, None
