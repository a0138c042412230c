"""Queries, keys and values from the inputs that are not zero, while tokens are decoded one by one.

After a cut at most k of the D numbers that a block reads are not zero, and its norm keeps the zeros. So the products
with wq, wk and wv are sums of k rows of the transposed weights, and the rest of them need not be read from memory,
which is what decoding waits for. Exact to rounding: whatever else is not zero is found, and taken as it is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topklm.model.linear import Linear
from topklm.model.transformer import Attention, RMSNorm, Transformer, TransformerBlock
from topklm.sparsity.patch import ACTIVATION, STATE

log = logging.getLogger("topklm.generate")

SparseProjections = Literal["auto", "always", "never"]
LEAST_DIM, LEAST_RATIO, MOST_ROWS, LEAST_STEPS = 1024, 16, 8, 64
"""Where "auto" takes it: D, D / k, sequences together, tokens of a completion at most (the copy takes the time of some
tokens). Measured (docs/performance.md), and fixed: digits of a completion must not depend on what was fast today."""
_ROWS = "_sparse_inputs"
"""Attribute of an attention, meanwhile: (weights, k). A plain object, in no state dict."""


class SparseInputAttention(Attention):
    """`Attention` whose input has about k entries that are not zero. An instance's class for a while, never made."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, k = self.__dict__[_ROWS]
        if x.shape[1] != 1:
            return super().project(x)
        rows, columns = x[:, 0].nonzero(as_tuple=True)  # [n], in the order of the rows
        if len(rows) > k * len(x):  # someone wrote to the stream after its cut, or a row is NaN
            return super().project(x)
        counts = rows.bincount(minlength=len(x))
        sums = F.embedding_bag(
            columns, weights, counts.cumsum(0) - counts, mode="sum", per_sample_weights=x[rows, 0, columns]
        )  # [B, (H + 2 H_kv) d]
        q, k_, v = sums[:, None].split([w.out_features for w in (self.wq, self.wk, self.wv)], -1)
        return q, k_, v


@contextmanager
def sparse_inputs(model: Transformer, choice: SparseProjections, *, rows: int, steps: int) -> Iterator[int]:
    """Inside, blocks of `model` that read a cut stream project single positions by its nonzero entries; gives how many
    blocks do. Weights, classes and state dict are afterwards what they were.

    "always": every native block behind one whose TopK has alpha = 0, if it is neither compiled nor sharded and its
    projections are plain, with no hooks. "auto": these where it is faster by measurement, for `rows` sequences decoded
    together and at most `steps` tokens of each. It costs a second copy of their weights, D (H + 2 H_kv) d numbers each.
    """
    found = [
        (block.attention, k)
        for block, k in ([] if choice == "never" else _behind_cuts(model))
        if (choice == "always" or _is_faster(block, k, rows, steps)) and _is_plain(block)
    ]
    try:
        for attention, k in found:
            attention.__dict__[_ROWS] = _transposed(attention), k
            attention.__class__ = SparseInputAttention
        if found or choice == "always":
            _tell(len(found), len(model.layers), sum(a.__dict__[_ROWS][0].nbytes for a, _ in found))
        yield len(found)
    finally:
        for attention, _ in found:
            attention.__class__ = Attention
            attention.__dict__.pop(_ROWS, None)


def _behind_cuts(model: nn.Module) -> Iterator[tuple[TransformerBlock, int]]:
    """Each native block that reads a cut stream, and how many entries the cut leaves."""
    if not isinstance(model, Transformer) or model._compiled_call_impl is not None:
        return
    for before, block in zip(model.layers, model.layers[1:], strict=False):
        activation = before.__dict__.get(ACTIVATION)
        if activation is None or activation.name != "topk" or before.__dict__[STATE].annealing:
            continue
        if isinstance(block, TransformerBlock) and block._compiled_call_impl is None:
            yield block, activation.k


def _is_plain(block: TransformerBlock) -> bool:
    """Whether the projections are what they look like: no adapter, hook or shard, and no 0 x inf that would be lost."""
    attention = block.attention
    return (
        type(block.attention_norm) is RMSNorm
        and type(attention) is Attention
        and not torch.is_autocast_enabled(attention.wq.weight.device.type)
        and all(
            type(w) is Linear
            and type(w.weight) is nn.Parameter
            and not (w._forward_hooks or w._forward_pre_hooks or "forward" in w.__dict__)
            and bool(w.weight.isfinite().all())
            for w in (attention.wq, attention.wk, attention.wv)
        )
    )


def _is_faster(block: TransformerBlock, k: int, rows: int, steps: int) -> bool:
    weight, dim = block.attention.wq.weight, block.attention.wq.in_features
    measured = weight.device.type == "cpu" and weight.dtype is torch.float32
    return measured and dim >= LEAST_DIM and dim >= LEAST_RATIO * k and rows <= MOST_ROWS and steps >= LEAST_STEPS


@torch.no_grad()
def _transposed(attention: Attention) -> Tensor:
    """The weights of queries, keys and values side by side, [D, (H + 2 H_kv) d]."""
    weights = [w.weight for w in (attention.wq, attention.wk, attention.wv)]
    out = weights[0].new_empty(weights[0].shape[1], sum(map(len, weights)))
    # Some rows at a time, so that what is read stays in the CPU's cache: a third of the time of all at once.
    parts = [part for weight in weights for part in weight.split(64)]
    for part, columns in zip(parts, out.split([len(part) for part in parts], 1), strict=True):
        columns.copy_(part.T)
    return out


@functools.cache
def _tell(blocks: int, of: int, copied: int) -> None:
    """Once in a process, however many generations there are."""
    log.info(
        "sparse_projections: %d of %d blocks project only entries that are not zero; the copy of their weights takes "
        "%.0f MiB", blocks, of, copied / 2**20,
    )  # fmt: skip
