"""`topk`: the k largest entries by signed value (TopK Language Models, arXiv 2506.21468, Eq. 1-3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from topklm.sparsity.annealing import annealed_topk
from topklm.sparsity.counted import Counted
from topklm.sparsity.kernels.op import residual_topk
from topklm.sparsity.registry import register
from topklm.sparsity.selection import check_k, select, topk

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@register("topk")
class TopKActivation(Counted):
    """The paper's activation, per token: TopK at alpha = 0, one of the annealed forms before.

    With one k for all blocks it has indices for masks, which is faster and keeps 2 k bytes for the backward instead of
    D. With `k_per_layer` or `schedule: k` the number is a tensor, so that all blocks stay one compiled graph. On a GPU
    all of it is one kernel, which adds the block's update as well.
    """

    by_value: ClassVar[bool] = True
    has_kernel: ClassVar[bool] = True

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        self.nonlinearity = "identity" if cfg.anneal_form == "identity" else "relu"
        self._one_k = cfg.k_per_layer is None

    def apply(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        if self.kernel.takes(x):
            return self._in_one_pass(x, None, alpha)
        if not self._one_k or (self.shrinks and alpha is not None):
            return super().apply(x, alpha)
        if alpha is None:
            return topk(x, self.k, self.nonlinearity)
        return annealed_topk(x, self.k, alpha, self.form)

    def of_sum(self, stream: Tensor, update: Tensor, alpha: Tensor | None) -> Tensor:
        return self._in_one_pass(stream, update, alpha)

    def _in_one_pass(self, stream: Tensor, update: Tensor | None, alpha: Tensor | None) -> Tensor:
        if self.shrinks:
            return residual_topk(stream, update, self.k_now, None, self.form)[0]
        return residual_topk(stream, update, self.k_last, alpha, self.form)[0]

    def selected(self, x: Tensor) -> Tensor:
        check_k(x, self.k)
        index = select(x.detach(), self.k).long()
        return torch.zeros_like(x, dtype=torch.bool).scatter(-1, index, True)

    def margin(self, x: Tensor) -> Tensor:
        k = int(self.k_now) if self.shrinks else self.k  # on the CPU
        check_k(x, k)
        if k == x.shape[-1]:
            return torch.full_like(x[..., 0], torch.nan)
        values = torch.topk(x.detach(), k + 1, dim=-1).values.to(torch.promote_types(x.dtype, torch.float32))
        return values[..., -2] - values[..., -1]
