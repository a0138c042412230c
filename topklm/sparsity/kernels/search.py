"""The k largest of a row: integers in the order of the numbers, and a search for what lies just below k of them.

A search for t with count(key > t) = k ends at the first such t, and needs no other work. Where there is none, because
of ties, it ends at the k-th largest key, and the lowest indices among the entries that equal it make up the number.
"""

from __future__ import annotations

import triton
import triton.language as tl

SECANT_STEPS = tl.constexpr(8)
"""After these the search halves, which ends it within 32 steps (16 in bf16). Rows of language models take 4 to 6."""


@triton.jit
def order(x, SHIFT: tl.constexpr):
    """int32 keys in the order of x (fp32): -0.0 as +0.0, every NaN as the highest. Works on scalars as well.

    `SHIFT`: low bits that are the same in all numbers of a narrower type, 16 for bf16 and 13 for fp16.
    """
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits == -2147483648, 0, bits)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x != x, 0x7FFFFFFF, key) >> SHIFT


@triton.jit
def number(key, SHIFT: tl.constexpr):
    """The fp32 number that has this key, or the end of those that share it."""
    bits = key << SHIFT
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def search(key, guess, lo, hi, k, D: tl.constexpr, SHIFT: tl.constexpr):
    """(t, n) with n = count(key > t) <= k: n = k, or else t is the k-th largest key.

    `lo` lies below all keys, `hi` is the largest one. Illinois' false position on the logarithm of the count, which is
    nearly straight in the tail of a bell; then halves.
    """
    log_k = tl.log2(k.to(tl.float32))
    above_lo = tl.log2(k * 0.0 + D) - log_k  # log2(count / k) at both ends
    above_hi = -1.0 - log_k
    n_hi = k * 0
    side = k * 0  # the end that moved last: -1 or 1
    step = k * 0
    t = guess
    while (n_hi != k) & (lo + 1 < hi):
        t = tl.minimum(tl.maximum(t, lo + 1), hi - 1)
        n = tl.sum((key > t).to(tl.int32), axis=0)
        above = tl.log2(tl.maximum(n.to(tl.float32), 0.5)) - log_k
        if n > k:
            lo = t
            above_lo = above
            # The end that stayed twice weighs half, or it would stay for long.
            above_hi = tl.where(side == 1, above_hi * 0.5, above_hi)
            side = k * 0 + 1
        else:
            hi = t
            n_hi = n
            above_hi = above
            above_lo = tl.where(side == -1, above_lo * 0.5, above_lo)
            side = k * 0 - 1
        step += 1
        half = (lo >> 1) + (hi >> 1) + (lo & hi & 1)  # their sum could be too large
        a = number(lo, SHIFT)
        between = a + (number(hi, SHIFT) - a) * (above_lo / (above_lo - above_hi))
        sound = (step < SECANT_STEPS) & (tl.abs(between) < float("inf"))
        t = tl.where(sound, order(between, SHIFT), half)
    return hi, n_hi


@triton.jit
def select(x, inside, z, k, D: tl.constexpr, SHIFT: tl.constexpr):
    """Mask of the k largest of x [BLOCK] (fp32; 0 outside, where nothing is selected).

    `z`: the first guess, in standard deviations above the mean.
    """
    key = order(x, SHIFT)
    lo = tl.min(tl.where(inside, key, 2147483647), axis=0) - 1
    key = tl.where(inside, key, -2147483648)
    hi = tl.max(key, axis=0)
    mean = tl.sum(x, axis=0) / D
    variance = tl.sum(x * x, axis=0) / D - mean * mean
    guess = mean + z * tl.sqrt(tl.maximum(variance, 0.0))
    t, n = search(key, order(guess, SHIFT), lo, hi, k, D, SHIFT)
    selected = key > t
    if n != k:
        tied = key == t
        selected = selected | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= k - n))
    return selected
