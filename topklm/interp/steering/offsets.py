"""By how much a neuron is steered, as people write it: `8`, `2x`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Offset:
    """What is added to a pre-activation."""

    amount: float
    """A number of the neuron's own unit, or the offset itself."""
    relative: bool = False
    """Whether the unit is a percentile of the neuron's activation; else 1."""

    def absolute(self, unit: float | None) -> float:
        """The offset itself; `unit` is the neuron's percentile (needed for relative ones only)."""
        if not self.relative:
            return self.amount
        if unit is None:
            raise ValueError(f"{self} needs the neuron's percentile")
        return self.amount * unit

    def __str__(self) -> str:
        return f"{self.amount:g}x" if self.relative else f"{self.amount:+g}"


def parse_offsets(values: Sequence[float | str], relative: bool = False) -> list[Offset]:
    """Offsets in ascending order, of numbers and texts such as `2x`, a multiple of the percentile; with `relative`
    numbers are multiples too. Raises `ValueError` with everything that is wrong."""
    found, wrong = [], []
    for value in values:
        text = str(value).strip()
        try:
            amount = float(text.removesuffix("x"))
        except ValueError:
            amount = math.nan
        if not math.isfinite(amount):
            wrong.append(f"{value!r} is neither a number, such as 8, nor a multiple of the percentile, such as 2x")
        else:
            found.append(Offset(amount, relative or text.endswith("x")))
    if twice := sorted({offset for offset in found if found.count(offset) > 1}):
        wrong.append(f"{', '.join(map(str, twice))} is given twice")
    if wrong:
        raise ValueError("; ".join(wrong))
    return sorted(found, key=lambda offset: (offset.relative, offset.amount))
