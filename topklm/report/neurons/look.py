"""What the figures of neurons have in common: lines, and on what the entropies rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topklm.bundles import NamedBundle
from topklm.report.figure import COLOURS, MARKERS
from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import runs_of


def style_of(each: NamedBundle, measured: Sequence[NamedBundle]) -> dict[str, Any]:
    """Colour and marker by run; dashes by reading: solid the model itself, dashed through a cut, dotted initial."""
    i = runs_of(measured).index(each.run)
    dashes: Any = "-"
    if each.is_initial:
        dashes = (0, (1, 1.6)) if each.cut is None else (0, (4, 1.5, 1, 1.5))
    elif each.cut is not None:
        dashes = (0, (5, 2))
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes, "marker": MARKERS[i % len(MARKERS)]}


def basis(each: Measured) -> str:
    """On what the entropies rest, for a subtitle."""
    return (
        f"{each.bundle.n_tokens:,} tokens; {each.entropy['n_types']:,} token types that occurred at least "
        f"{each.min_count} times"
    )
