"""Memory of a planned run as bars: a bar for each mode of activation checkpointing, its parts stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from topklm.report.figure import COLOURS as PALETTE
from topklm.report.figure import framed, house_style, legend_below
from topklm.report.result import Drawing

COLOURS = (*PALETTE[:6], "#BBBBBB")
HATCHES = ("", "//", "", "..", "", "xx", "")
"""A second mark beside the colour, for those who do not see it."""


def memory_drawing(
    name: str, modes: Mapping[str, Mapping[str, float]], limit: float, provenance: Sequence[str]
) -> Drawing:
    """`modes`: GiB of each part, by mode; `limit`: GiB of the GPU."""
    title = f"Memory per GPU: {name}"
    with house_style():
        figure = framed(title, provenance, 0.55 * len(modes) + 1.4)
        axis = figure.subplots()
        parts = list(next(iter(modes.values())))
        left = [0.0] * len(modes)
        for i, part in enumerate(parts):
            sizes = [mode[part] for mode in modes.values()]
            axis.barh(
                list(modes), sizes, left=left, height=0.6, color=COLOURS[i], hatch=HATCHES[i], edgecolor="white",
                linewidth=0.5, label=part,
            )  # fmt: skip
            left = [start + size for start, size in zip(left, sizes, strict=True)]
        axis.axvline(limit, color="#444444", linestyle="--", label="the GPU's memory")
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("GiB at the highest moment of a step")
        axis.set_ylabel("activation checkpointing")
        legend_below(figure, [axis], columns=4)
    told = "; ".join(f"{mode}: {sum(sizes.values()):.1f} GiB" for mode, sizes in modes.items())
    return Drawing(title=title, text=f"{told}; the GPU has {limit:.1f} GiB.", figure=figure)
