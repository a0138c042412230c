"""What the figures of neurons have in common: lines, legends, and on what the entropies rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topklm.report.figure import COLOURS
from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import runs_of

MARKERS = ("o", "s", "^", "D", "v", "P")
"""One fewer than there are colours, so that models of one colour have other markers."""
_LEGEND_LINE = 0.2
"""Inches of a line of a legend."""


def style_of(each: Measured, measured: Sequence[Measured]) -> dict[str, Any]:
    """Colour and marker by run; dashes by reading: solid the model itself, dashed through a cut, dotted initial."""
    i = runs_of(measured).index(each.run)
    dashes: Any = "-"
    if each.is_initial:
        dashes = (0, (1, 1.6)) if each.cut is None else (0, (4, 1.5, 1, 1.5))
    elif each.cut is not None:
        dashes = (0, (5, 2))
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes, "marker": MARKERS[i % len(MARKERS)]}


def plain(text: str) -> str:
    """Text for a legend, in which a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def basis(each: Measured) -> str:
    """On what the entropies rest, for a subtitle."""
    return (
        f"{each.bundle.n_tokens:,} tokens; {each.entropy['n_types']:,} token types that occurred at least "
        f"{each.min_count} times"
    )


def legend_below(figure: Any, axes: Sequence[Any], columns: int, title: str = "") -> None:
    """One legend for the lines of some panels, between the panels and the provenance at the bottom of a `framed`
    figure, which becomes higher by as much as the legend needs."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    handles, labels = ([each for pair in found for each in pair[i]] for i in (0, 1))
    lines = -(-len(labels) // columns) + (title.count("\n") + 1 if title else 0)
    (width, height), legend = figure.get_size_inches(), _LEGEND_LINE * lines + 0.15
    higher = height + legend
    figure.set_size_inches(width, higher)
    layout = figure.get_layout_engine()
    foot = layout.get()["rect"][1] * height
    for text in figure.texts:  # places are shares of the height
        text.set_y(text.get_position()[1] * height / higher)
    layout.set(rect=(0, (foot + legend) / higher, 1, 1 - (foot + legend) / higher))
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.0, foot / higher), ncols=columns, fontsize=9,
        handlelength=3.5, borderaxespad=0.3, title=title or None, title_fontsize=9, alignment="left",
    )  # fmt: skip
