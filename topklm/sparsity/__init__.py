"""The idea: blocks whose residual stream keeps only some of its entries."""

import topklm.sparsity.activations  # noqa: F401 - registers every activation
from topklm.sparsity.annealing import annealed_topk
from topklm.sparsity.config import TopKConfig, alpha_at
from topklm.sparsity.health import Health, record_health
from topklm.sparsity.masks import above, top_mask
from topklm.sparsity.patch import (
    activation_tensors,
    activations_of,
    get_alpha,
    measure_readers,
    set_alpha,
    set_kernel,
    sparsify,
    true_gradients,
)
from topklm.sparsity.saved import SAVED_OPS
from topklm.sparsity.selection import select, topk
from topklm.sparsity.steps import ActivationSteps

__all__ = [
    "SAVED_OPS",
    "ActivationSteps",
    "Health",
    "TopKConfig",
    "above",
    "activation_tensors",
    "activations_of",
    "alpha_at",
    "annealed_topk",
    "get_alpha",
    "measure_readers",
    "record_health",
    "select",
    "set_alpha",
    "set_kernel",
    "sparsify",
    "top_mask",
    "topk",
    "true_gradients",
]
