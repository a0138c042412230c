"""Figures of consistency: by depth, matched cosines against their null, and against density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from topklm.report.consistency.tables import Row
from topklm.report.figure import COLOURS, MARKERS, framed, house_style, legend_below, plain
from topklm.report.result import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Clouds = Mapping[tuple[str, int | None], tuple[np.ndarray, np.ndarray]]
"""(label, layer): matched cosines of all pairs, and those of the permuted null."""

LEAST_NEURONS = 20
"""Density strata with fewer neurons are in the table, not in the figure."""


def consistency_drawings(
    rows: Sequence[Row], strata: Sequence[Row], clouds: Clouds, what: str, threshold: float, provenance: Sequence[str]
) -> dict[str, Drawing]:
    """The figures by file name. Raises `ConfigError` without matplotlib."""
    drawings = {}
    with house_style():
        drawings["depth"] = _depth(rows, what, threshold, provenance)
        drawings["cosines"] = _cosines(rows, clouds, what, provenance)
        if any(row["neurons"] >= LEAST_NEURONS for row in strata):
            drawings["density"] = _density(rows, strata, what, provenance)
    return drawings


def _depth(rows: Sequence[Row], what: str, threshold: float, provenance: Sequence[str]) -> Drawing:
    full = not all(math.isnan(row["signed"]) for row in rows)
    rates = [("signed", "PW-MCC"), ("above", f"matched above {threshold:g} (%)")]
    if not full:
        rates = [("upper", "cosine with the nearest"), ("mutual_above", f"mutual, above {threshold:g} (%)")]
    figure = framed(f"Consistency across seeds: {what}", provenance, 6.4)
    axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axis, (rate, title) in zip(axes, rates, strict=True):
        scale = 100 if title.endswith("(%)") else 1
        for label in dict.fromkeys(row["label"] for row in rows):
            _line(axis, [row for row in rows if row["label"] == label], rate, scale)
        axis.set_ylabel(title)
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), None)
    _layer_axis(axes[1], rows)
    text = (
        "Points: mean of the pairs; bars: least and most pair; thin dashes: with permuted coordinates.\n"
        "Filled markers: TopK readings; hollow: dense. Dotted: random initialisations."
    )
    axes[0].set_title(text, fontsize=8.5, color="#555555")
    legend_below(figure, axes[:1], 2)
    return Drawing(title="Consistency by depth", text=text, figure=figure)


def _line(axis: Axes, rows: Sequence[Row], rate: str, scale: float) -> None:
    style = _style(rows[0])
    at = [_place(row) for row in rows]
    mean, least, most, null = (
        np.array([row[key] for row in rows]) * scale
        for key in (rate, f"{rate}_least", f"{rate}_most", f"{rate}_permuted")
    )
    main = not rows[0]["is_initial"]
    axis.errorbar(at, mean, yerr=[mean - least, most - mean], capsize=2, elinewidth=1, label=plain(rows[0]["label"]),
                  markersize=6 if main else 4.5, markerfacecolor="white", **style)  # fmt: skip
    picked = [i for i, row in enumerate(rows) if row["kind"] == "topk"]
    axis.plot([at[i] for i in picked], mean[picked], linestyle="none", marker=style["marker"], color=style["color"],
              markersize=6 if main else 4.5, zorder=3)  # fmt: skip
    if main and not rows[0]["same_initial"]:
        axis.plot(at, null, color=style["color"], linestyle=(0, (2, 2)), linewidth=0.9, marker="_", markersize=7)


def _cosines(rows: Sequence[Row], clouds: Clouds, what: str, provenance: Sequence[str]) -> Drawing:
    labels = list(dict.fromkeys(row["label"] for row in rows if not row["is_initial"])) or [rows[0]["label"]]
    figure = framed(f"Matched cosines against the null: {what}", provenance, 2.3 * len(labels) + 0.4)
    axes = figure.subplots(len(labels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axis, label in zip(axes, labels, strict=True):
        own = [row for row in rows if row["label"] == label]
        floor = [
            row for row in rows if row["is_initial"] and row["family"] == own[0]["family"] and not row["same_initial"]
        ]
        colour = _style(own[0])["color"]
        for row in own:
            found, null = clouds[label, row["layer"]]
            _bar(axis, _place(row) - 0.2, found, colour)
            _bar(axis, _place(row) + (0.2 if not floor else 0.0), null, "#888888")
        for row in floor:
            _bar(axis, _place(row) + 0.2, clouds[row["label"], row["layer"]][0], "#000000")
        axis.set_title(plain(label), fontsize=9.5)
        axis.set_ylabel("matched cosine")
    _layer_axis(axes[-1], rows)
    text = (
        "Dot: median; thick: middle half; thin: 5 % to 95 % of the matched neurons of all pairs of runs. Coloured: the "
        "runs; grey: permuted coordinates; black, where there is one: random initialisations."
    )
    return Drawing(title="Matched cosines against the null", text=text, figure=figure)


def _bar(axis: Axes, at: float, values: np.ndarray, colour: str) -> None:
    if not len(values):
        return
    p5, p25, p50, p75, p95 = np.percentile(values, [5, 25, 50, 75, 95])
    axis.plot([at, at], [p5, p95], color=colour, linewidth=1, solid_capstyle="butt")
    axis.plot([at, at], [p25, p75], color=colour, linewidth=4.5, solid_capstyle="butt")
    axis.plot([at], [p50], marker="o", markersize=4, color="white", markeredgecolor=colour, zorder=3)


def _density(rows: Sequence[Row], strata: Sequence[Row], what: str, provenance: Sequence[str]) -> Drawing:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = framed(f"Consistency against density: {what}", provenance, 4.0)
    axis = figure.subplots()
    styles = {row["label"]: _style(row) for row in rows}
    for label, kind in dict.fromkeys((row["label"], row["kind"]) for row in strata):
        own = [
            row for row in strata if (row["label"], row["kind"]) == (label, kind) and row["neurons"] >= LEAST_NEURONS
        ]
        if not own:
            continue
        at = [math.sqrt(row["density_low"] * row["density_high"]) for row in own]
        style = dict(styles[label])
        face = style["color"] if kind == "topk" else "white"
        name = label if not kind else f"{label}, {'TopK' if kind == 'topk' else 'dense'} readings"
        axis.plot(at, [row["cosine"] for row in own], label=plain(name), markerfacecolor=face, markersize=6, **style)
        if not (own[0]["is_initial"] or own[0]["same_initial"]):
            axis.plot(
                at,
                [row["permuted"] for row in own],
                color=style["color"],
                linestyle=(0, (2, 2)),
                linewidth=0.9,
                marker="_",
            )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(numticks=6))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("density: share of tokens in which the neuron fired (bins of a factor of 2)")
    axis.set_ylabel("matched cosine (mean)")
    text = (
        "Each neuron with its own density; thin dashes: the same with permuted coordinates, so what density alone does."
    )
    axis.set_title(text, fontsize=8.5, color="#555555")
    legend_below(figure, [axis], 2)
    return Drawing(title="Consistency against density", text=text, figure=figure)


def _style(row: Row) -> dict[str, Any]:
    """Colour and marker by family; dotted: random initialisations, dash-dotted: the same initial weights."""
    i = row["family"]
    dashes: Any = (0, (1, 1.6)) if row["is_initial"] else (0, (5, 1.5, 1, 1.5)) if row["same_initial"] else "-"
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": dashes}


def _layer_axis(axis: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import MaxNLocator

    layers = [row["layer"] for row in rows if row["layer"] is not None]
    if not layers:
        axis.set_xticks([])  # a dictionary of no layer
        axis.set_xlim(-1.5, 1.5)
        return
    axis.set_xlabel("layer, counted from 0")
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axis.set_xlim(min(layers) - 0.5, max(layers) + 0.5)


def _place(row: Row) -> float:
    return 0.0 if row["layer"] is None else float(row["layer"])
