"""`batchtopk`: k entries per token on average, by one running threshold for each layer.

Definition: A(x) = sigma(x) 1[x > theta] with a 0-d theta per layer that follows, over training steps,

    theta <- theta + max(1 - momentum, 1 / (n + 1)) (theta_b - theta),   n the steps so far,

theta_b being the (B k)-th largest of the B D entries of the step's batch of B tokens, so that k entries per token would
have been kept in it; the mean over micro-batches and ranks, so it is the same on all ranks, but depends a little on how
the batch is divided. Source: BatchTopK (arXiv 2412.06410) keeps the B k largest of a batch in training and has
theta = E[min positive z] for inference; the running threshold in training too is ours.

A language model must not look at later tokens or other rows. So theta is that of the steps before, in training too, and
validation, generation and analysis use the stored one alone. `selection: batch` trains with the original rule: then a
token's entries compete with those of later ones, the training loss is no language model's, and it is reported as
`loss/out_noncausal`, never as `loss/out`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from topklm.errors import Problem
from topklm.sparsity.activation import Activation
from topklm.sparsity.masks import above, cut, straight_through, top_mask
from topklm.sparsity.registry import register
from topklm.sparsity.running import follow

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Options of `batchtopk`."""

    momentum: float = 0.9
    """Weight of the former threshold at each step. 0.9: ours."""
    selection: Literal["threshold", "batch"] = "threshold"
    """In training: by the running threshold (causal), or the B k largest of the whole micro-batch (not causal)."""
    sample: int = 4194304
    """The threshold of a batch is measured over at most about so many entries, of tokens at even distances. Ours."""

    def problems(self) -> Iterator[Problem]:
        if not 0 <= self.momentum < 1:
            yield Problem("momentum", f"{self.momentum} must be at least 0 and below 1")
        if self.sample < 1:
            yield Problem("sample", f"{self.sample} is below 1")


@register("batchtopk")
class BatchTopK(Activation):
    """A threshold that keeps k per token on average. It starts at 0, a ReLU, until the first step has been measured."""

    Options: ClassVar[type] = BatchOptions
    state_names: ClassVar[tuple[str, ...]] = ("threshold", "measured")
    trains_differently = True

    def __init__(self, cfg: TopKConfig, dim: int | None = None, layer: int = 0) -> None:
        super().__init__(cfg, dim, layer)
        self.threshold = torch.zeros((), dtype=torch.float32, device="cpu")
        self.measured = torch.zeros((), dtype=torch.float32, device="cpu")  # steps that it was measured in
        self.seen = torch.zeros(2, dtype=torch.float64, device="cpu")  # theta_b B, B
        self.noncausal_training = self.options.selection == "batch"
        self._k = torch.tensor(self.k, dtype=torch.int64, device="cpu")

    @classmethod
    def needs_dim(cls, cfg: TopKConfig) -> bool:
        return False

    def selected(self, x: Tensor) -> Tensor:
        return above(x.detach(), self.threshold)

    def in_training(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        assert self.seen is not None
        self.seen.copy_(batch_threshold(x.detach(), self._k, self.options.sample, self.counted))
        if not self.noncausal_training:
            return self(x, alpha)
        everything = x.detach().flatten()
        mask = top_mask(everything, self._k * (everything.numel() // x.shape[-1])).view_as(x)
        if self._through:
            return straight_through(x, cut(x.detach(), mask, alpha, self.form))
        return cut(x, mask, alpha, self.form)

    def update(self, seen: Tensor, skip: Tensor) -> Tensor | None:
        follow(self.threshold, self.measured, seen[0] / seen[1], skip, self.options.momentum)
        return None


@torch.library.custom_op("topklm::batch_threshold", mutates_args=())
def batch_threshold(x: Tensor, k: Tensor, sample: int, counted: Tensor | None) -> Tensor:
    """float64 [2]: the (B k)-th largest entry of x [..., D] times B, and B, the tokens that were looked at: of the rows
    that are `counted`, or of all."""
    rows = (x if counted is None else x[counted]).reshape(-1, x.shape[-1])
    if not len(rows):
        return x.new_zeros(2, dtype=torch.float64)
    rows = rows[:: max(1, -(-rows.numel() // sample))].float()
    kept = len(rows) * int(k)
    least = rows.flatten().kthvalue(rows.numel() - kept + 1).values
    return torch.stack((least.double() * len(rows), torch.full_like(least, len(rows), dtype=torch.float64)))


@batch_threshold.register_fake
def _(x: Tensor, k: Tensor, sample: int, counted: Tensor | None) -> Tensor:
    return x.new_empty(2, dtype=torch.float64)
