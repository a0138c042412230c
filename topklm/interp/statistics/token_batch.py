"""The tokens of a batch, as all layers count them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """n tokens. Make it with `of`."""

    rows: Tensor
    """int64 [n]: the row of each token's type in the token tables."""
    positions: Tensor
    """int64 [n]: where each token stands in the corpus; no two are equal."""
    hashes: Tensor
    """int32 [n] of the positions."""
    rank: Tensor
    """int32 [n]: 1 for the token with the smallest position ... n."""
    by_rank: Tensor
    """int64 [n + 1]: position by rank; -1 for rank 0."""

    @staticmethod
    def of(rows: np.ndarray, positions: np.ndarray, device: torch.device | str = "cpu") -> TokenBatch:
        """From the row of each token's type and its position, [n] each."""
        order = np.argsort(positions)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(1, len(order) + 1)
        by_rank = np.concatenate(([-1], positions[order]))
        arrays = (rows, positions, hash32(positions), rank, by_rank)
        tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
        return TokenBatch(**dict(zip(("rows", "positions", "hashes", "rank", "by_rank"), tensors, strict=True)))

    def __len__(self) -> int:
        return len(self.rows)


def hash32(numbers: np.ndarray) -> np.ndarray:
    """int32: the upper half of splitmix64's output for each of these states (docs/bundles.md, "The sample")."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32).view(np.int32)
