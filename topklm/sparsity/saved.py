"""What activation checkpointing has to keep."""

from __future__ import annotations

import torch

from topklm.sparsity import masks, selection  # noqa: F401 - they define the ops
from topklm.sparsity.kernels import op  # noqa: F401

SAVED_OPS = (
    torch.ops.topklm.select.default,
    torch.ops.topklm.top_mask.default,
    torch.ops.topklm.above.default,
    torch.ops.topklm.residual_topk.default,  # its output is the next block's input, which is kept anyway
)
"""Ops whose results activation checkpointing must save (`CheckpointPolicy.MUST_SAVE`, or the op list of
`create_selective_checkpoint_contexts`): a selection that is computed again in the backward could be another one."""
