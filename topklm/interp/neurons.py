"""Neurons as people write them, `21:894`, and as the results of analyses list them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from topklm.errors import DataError
from topklm.report.result import RESULT


@dataclass(frozen=True, order=True)
class Neuron:
    """One dimension of the residual stream after one block."""

    layer: int
    """Block, counted from 0."""
    index: int
    """Dimension, counted from 0."""

    def __str__(self) -> str:
        return f"{self.layer}:{self.index}"


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


def result_neurons(directory: str | Path) -> list[Neuron]:
    """The neurons that a result names, best first (`apps.label candidates`). Raises `DataError` where it names none."""
    try:
        names = json.loads((Path(directory) / RESULT).read_text(encoding="utf-8"))["data"]["neurons"]
        if not isinstance(names, list):
            raise TypeError(f"not a list: {names!r}")
        found = parse_neurons(",".join(map(str, names))) if names else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        advice = "give the directory of one that does: python -m apps.label candidates bundle=BUNDLE"
        raise DataError(f"{directory} names no neurons ({reason}); {advice}") from error
    if not found:
        raise DataError(f"{directory} found no candidates; ask for less there, or name neurons, such as 21:894")
    return found
