"""The operation of the kernels for PyTorch: eager, compiled and recomputed alike, with its gradient."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import Tensor

from topklm.sparsity.selection import check_k


def _marks(alpha: Tensor | None, form: str) -> bool:
    """Whether the selection has to be kept beside the output: after a ReLU at alpha = 0 the output tells it."""
    return alpha is not None or form == "identity"


@functools.cache
def _quantile(k: int, dim: int) -> float:
    """Of the normal distribution: about k of D entries lie above it."""
    return statistics.NormalDist().inv_cdf(1 - k / (dim + 1))


@torch.library.custom_op("topklm::residual_topk", mutates_args=())
def residual_topk(
    stream: Tensor, update: Tensor | None, k: Tensor, alpha: Tensor | None, form: str
) -> tuple[Tensor, Tensor]:
    """(A(stream + update), bits): tensors [..., D] of fp32, bf16 or fp16; without `update`, A(stream).

    A is `topk` where alpha is None, otherwise `annealed_topk`, to the bit. `k`, `alpha`: 0-d on the CPU, so that they
    reach the kernel by value and a compiled block is the same graph for all of them. `form`: blend, identity or relu.
    bits, uint8 [..., D / 8 rounded up], lowest bit first: entries with the whole gradient; empty where the output
    tells. Raises `ConfigError` unless 1 <= k <= D.
    """
    from topklm.sparsity.kernels import rows

    n = int(k)
    check_k(stream, n)
    out, bits = _like(stream, alpha, form)
    if out.numel():
        value = None if alpha is None else float(alpha)
        added = None if update is None else update.contiguous()
        z = _quantile(n, stream.shape[-1])
        rows.forward(stream.contiguous(), added, out, bits, n, z, value, form)
    return out, bits


def _like(stream: Tensor, alpha: Tensor | None, form: str) -> tuple[Tensor, Tensor]:
    bits = (*stream.shape[:-1], (stream.shape[-1] + 7) // 8) if _marks(alpha, form) else (0,)
    out = torch.empty_like(stream, memory_format=torch.contiguous_format)
    return out, stream.new_empty(bits, dtype=torch.uint8)


@residual_topk.register_fake
def _(stream: Tensor, update: Tensor | None, k: Tensor, alpha: Tensor | None, form: str) -> tuple[Tensor, Tensor]:
    return _like(stream, alpha, form)


@torch.library.custom_op("topklm::residual_topk_backward", mutates_args=())
def _to_x(grad: Tensor, out: Tensor | None, bits: Tensor, alpha: Tensor | None) -> Tensor:
    """The gradient of x: that of the output where a bit is set, elsewhere alpha times it; 0 where `out` is 0."""
    from topklm.sparsity.kernels import rows

    to_x = torch.empty_like(grad, memory_format=torch.contiguous_format)
    if to_x.numel():
        rows.backward(grad.contiguous(), out, bits, to_x, None if alpha is None else float(alpha))
    return to_x


@_to_x.register_fake
def _(grad: Tensor, out: Tensor | None, bits: Tensor, alpha: Tensor | None) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, update, _, alpha, form = inputs
    out, bits = output
    ctx.adds, ctx.marks = update is not None, _marks(alpha, form)
    ctx.save_for_backward(out if form == "relu" or not ctx.marks else None, bits if ctx.marks else None, alpha)


def _gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    out, bits, alpha = ctx.saved_tensors
    # The output's own mask is left to PyTorch, whose compiler joins it with what comes before and after.
    to_x = _to_x(grad, out, bits, alpha) if ctx.marks else torch.ops.aten.threshold_backward(grad, out, 0)
    return to_x, to_x if ctx.adds else None, None, None, None


def _keep_again(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradient_again(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _to_x(grad, *ctx.saved_tensors), None, None, None  # it is linear in the gradient


residual_topk.register_autograd(_gradient, setup_context=_keep)
_to_x.register_autograd(_gradient_again, setup_context=_keep_again)
