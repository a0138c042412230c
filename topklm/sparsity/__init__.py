"""The idea: blocks whose residual stream keeps only some of its entries."""

from topklm.sparsity.annealing import annealed_topk
from topklm.sparsity.config import TopKConfig, alpha_at
from topklm.sparsity.health import Health, record_health
from topklm.sparsity.patch import get_alpha, set_alpha, sparsify
from topklm.sparsity.selection import SAVED_OPS, select, topk

__all__ = [
    "SAVED_OPS",
    "Health",
    "TopKConfig",
    "alpha_at",
    "annealed_topk",
    "get_alpha",
    "record_health",
    "select",
    "set_alpha",
    "sparsify",
    "topk",
]
