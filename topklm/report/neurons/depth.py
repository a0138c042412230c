"""Entropies by depth: mean and standard deviation over the neurons of each layer, models and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from topklm.report.figure import framed, house_style, legend_below, plain
from topklm.report.neurons.look import basis, style_of
from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import newest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("token_entropy", "token entropy\n(nats)"),
    ("semantic_entropy", "semantic entropy\n(nats)"),
    ("coherence", "coherence\n(mean cosine)"),
)


def depth_figure(measured: Sequence[Measured]) -> tuple[Figure, str]:
    """Token entropy, semantic entropy and coherence by layer (the paper's Fig. 3, with its controls).

    Lines: means over the neurons that have a value; bands: one standard deviation, of the models themselves. Filled
    markers: TopK layers. Returns (figure, its provenance). Raises `ConfigError` without matplotlib.
    """
    shown = newest(measured)
    lines = [each.provenance() for each in shown]
    with house_style():
        figure = framed("Entropy by depth", lines, 9.0)
        axes = figure.subplots(len(PANELS), 1, sharex=True, height_ratios=(3.2, 2.4, 2.0))
        for axis, (column, title) in zip(axes, PANELS, strict=True):
            for each in shown:
                _line(axis, each, column, style_of(each, measured))
            axis.set_ylabel(title)
        tail = mark_tail(axes, shown)
        _finish(figure, axes, shown, tail)
    return figure, "\n".join(lines)


def silent_figure(measured: Sequence[Measured]) -> tuple[Figure, str]:
    """Share of neurons by layer that fired on no token. Returns (figure, its provenance)."""
    shown = newest(measured)
    lines = [each.provenance() for each in shown]
    with house_style():
        figure = framed("Silent neurons by depth", lines, 3.6)
        axis = figure.subplots()
        for each in shown:
            shares = [100 * row["silent"] / row["neurons"] for row in each.by_layer.values()]
            _marked(axis, each, list(each.by_layer), shares, style_of(each, measured))
        axis.set_ylabel("silent neurons\n(% of the layer)")
        top = max(1.0, axis.get_ylim()[1])
        axis.set_ylim(-0.04 * top, 1.04 * top)  # markers at 0 whole
        tail = mark_tail([axis], shown)
        what = f"fired on none of {shown[0].bundle.n_tokens:,} tokens: dead as far as can be seen here"
        _finish(figure, [axis], shown, tail, what)
    return figure, "\n".join(lines)


def mark_tail(axes: Sequence[Any], shown: Sequence[Measured]) -> bool:
    """Shade the dense tail of the TopK models, once for models with the same; whether there is any."""
    spans = {
        (each.tail, each.bundle.meta.model.n_layers) for each in shown if each.tail < each.bundle.meta.model.n_layers
    }
    for first, end in spans:
        for axis in axes:
            axis.axvspan(first - 0.5, end - 0.5, color="#888888", alpha=0.13, linewidth=0, zorder=0)
    return bool(spans)


def _line(axis: Any, each: Measured, column: str, style: dict[str, Any]) -> None:
    layers = list(each.by_layer)
    means, sds = ([_number(row.get(f"{column}_{what}")) for row in each.by_layer.values()] for what in ("mean", "sd"))
    if not each.is_control:
        low, high = ([m + sign * s for m, s in zip(means, sds, strict=True)] for sign in (-1, 1))
        axis.fill_between(layers, low, high, color=style["color"], alpha=0.14, linewidth=0)
    _marked(axis, each, layers, means, style)


def _marked(axis: Any, each: Measured, layers: list[int], values: list[float], style: dict[str, Any]) -> None:
    """A line whose markers are filled in TopK layers and hollow in dense ones."""
    axis.plot(
        layers, values, color=style["color"], linestyle=style["linestyle"], linewidth=1.2 if each.is_control else 2
    )
    for kind, face in (("topk", style["color"]), ("dense", "white")):
        picked = [(x, y) for x, y in zip(layers, values, strict=True) if each.by_layer[x]["kind"] == kind]
        axis.plot(
            [x for x, _ in picked], [y for _, y in picked], linestyle="none", marker=style["marker"],
            markersize=5 if each.is_control else 6.5, color=style["color"], markerfacecolor=face, zorder=3,
        )  # fmt: skip
    axis.plot([], [], label=_legend(each), markersize=5, **style)


def _legend(each: Measured) -> str:
    return plain(each.label + ("" if each.step is None else f", step {each.step:,}"))


def _finish(figure: Any, axes: Sequence[Any], shown: Sequence[Measured], tail: bool, what: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axes[-1].set_xlabel("layer, counted from 0")
    axes[-1].xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes[-1].set_xlim(-0.5, max(each.bundle.meta.model.n_layers for each in shown) - 0.5)
    marks = "filled markers: TopK readings; hollow: dense" + ("; shaded: dense tail of the TopK models" if tail else "")
    what = what or "lines: mean over neurons; bands: one standard deviation (controls: in the tables)"
    axes[0].set_title(f"{basis(shown[0])}\n{what}\n{marks}", fontsize=9, color="#555555")
    labels = axes[0].get_legend_handles_labels()[1]
    legend_below(figure, axes[:1], 1 if max(map(len, labels)) > 44 else 2)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
