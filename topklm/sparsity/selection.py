"""Exactly k of D: the one definition of the selection, and TopK on it (paper, Eq. 1-2).

The k largest entries along the last dimension, by signed value. Equal values: the lowest index wins. -0.0 equals
+0.0. NaN counts as larger than everything, so a row with a NaN has a NaN in its output, which the non-finite
check of the trainer sees.
"""

from __future__ import annotations

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from topklm.errors import ConfigError

_INDEX_BITS_64 = 31  # below a 32-bit value in an int64 key
_INDEX_BITS_32 = 16  # below a 16-bit value in an int32 key
_ORDER_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_MAX_INT16_DIM = 32768  # ~index is stored as well, and fits down to -32,768


def record_dtype(dim: int) -> torch.dtype:
    """The smallest integer type that holds an index below `dim` and its complement."""
    return torch.int16 if dim <= _MAX_INT16_DIM else torch.int32


def _unique_keys(x: Tensor) -> tuple[Tensor, int]:
    """Integers in the order of x [..., D] with the index in the low bits, so that no two are equal.

    torch.topk on them needs no rule for ties, and returns the indices in its values.
    """
    dim = x.shape[-1]
    order_type = _ORDER_BITS[x.dtype]
    info = torch.iinfo(order_type)
    bits = (x + 0.0).view(order_type)  # -0.0 + 0.0 is +0.0
    # A float's bits as a signed integer grow with the value, for negative ones once the magnitude is flipped.
    order = bits ^ ((bits >> (info.bits - 1)) & info.max)
    order = torch.where(x.isnan(), info.max, order)
    small = info.bits == 16 and dim <= 2**_INDEX_BITS_32
    key_type, index_bits = (torch.int32, _INDEX_BITS_32) if small else (torch.int64, _INDEX_BITS_64)
    low = torch.arange(2**index_bits - 1, 2**index_bits - 1 - dim, -1, dtype=key_type, device=x.device)
    return torch.add(low, order, alpha=2**index_bits), index_bits


def _by_keys(x: Tensor, k: int) -> Tensor:
    """With torch.topk; on any device, without waiting for it."""
    if x.dtype not in _ORDER_BITS:  # float64 leaves no room for the index; it is for checks, where speed is nothing
        return torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k]
    keys, index_bits = _unique_keys(x)
    top = torch.topk(keys, k, dim=-1, sorted=False).values
    return ~top & (2**index_bits - 1)


def _by_partition(x: Tensor, k: int) -> Tensor:
    """With NumPy's partition, which uses the vector units of the CPU and beats torch.topk there by 2 to 4 times."""
    rows = x.detach().reshape(-1, x.shape[-1])
    # Each thread takes 64k numbers or more; NumPy works without the interpreter's lock.
    threads = max(1, min(torch.get_num_threads(), rows.numel() >> 16))
    if threads == 1:
        index = _partition_rows(rows, k)
    else:
        parts = _pool(threads, os.getpid()).map(_partition_rows, rows.chunk(threads), itertools.repeat(k))
        index = np.concatenate(list(parts))
    return torch.from_numpy(index).view(*x.shape[:-1], k)


def _partition_rows(rows: Tensor, k: int) -> np.ndarray:
    dim = rows.shape[-1]
    is_wide = rows.dtype in (torch.float32, torch.float64)
    order = (rows if is_wide else _unique_keys(rows)[0]).numpy()
    least = np.partition(order, dim - k, axis=-1)[:, dim - k, None]  # [N, 1] the k-th largest
    kept = ~(order < least)  # [N, D]; NaN is kept
    if is_wide:
        # Where this keeps k entries they are the right ones. Where it does not, there are ties or NaNs.
        again = np.flatnonzero(np.count_nonzero(kept, axis=-1) != k)
        if again.size:
            kept[again] = False
            kept[again[:, None], _by_keys(rows[torch.from_numpy(again)], k).numpy()] = True
    index = np.flatnonzero(kept).reshape(-1, k)
    index -= np.arange(len(index))[:, None] * dim
    return index


@functools.cache
def _pool(threads: int, pid: int) -> ThreadPoolExecutor:
    """One per process: a forked one has no threads of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="topklm-select")


def select_rows(x: Tensor, k: int) -> Tensor:
    """The function behind `select`, chosen by measurement (`scripts/bench_topk.py`): the same set on every device."""
    rows = _by_partition if x.device.type == "cpu" else _by_keys
    return rows(x, k).to(record_dtype(x.shape[-1]))


@torch.library.custom_op("topklm::select", mutates_args=())
def select(x: Tensor, k: int) -> Tensor:
    """Indices of the k entries that are kept: x [..., D] to [..., k], int16 (int32 above D = 32,768), any order.

    One opaque op, so that every way to run a block (eager, compiled, recomputed) has the same selection, and so
    that activation checkpointing can keep its small result: see `SAVED_OPS` in the package.
    """
    return select_rows(x, k)


@select.register_fake
def _(x: Tensor, k: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], k), dtype=record_dtype(x.shape[-1]))


def check_k(x: Tensor, k: int) -> None:
    """Raise `ConfigError` if k entries cannot be taken of the last dimension of x."""
    if x.dim() == 0 or not 1 <= k <= x.shape[-1]:
        raise ConfigError(f"k = {k} is not between 1 and D for a tensor of shape {list(x.shape)}")
    if not x.is_floating_point():
        raise ConfigError(f"topk is defined for floating point numbers, not for {x.dtype}")


class _TopKReLU(torch.autograd.Function):
    """relu(x) * m. The output tells where it has a gradient: nothing else is saved."""

    @staticmethod
    def forward(x: Tensor, k: int) -> Tensor:
        index = select(x, k).long()  # [..., k]
        return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index).relu())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, output, 0), None


class _TopKIdentity(torch.autograd.Function):
    """x * m, with the sign of x. Saves the indices."""

    @staticmethod
    def forward(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        record = select(x, k)
        index = record.long()
        return torch.zeros_like(x).scatter(-1, index, x.gather(-1, index)), record

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (record,) = ctx.saved_tensors
        index = record.long()
        return torch.zeros_like(grad).scatter(-1, index, grad.gather(-1, index)), None


def topk(x: Tensor, k: int, nonlinearity: str = "relu") -> Tensor:
    """TopK(x) = sigma(x) * m with exactly k ones in m per row (Eq. 1-2): x [..., D] to [..., D].

    `nonlinearity`: sigma, "relu" (so at most k entries are not zero) or "identity". Unselected entries are exact
    zeros, also where x is infinite. Raises `ConfigError` unless 1 <= k <= D.
    """
    check_k(x, k)
    if nonlinearity == "relu":
        # Without gradients the function's own machinery would be a third of a decoding step's TopK.
        return _TopKReLU.apply(x, k) if torch.is_grad_enabled() else _TopKReLU.forward(x, k)
    if nonlinearity == "identity":
        return _TopKIdentity.apply(x, k)[0]
    raise ConfigError(f"nonlinearity {nonlinearity!r} is not one of relu, identity")
