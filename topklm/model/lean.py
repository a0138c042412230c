"""Norm and SwiGLU that keep their inputs for the backward pass and nothing that follows from them.

Autograd keeps what every operation needs: x and x / rms of a norm, and four widths F of a SwiGLU. From the inputs the
rest is made again in a fraction of a product's time, and the activations of a block shrink by a third
(docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topklm.model.linear import linear, weight_gradient


def swiglu(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """(silu(a) * b) @ weight.T of a, b [..., F] and weight [D, F]. arXiv:2002.05202, Eq. 6."""
    return _SwiGLU.apply(a, b, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight [D] over the last dimension, in fp32 (fp64 for fp64), cast back."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    return _normed(x, weight, eps)[0]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, weight)
        return linear(F.silu(a).mul_(b), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,), (a, b, weight) = grads, ctx.saved_tensors
        gate = F.silu(a)
        to_weight = weight_gradient(gate * b, grad)
        inner = linear(grad, weight.T)  # [..., F]
        to_b = gate.mul_(inner)
        inner.mul_(b)  # in place, as below: a third tensor as wide would be what the backward pass needs at most
        return torch.ops.aten.silu_backward.grad_input(inner, a, grad_input=inner), to_b, to_weight


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms [..., 1]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    scale = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(weight).type_as(x), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (x, weight, scale) = grads, ctx.saved_tensors
        grad = grad.to(scale.dtype)
        unit = x * scale  # x / rms
        to_weight = (grad * unit).sum_to_size(weight.shape)
        grad = grad * weight
        along = (grad * unit).mean(-1, keepdim=True)
        return grad.sub_(unit.mul_(along)).mul_(scale).type_as(x), to_weight.type_as(weight), None
