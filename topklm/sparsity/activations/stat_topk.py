"""`stat_topk`: what lies z standard deviations above the token's own mean.

Definition: A(x) = sigma(x) m with m_i = 1 where x_i > mean(x) + z std(x), mean and (population) standard deviation over
the D entries of one token. Source: the statistical top-k of Spark Transformer (arXiv 2506.06644: recall) takes
z = Q(1 - k / D), Q the quantile function of the normal distribution, and subtracts the threshold; here values are kept
as they are, and k is met only as far as the entries are normal. There is neither a sort nor an exact number.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from topklm.errors import Problem
from topklm.sparsity.activation import Activation
from topklm.sparsity.masks import above
from topklm.sparsity.registry import register

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class StatOptions:
    """Options of `stat_topk`."""

    z: float | None = None
    """Standard deviations above the mean. null: Q(1 - k / D), which keeps k of D normal entries on average."""

    def problems(self) -> Iterator[Problem]:
        if self.z is not None and not math.isfinite(self.z):
            yield Problem("z", f"{self.z} is not a finite number")


@register("stat_topk")
class StatTopK(Activation):
    """A threshold for each token. A token with a NaN or an infinite entry passes whole, so that it is noticed."""

    Options: ClassVar[type] = StatOptions

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        z = quantile(self.k, dim) if self.options.z is None and dim is not None else self.options.z
        self.z = torch.tensor(z, dtype=torch.float64, device="cpu")  # a tensor: one graph for every k

    @classmethod
    def needs_dim(cls, cfg: TopKConfig) -> bool:
        return cfg.options.get("z") is None

    @classmethod
    def problems_for(cls, cfg: TopKConfig, dim: int | None, n_layers: int) -> Iterator[Problem]:
        if cfg.k_per_layer is not None and cfg.options.get("z") is not None:
            yield Problem("k_per_layer", "has no effect beside options.z, which is the threshold; give one of them")

    def selected(self, x: Tensor) -> Tensor:
        x = x.detach()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = wide.mean(-1, keepdim=True)
        std = (wide - mean).square().mean(-1, keepdim=True).sqrt()
        return above(x, mean + std * self.z)


def quantile(k: int, dim: int) -> float:
    """Q(1 - k / D); -inf, which keeps all, for k = D."""
    return statistics.NormalDist().inv_cdf(1 - k / dim) if k < dim else -math.inf
