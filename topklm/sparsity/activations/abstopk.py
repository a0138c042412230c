"""`abstopk`: the k entries that are largest by |x|, with their signs.

Definition: A(x) = x m, m = 1 for exactly the k largest |x_i|. Status: ours; top-k by magnitude is what sparse coding
and pruning do (recall), the paper selects by signed value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from topklm.sparsity.counted import Counted
from topklm.sparsity.registry import register

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@register("abstopk")
class AbsTopK(Counted):
    """Both directions of a coordinate are kept, so its form is `identity`: alpha = 1 is exactly the dense block.

    `active` counts every kept entry that is not 0, negative ones too. The statistics of bundles say "fired" of positive
    entries only, as everywhere.
    """

    forms: ClassVar[tuple[str, ...]] = ("identity",)

    def score(self, x: Tensor) -> Tensor:
        return x.abs()

    def active(self, x: Tensor) -> Tensor:
        return self.selected_now(x) & (x != 0)

    @classmethod
    def signed(cls, cfg: TopKConfig) -> bool:
        return True
