"""TopK on the way from the dense block: three readings of Eq. 3, with alpha from 1 (dense) to 0 (TopK).

Each is written so that an unselected or infinite entry is never multiplied by zero, and has one small record for
the backward: the indices of the selection, complemented (negative) where the gradient is that of an unselected one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topklm.errors import ConfigError
from topklm.sparsity.selection import check_k, select


def _index(record: Tensor) -> Tensor:
    """[..., k] int64, of a record with complemented entries."""
    record = record.long()
    return torch.where(record < 0, ~record, record)


class _Blend(torch.autograd.Function):
    """x where selected and positive, alpha x elsewhere; equal to alpha x + (1 - alpha) relu(x) m."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, k: int) -> tuple[Tensor, Tensor]:
        record = select(x, k)
        index = record.long()
        kept = x.gather(-1, index)  # [..., k]
        positive = kept > 0
        out = (x * alpha).scatter(-1, index, torch.where(positive, kept, kept * alpha))
        return out, torch.where(positive, record, ~record)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        record, alpha = ctx.saved_tensors
        index = _index(record)
        kept = grad.gather(-1, index)
        return (grad * alpha).scatter(-1, index, torch.where(record < 0, kept * alpha, kept)), None, None


class _Identity(torch.autograd.Function):
    """x where selected, alpha x elsewhere."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, k: int) -> tuple[Tensor, Tensor]:
        record = select(x, k)
        index = record.long()
        return (x * alpha).scatter(-1, index, x.gather(-1, index)), record

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        record, alpha = ctx.saved_tensors
        index = record.long()
        return (grad * alpha).scatter(-1, index, grad.gather(-1, index)), None, None


def annealed_topk(x: Tensor, k: int, alpha: Tensor, form: str = "blend") -> Tensor:
    """A(x) at 0 < alpha <= 1 (Eq. 3): x [..., D] and a 0-d `alpha` to [..., D].

    `form`: "blend", "identity" or "relu", as in `TopKConfig.anneal_form`. At alpha = 0 use `topk`. alpha has no
    gradient. Raises `ConfigError` unless 1 <= k <= D.
    """
    check_k(x, k)
    if form == "blend":
        return _Blend.apply(x, alpha, k)[0]
    if form == "identity":
        return _Identity.apply(x, alpha, k)[0]
    if form == "relu":
        return _Identity.apply(x, alpha, k)[0].relu()
    raise ConfigError(f"anneal_form {form!r} is not one of blend, identity, relu")
