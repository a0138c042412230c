"""Neurons one by one and corpus sizes: density against entropy, and token entropy against the tokens measured on."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from topklm.report.figure import COLOURS, framed, house_style, legend_below, plain
from topklm.report.neurons.look import basis
from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import newest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (("topk", "TopK reading", COLOURS[1], "o"), ("dense", "dense reading", COLOURS[0], "s"))
COLUMNS = 3


def density_figure(measured: Sequence[Measured]) -> tuple[Figure, str]:
    """Token entropy of every neuron against the share of tokens on which it fires, one panel a reading.

    Returns (figure, its provenance).
    """
    shown = newest(measured)
    lines = [each.provenance() for each in shown]
    with house_style():
        figure, axes = _grid("Density against entropy", lines, len(shown))
        for axis, each in zip(axes, shown, strict=False):
            for kind, label, colour, marker in KINDS:
                rows = (each.columns["kind"] == kind) & ~each.columns["silent"].astype(bool)
                x, y = each.columns["density"][rows], each.columns["token_entropy"][rows]
                axis.plot(
                    x, y, linestyle="none", marker=marker, markersize=3, markeredgewidth=0, color=colour,
                    alpha=float(np.clip(60 / math.sqrt(max(1, len(x))), 0.08, 0.6)), rasterized=True,
                )  # fmt: skip
                axis.plot([], [], linestyle="none", marker=marker, markersize=5, color=colour, label=label)
            axis.set_title(_title(each), fontsize=9)
            axis.set_xscale("log")
        lowest = min((float(d.min()) for each in shown if len(d := _positive(each))), default=1e-3)
        axes[0].set_xlim(lowest / 1.5, 1.5)
        _percent(axes)
        _named(figure, axes, len(shown), "tokens on which it fires (a > 0)", "token entropy (nats)")
        title = f"each point a neuron; silent ones left out; {basis(shown[0])}"
        legend_below(figure, axes[:1], 2, title)
    return figure, "\n".join(lines)


def convergence_figure(measured: Sequence[Measured]) -> tuple[Figure, str] | None:
    """Mean token entropy of each layer at the corpus sizes that the bundles have apart; None without any.

    The open marker at the right edge is the extrapolated limit, the bar at the full size the split-half error.
    Returns (figure, its provenance).
    """
    shown = [each for each in newest(measured) if each.entropy["convergence"]]
    if not shown:
        return None
    lines = [each.provenance() for each in shown]
    with house_style():
        import matplotlib as mpl

        figure, axes = _grid("Token entropy and corpus size", lines, len(shown))
        # Without its ends: they are hard to see on dark and on white.
        colours = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0.27, 0.83, 256)))
        most = max(each.bundle.meta.model.n_layers for each in shown)
        for axis, each in zip(axes, shown, strict=False):
            for layer in each.by_layer:
                _layer(axis, each, layer, colours(layer / max(1, most - 1)))
            axis.set_title(_title(each), fontsize=9)
            axis.set_xscale("log")
        _counts(axes, shown)
        _named(figure, axes, len(shown), "tokens measured on", "token entropy (nats)")
        scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, max(1, most - 1)), colours)
        bar = figure.colorbar(
            scale, ax=list(axes), shrink=0.7, pad=0.02, aspect=20 * -(-len(shown) // COLUMNS),
            boundaries=np.arange(most + 1) - 0.5, values=range(most), ticks=range(0, most, max(1, most // 8)),
        )  # fmt: skip
        bar.set_label("layer, counted from 0")
        bar.outline.set_visible(False)
        grey = {"color": "#666666", "linewidth": 1.5}
        axes[0].plot([], [], label="TopK reading", **grey)
        axes[0].plot([], [], label="dense reading", linestyle="--", **grey)
        axes[0].plot(
            [], [], label="extrapolated", linestyle="none", marker="D", markerfacecolor="white", color="#666666"
        )
        axes[0].errorbar([], [], yerr=[], label="split-half error", linestyle="none", capsize=3, **grey)
        title = "mean over the neurons with an entropy at every size; types that occurred at least "
        title += f"{shown[0].min_count} times in all tokens"
        legend_below(figure, axes[:1], 4, title)
    return figure, "\n".join(lines)


def _layer(axis: Any, each: Measured, layer: int, colour: Any) -> None:
    rows = [row for row in each.entropy["convergence"] if row["layer"] == layer]
    if not rows:
        return
    tokens, values = [row["tokens"] for row in rows], [_number(row["token_entropy"]) for row in rows]
    dashes = "-" if each.by_layer[layer]["kind"] == "topk" else "--"
    axis.plot(tokens, values, color=colour, linestyle=dashes, linewidth=1.5, marker="o", markersize=2.5)
    error, limit = _number(rows[-1]["split_half_error"]), _number(rows[-1]["limit"])
    if not math.isnan(error):
        axis.errorbar(tokens[-1], values[-1], yerr=error, color=colour, capsize=2.5, linewidth=1)
    if not math.isnan(limit):
        axis.plot(tokens[-1] * 3, limit, marker="D", markersize=4.5, color=colour, markerfacecolor="white")


def _grid(title: str, lines: Sequence[str], n: int) -> tuple[Any, list[Any]]:
    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    figure = framed(title, lines, 2.9 * rows + 0.7, width=9.0 if columns > 1 else 6.0)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axis in axes[n:]:
        axis.set_visible(False)
    return figure, axes


def _named(figure: Any, axes: Sequence[Any], n: int, x: str, y: str) -> None:
    columns = min(COLUMNS, n)
    for i in range(n):
        if i % columns == 0:
            axes[i].set_ylabel(y)
        if i + columns >= n:
            axes[i].set_xlabel(x)
            axes[i].xaxis.set_tick_params(labelbottom=True)


def _percent(axes: Sequence[Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        axis.xaxis.set_major_locator(LogLocator(numticks=4))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def _counts(axes: Sequence[Any], shown: Sequence[Measured]) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter

    sizes = sorted({row["tokens"] for each in shown for row in each.entropy["convergence"]})
    places: list[int] = []
    for size in sizes:
        if not places or size > 2.2 * places[-1]:  # room for its label
            places.append(size)
    for axis in axes:
        axis.xaxis.set_major_locator(FixedLocator(places))
        axis.xaxis.set_major_formatter(EngFormatter(sep="", places=0))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlim(sizes[0] / 1.5, sizes[-1] * 5)


def _title(each: Measured) -> str:
    return plain("\n".join(textwrap.wrap(each.label, 36)))


def _positive(each: Measured) -> np.ndarray:
    density = each.columns["density"]
    return density[density > 0]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
