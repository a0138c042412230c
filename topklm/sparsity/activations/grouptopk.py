"""`grouptopk`: the k largest entries of each group of coordinates.

Definition: the D coordinates are G groups of D / G neighbours (0 ... D/G - 1 are the first); A(x) = sigma(x) m with
exactly k ones of m in each group, so k G per token. Ties go to the lowest index. Status: ours; with k = 1 it is a
winner-take-all in each group (Local Winner-Take-All, Srivastava et al. 2013: recall).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from topklm.errors import ConfigError, Problem
from topklm.sparsity.counted import Counted
from topklm.sparsity.masks import top_mask
from topklm.sparsity.registry import make_options, register

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Options of `grouptopk`."""

    groups: int = 8
    """G, the number of groups of neighbouring coordinates; it divides D. `k` is the number kept in each."""

    def problems(self) -> Iterator[Problem]:
        if self.groups < 1:
            yield Problem("groups", f"{self.groups} is below 1")


@register("grouptopk")
class GroupTopK(Counted):
    """TopK in each group: no part of the stream can fall silent."""

    Options: ClassVar[type] = GroupOptions

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        if dim is not None:
            self._k_first = dim // self.options.groups

    @classmethod
    def problems_for(cls, cfg: TopKConfig, dim: int | None, n_layers: int) -> Iterator[Problem]:
        groups = make_options(cls.Options, cfg.options).groups
        if dim is not None and dim % groups:
            yield Problem("options.groups", f"{groups} does not divide the {dim} entries of the residual stream")
        elif dim is not None and max(cfg.k_per_layer or [cfg.k]) > dim // groups:
            key = "k" if cfg.k_per_layer is None else "k_per_layer"
            yield Problem(key, f"is more than the {dim // groups} entries of a group; k is kept in each of {groups}")

    def mask(self, x: Tensor, k: Tensor) -> Tensor:
        groups = self.options.groups
        if x.shape[-1] % groups:
            raise ConfigError(f"options.groups = {groups} does not divide the {x.shape[-1]} entries of the stream")
        return top_mask(x.detach().unflatten(-1, (groups, -1)), k).flatten(-2)  # [..., G, D / G] and back

    def describe(self) -> str:
        return f"{super().describe()}, groups={self.options.groups}"
