"""The kernels: one program for a row of D entries, which it reads once.

In bytes of the stream's type per row: the forward reads 2 D (D without `update`) and writes D, the backward reads D and
writes D. A bit per entry goes from one to the other where the output does not tell what was selected.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from topklm.sparsity.kernels.search import select

ENTRIES_PER_THREAD = 32
"""With 64 the widest kernels spill registers (compiled for sm_90); not tuned on a GPU yet."""
_SHIFT = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


@triton.jit(do_not_specialize=["k"])
def _forward(
    stream, update, out, bits, k, z, alpha,
    D: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr, ADDS: tl.constexpr, ANNEALS: tl.constexpr,
    FORM: tl.constexpr, MARKS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    x = tl.load(stream + row * D + at, mask=inside, other=0.0)
    if ADDS:
        y = tl.load(update + row * D + at, mask=inside, other=0.0)
        x = (x.to(tl.float32) + y.to(tl.float32)).to(x.dtype)  # rounded as the sum in the dense block is
    value = x.to(tl.float32)
    whole = select(value, inside, z, k, D, SHIFT)
    rest = tl.zeros_like(value)
    if ANNEALS:  # never 0 x, which is NaN where x is infinite
        rest = value * alpha
        if FORM == "blend":
            whole = whole & (value > 0.0)
    value = tl.where(whole, value, rest)
    if FORM == "relu" or (FORM == "blend" and not ANNEALS):
        value = tl.where(value <= 0.0, 0.0, value)
    tl.store(out + row * D + at, value.to(x.dtype), mask=inside)
    if MARKS:
        N_BYTES: tl.constexpr = (D + 7) // 8
        weights = 1 << tl.arange(0, 8)
        packed = tl.sum(tl.reshape(whole.to(tl.int32), (BLOCK // 8, 8)) * weights[None, :], axis=1)
        byte = tl.arange(0, BLOCK // 8)
        tl.store(bits + row * N_BYTES + byte, packed.to(tl.uint8), mask=byte < N_BYTES)


@triton.jit
def _backward(
    grad, out, bits, to_x, alpha, D: tl.constexpr, BLOCK: tl.constexpr, ANNEALS: tl.constexpr, RELU: tl.constexpr
):
    N_BYTES: tl.constexpr = (D + 7) // 8
    row = tl.program_id(0).to(tl.int64)
    byte = tl.arange(0, BLOCK // 8)
    packed = tl.load(bits + row * N_BYTES + byte, mask=byte < N_BYTES, other=0).to(tl.int32)
    whole = ((packed[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0  # [BLOCK / 8, 8]
    at = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = at < D
    g = tl.load(grad + row * D + at, mask=inside, other=0.0)
    value = g.to(tl.float32)
    rest = tl.zeros_like(value)
    if ANNEALS:
        rest = value * alpha
    value = tl.where(whole, value, rest)
    if RELU:
        kept = tl.load(out + row * D + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(kept <= 0.0, 0.0, value)
    tl.store(to_x + row * D + at, value.to(g.dtype), mask=inside)


def _launch(dim: int) -> dict[str, int]:
    block = max(8, triton.next_power_of_2(dim))
    return {"D": dim, "BLOCK": block, "num_warps": max(1, block // (32 * ENTRIES_PER_THREAD))}


def forward(
    stream: Tensor, update: Tensor | None, out: Tensor, bits: Tensor, k: int, z: float, alpha: float | None, form: str
) -> None:
    """Fill `out` [..., D], and `bits` [..., D / 8] if it has entries; all contiguous, on one device."""
    dim = stream.shape[-1]
    kernel: Any = _forward
    with torch.cuda.device_of(stream):
        kernel[(stream.numel() // dim,)](
            stream, stream if update is None else update, out, bits, k, z, 0.0 if alpha is None else alpha,
            SHIFT=_SHIFT[stream.dtype], ADDS=update is not None, ANNEALS=alpha is not None, FORM=form,
            MARKS=bits.numel() > 0, **_launch(dim),
        )  # fmt: skip


def backward(grad: Tensor, out: Tensor | None, bits: Tensor, to_x: Tensor, alpha: float | None) -> None:
    """Fill `to_x` [..., D] with the gradient of x; `out` where it tells as well what was cut by the ReLU."""
    dim = grad.shape[-1]
    kernel: Any = _backward
    with torch.cuda.device_of(grad):
        kernel[(grad.numel() // dim,)](
            grad, grad if out is None else out, bits, to_x, 0.0 if alpha is None else alpha,
            ANNEALS=alpha is not None, RELU=out is not None, **_launch(dim),
        )  # fmt: skip
