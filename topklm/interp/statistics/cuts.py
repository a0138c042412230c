"""Margins, near misses and L0 of a layer that selects."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from topklm.bundles import LayerStats
from topklm.bundles.exponent import N_CODES
from topklm.interp.statistics.reading import Selection, bin_codes, flat_nonzero

FIELDS = ("near_misses", "l0_histogram", "margin_count", "margin_sum", "margin_least", "margin_histogram")


class CutAccumulator:
    """The fields of `LayerStats` that only a layer with a selection has, so far."""

    def __init__(self, width: int, near_miss: float, device: torch.device) -> None:
        self._near = near_miss
        self.near_misses = torch.zeros(width, dtype=torch.int64, device=device)
        self.l0_histogram = torch.zeros(width + 1, dtype=torch.int64, device=device)
        self.margin_count = torch.zeros(1, dtype=torch.int64, device=device)
        self.margin_sum = torch.zeros(1, dtype=torch.float64, device=device)
        self.margin_least = torch.full((1,), torch.inf, dtype=torch.float64, device=device)
        self.margin_histogram = torch.zeros(N_CODES, dtype=torch.int64, device=device)

    def add(self, selection: Selection, fired: Tensor) -> None:
        """Count n tokens; `fired` bool [n, N]."""
        width = len(self.near_misses)
        self.l0_histogram += torch.bincount(fired.view(torch.uint8).sum(1, dtype=torch.int64), minlength=width + 1)
        cut, margin = selection.cut, selection.cut - selection.best_other
        defined = margin.isfinite()
        self.margin_count += defined.sum()
        self.margin_sum += torch.where(defined, margin, 0.0).sum()
        self.margin_least = torch.minimum(self.margin_least, torch.where(defined, margin, torch.inf).amin())
        codes = bin_codes(torch.where(defined, margin, 0.0))
        self.margin_histogram.index_add_(0, codes, defined.long())
        # In the activations' own dtype: what lies above the bound lies above the next such number at or below it.
        bound = torch.where(defined, cut - self._near * cut.abs(), torch.inf)
        rounded = bound.to(selection.others.dtype)
        below = rounded.nextafter(torch.full_like(rounded, -torch.inf))
        rounded = torch.where(rounded.double() > bound, below, rounded)
        near = flat_nonzero(selection.others > rounded[:, None])
        self.near_misses += torch.bincount(near % width, minlength=width)

    def stats(self) -> dict[str, np.ndarray]:
        """The fields of `LayerStats`."""
        return {name: getattr(self, name).cpu().numpy() for name in FIELDS}

    def load(self, stats: LayerStats) -> None:
        """Go on from these."""
        for name in FIELDS:
            setattr(self, name, torch.from_numpy(np.array(getattr(stats, name))).to(self.near_misses.device))
