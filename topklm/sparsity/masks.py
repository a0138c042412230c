"""Selections as bool masks, and the activation that follows from a mask.

Each mask comes from one opaque op, so that activation checkpointing can keep it (`SAVED_OPS`): computed
again in the backward it could be another one. It costs one byte per entry there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topklm.errors import ConfigError
from topklm.sparsity import selection


@torch.library.custom_op("topklm::top_mask", mutates_args=())
def top_mask(x: Tensor, k: Tensor) -> Tensor:
    """bool [..., D]: the k largest entries by the rule of `select`. `k`: 0-d int64 on the CPU.

    A tensor, so that a compiled block is the same graph for every k.
    """
    index = selection.select_rows(x, int(k)).long()
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, index, True)


@top_mask.register_fake
def _(x: Tensor, k: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


@torch.library.custom_op("topklm::above", mutates_args=())
def above(x: Tensor, threshold: Tensor) -> Tensor:
    """bool [..., D]: x > threshold, which is broadcast; compared in fp32 at least. NaN on either side is selected."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return ~(x.to(wide) <= threshold.to(wide))


@above.register_fake
def _(x: Tensor, threshold: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


def cut(x: Tensor, mask: Tensor, alpha: Tensor | None, form: str) -> Tensor:
    """A(x) for a selection `mask`, bool [..., D]: the readings of Eq. 3 (`TopKConfig.anneal_form`) at alpha (None: 0).

    An unselected entry is never multiplied by zero, so an infinite one becomes an exact 0 at alpha = 0.
    """
    if form == "blend" and alpha is not None:
        return torch.where(mask & (x > 0), x, x * alpha)
    if form not in ("blend", "identity", "relu"):
        raise ConfigError(f"anneal_form {form!r} is not one of blend, identity, relu")
    out = torch.where(mask, x, x.new_zeros(()) if alpha is None else x * alpha)
    return out if form == "identity" else out.relu()


class _StraightThrough(torch.autograd.Function):
    """The value of one, the gradient for the other."""

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of the identity for x: entries that are cut or negative learn as if they were kept."""
    return _StraightThrough.apply(x, value)
