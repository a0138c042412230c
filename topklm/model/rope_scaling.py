"""Rotary frequencies of models whose context was extended after pretraining: `linear` and `llama3`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies were changed for longer contexts. Not in Lingua; the names are Hugging Face's."""

    type: Literal["linear", "llama3"] = "llama3"
    """linear: every frequency / factor (position interpolation, arXiv:2306.15595). llama3: of Llama 3.1 and later, by
    wavelength: short ones stay, long ones are divided by factor, those between are interpolated."""
    factor: float = 8.0
    """How many times longer the context became. The defaults are those of Llama 3.1."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_seqlen / low_freq_factor are long."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_max_seqlen / high_freq_factor are short."""
    original_max_seqlen: int = 8192
    """llama3: the context of pretraining, in tokens."""

    def problems(self) -> Iterator[Problem]:
        for name in ("factor", "low_freq_factor", "original_max_seqlen"):
            if not getattr(self, name) > 0:
                yield Problem(name, f"{getattr(self, name)} must be above 0")
        if self.type == "llama3" and not self.high_freq_factor > self.low_freq_factor:
            yield Problem("high_freq_factor", f"{self.high_freq_factor} must be above low_freq_factor")

    def apply(self, frequencies: Tensor) -> Tensor:
        """The scaled frequencies, of those in radians per token; same shape and dtype.

        llama3: with the wavelength w, the context C and s = (C / w - low) / (high - low), cut to [0, 1], the frequency
        is (1 - s) f / factor + s f (github.com/meta-llama/llama-models, `apply_scaling`); in fp32 it is rounded as in
        transformers, since far positions multiply each difference.
        """
        if self.type == "linear":
            return frequencies / self.factor
        wavelengths = 2 * math.pi / frequencies  # tokens
        turns = self.original_max_seqlen / wavelengths
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - kept) * frequencies / self.factor + kept * frequencies
