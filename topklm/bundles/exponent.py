"""Histograms by float exponent: a bin for each sign and power of two, so that no range need be known.

The code of a bin is the top nine bits of the value as float32: 256 * (value < 0) + exponent field. Code e of 1 ... 254
holds 2^(e - 127) <= a < 2^(e - 126), code 256 + e the same magnitudes below 0; 0 and 256 hold zeros and subnormal
numbers, 255 and 511 what is not finite.
"""

from __future__ import annotations

import numpy as np

N_CODES = 512
NOT_FINITE = (255, 511)
STRATUM_LOW = 127 - 20
STRATA = 32
"""Contexts are sampled per neuron and power of two: 2^-20 ... 2^12, with everything smaller or larger at the ends."""


def code_of(values: np.ndarray) -> np.ndarray:
    """Bin codes of any numbers, rounded to float32; int64 of the same shape."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits >> np.uint32(23)).astype(np.int64)


def bounds(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) value of each bin as float64, the bound that is further from zero excluded.

    Zeros and subnormal numbers: between 0 and 2^-126. Not finite: infinite.
    """
    codes = np.asarray(codes)
    exponent = (codes % 256).astype(np.float64)
    near = np.where(exponent == 0, 0.0, 2.0 ** (exponent - 127))
    far = np.where(exponent == 255, np.inf, 2.0 ** (np.minimum(exponent, 254) - 126))
    near = np.where(exponent == 255, np.inf, near)
    negative = codes >= 256
    return np.where(negative, -far, near), np.where(negative, -near, far)


def stratum_of(codes: np.ndarray) -> np.ndarray:
    """The stratum (0 ... STRATA - 1) of positive bins' codes."""
    return np.clip(codes - STRATUM_LOW, 0, STRATA - 1)
