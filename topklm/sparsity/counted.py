"""Activations that keep exactly k entries: what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from topklm.sparsity.activation import Activation
from topklm.sparsity.masks import cut, top_mask
from topklm.sparsity.selection import check_k

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


class Counted(Activation):
    """Keeps the k entries with the largest score. With `schedule: k` their number falls from D to k instead of alpha.

    `schedule: k` (Llama Scope, arXiv 2410.20526, in its autoencoders): at alpha round(k + alpha (D - k)) entries are
    kept, and the others are 0 from the first step on. At alpha = 1 all are kept, which is the dense block with
    `anneal_form: identity` and a ReLU block with the other two.
    """

    exact: ClassVar[bool] = True
    schedules: ClassVar[tuple[str, ...]] = ("mask", "k", "none")

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        self.shrinks = cfg.schedule == "k"
        self.k_last = torch.tensor(self.k, dtype=torch.int64, device="cpu")
        self.k_now = self.k_last.clone()
        self._k_first = self.k if dim is None else dim

    @classmethod
    def needs_dim(cls, cfg: TopKConfig) -> bool:
        return cfg.schedule == "k" or super().needs_dim(cfg)

    def score(self, x: Tensor) -> Tensor:
        """[..., D]: what is compared."""
        return x

    def mask(self, x: Tensor, k: Tensor) -> Tensor:
        """The selection of k (0-d, on the CPU), bool [..., D]."""
        return top_mask(self.score(x.detach()), k)

    def selected(self, x: Tensor) -> Tensor:
        check_k(x, self.k)
        return self.mask(x, self.k_last)

    def selected_now(self, x: Tensor) -> Tensor:
        return self.mask(x, self.k_now) if self.shrinks else self.selected(x)

    def apply(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        if self.shrinks:
            return cut(x, self.mask(x, self.k_now), None, self.form)
        return cut(x, self.mask(x, self.k_last), alpha, self.form)

    def at(self, alpha: float) -> None:
        if self.shrinks:
            self.k_now.fill_(self.k + round(alpha * (self._k_first - self.k)))
