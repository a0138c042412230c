"""`normtopk`: the k entries that matter most to what reads them.

Definition: A(x) = sigma(x) m, m = 1 for exactly the k largest x_i w_i, where w_i is the norm of the weights that read
coordinate i:

    w_i^2 = sum over W of sum_o (W_oi g_i)^2,   then w is divided by its mean,

W running over the query, key, value, gate and up matrices of the next block, g the gain of the norm before each; after
the last block W is the unembedding and g the final norm's gain. Values stay x_i. Source: Llama Scope (arXiv 2410.20526)
keeps the largest relu(pi_i) ||d_i|| of an autoencoder, d_i the decoder's vector; that the reading weights take its
place in a language model, and which of them, is ours.

w is measured at defined times, not in every forward pass: by `sparsify` where there are weights, in training before
step 0 and every `every` steps, on all ranks of a sharded model together. The last measurement belongs to the
checkpoint; validation, generation and analysis run with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from topklm.errors import Problem
from topklm.sparsity.counted import Counted
from topklm.sparsity.registry import register

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class NormOptions:
    """Options of `normtopk`."""

    every: int = 100
    """Training steps between two measurements of the norms. 100: ours."""

    def problems(self) -> Iterator[Problem]:
        if self.every < 1:
            yield Problem("every", f"{self.every} is below 1")


@register("normtopk")
class NormTopK(Counted):
    """TopK by contribution. With equal norms it selects what `topk` does."""

    Options: ClassVar[type] = NormOptions
    state_names: ClassVar[tuple[str, ...]] = ("reader_norm",)

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        self.reader_norm = torch.ones(dim or 0, dtype=torch.float32, device="cpu")  # [D]

    def score(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.to(wide) * self.reader_norm.to(wide)

    def reads_at(self, step: int) -> bool:
        return step % self.options.every == 0

    def readers(self, matrices: Sequence[Tensor], gains: Sequence[Tensor]) -> None:
        norm = sum(
            _whole(matrix.detach().float().square().sum(0)).double() * _whole(gain.detach()).double().square()
            for matrix, gain in zip(matrices, gains, strict=True)
        )
        assert isinstance(norm, Tensor)
        norm = norm.sqrt()  # [D]
        # No entry may weigh nothing: an infinite one would become NaN.
        norm = (norm / norm.mean()).clamp(min=torch.finfo(torch.float32).tiny).float()
        self.reader_norm.copy_(torch.where(norm.isfinite(), norm, self.reader_norm.to(norm.device)))


def _whole(tensor: Any) -> Tensor:
    """All of a DTensor's entries: the column sums of a sharded matrix are added up over the ranks here."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
