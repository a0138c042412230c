"""Which neurons are steered, and by how much, as people write it: `21:894`, `8`, `2x`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Neuron:
    """One dimension of the residual stream after one block."""

    layer: int
    """Block, counted from 0."""
    index: int
    """Dimension, counted from 0."""

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"


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


def parse_neurons(text: str, first_layer: int = 0) -> list[Neuron]:
    """Neurons of `21:894` or `21:894, 19:1439`, brackets allowed; `first_layer` is the number of the first block.

    Raises `ValueError` with everything that is wrong.
    """
    found, wrong = [], []
    for part in text.strip().removeprefix("[").removesuffix("]").split(","):
        match = re.fullmatch(r"\s*['\"]?(\d+):(\d+)['\"]?\s*", part)
        if match is None:
            wrong.append(f"{part.strip()!r} is not LAYER:INDEX, such as 21:894")
        elif int(match[1]) < first_layer:
            wrong.append(f"{part.strip()}: layers count from {first_layer} here")
        else:
            found.append(Neuron(int(match[1]) - first_layer, int(match[2])))
    if twice := sorted({neuron for neuron in found if found.count(neuron) > 1}):
        wrong.append(f"{', '.join(map(str, twice))} is given twice")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


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
