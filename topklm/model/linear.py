"""x @ W.T by the library that is faster on this machine: torch's own product, or oneDNN's for fp32 on some CPUs.

In torch's builds for x86, products of fp32 matrices go to Intel's MKL, which leaves AVX-512 unused on the CPUs of
others; oneDNN uses it, and is twice as fast there (docs/performance.md). Both are exact to fp32 rounding. What decides
is the machine, never a measurement: a run that is resumed has to get the same digits.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEAST_ROWS = 16
"""Fewer go to MKL: one row is a product with a vector, bound by the memory."""


class Linear(nn.Linear):
    """`nn.Linear` without a bias: x [..., D] to [..., F]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., D] @ weight [F, D].T, with a gradient."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x, weight)
    return _product(x, weight)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """grad.T @ x, [F, D]: of the weight of a product of x [..., D] whose result has the gradient `grad` [..., F]."""
    x, grad = x.flatten(0, -2), grad.flatten(0, -2)
    if not _by_onednn(grad, x):
        return grad.T @ x
    # The first factor is copied to have its rows in order: the smaller one.
    return linear(x.T, grad.T).T if x.shape[1] < grad.shape[1] else linear(grad.T, x.T)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        to_x, to_weight = ctx.needs_input_grad
        return linear(grad, weight.T) if to_x else None, weight_gradient(x, grad) if to_weight else None


def _product(x: Tensor, weight: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _opaque_product(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@torch.library.custom_op("topklm::product", mutates_args=())
def _opaque_product(x: Tensor, weight: Tensor) -> Tensor:
    """Inductor takes oneDNN's operation for one of inference, whose weights never change; so it sees this one."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN_IS_FASTER
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() >= _LEAST_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
    )


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "GenuineIntel" if "Intel" in platform.processor() else platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "GenuineIntel")


ONEDNN_IS_FASTER = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and _vendor() != "GenuineIntel"
)
"""Whether MKL leaves half of this CPU unused: one with AVX-512 that is not Intel's."""

PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.topklm.product.default,
    *((torch.ops.mkldnn._linear_pointwise.default,) if torch.backends.mkldnn.is_available() else ()),
)
"""The operations that products of weights become, for what treats them differently (activation checkpointing)."""
