"""A metric against the swept value: a point per seed, a line through the means, the dense twin beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from topklm.report.figure import COLOURS, DASHES, MARKERS, framed, house_style, legend_below, plain
from topklm.report.sweeps.groups import Group, shown
from topklm.report.sweeps.spread import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Callable[[Group], Spread]


class Axis:
    """Where the values of the swept key stand: at their size if all are numbers, else beside each other."""

    def __init__(self, groups: Sequence[Group], key: str, log: bool):
        self.key = key
        values = {shown(one.swept[key]): one.swept[key] for one in groups if key in one.swept}
        self.is_numeric = bool(values) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()
        )
        self.is_log = log and self.is_numeric and all(value > 0 for value in values.values())
        if self.is_numeric:
            self.places = {name: float(value) for name, value in values.items()}
        else:
            self.places = {name: float(i) for i, name in enumerate(values)}

    def place(self, one: Group) -> float:
        return self.places[shown(one.swept[self.key])]

    def dress(self, axes: Any) -> None:
        """Scale, ticks at the swept values, label."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

        places = sorted(self.places.items(), key=lambda item: item[1])
        if self.is_log:
            axes.set_xscale("log")
        elif not self.is_numeric:
            axes.set_xlim(-0.5, len(places) - 0.5)
        axes.xaxis.set_major_locator(FixedLocator([place for _, place in places]))
        axes.xaxis.set_major_formatter(FixedFormatter([plain(name) for name, _ in places]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(plain(self.key))


def against_swept(
    title: str,
    groups: Sequence[Group],
    panels: Sequence[tuple[str, Values]],
    x: str,
    *,
    log_x: bool,
    provenance: Sequence[str],
) -> Figure:
    """Panels below each other, each with (its label, what of a group it shows). A panel of ratios has a line at 1.

    Groups that have the same other swept values are one series. A dense model that has no value of `x` is a
    horizontal line at its mean, with a band from its lowest to its highest seed.
    """
    axis = Axis(groups, x, log_x)
    with house_style():
        figure = framed(title, provenance, 2.7 * len(panels) + 0.3, 7.0)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (label, values) in zip(axes, panels, strict=True):
            for i, (name, members) in enumerate(_series(groups, x).items()):
                style = _style(i, members[0].is_dense)
                if x in members[0].swept:
                    _draw_series(panel, axis, members, values, name, style)
                else:
                    _draw_level(panel, members, values, name, style)
            if label.startswith("ratio"):
                panel.axhline(1.0, color="#444444", linewidth=0.9, linestyle=(0, (1, 2)))
            panel.set_ylabel(label)
        axis.dress(axes[-1])
        axes[0].set_title(
            "points: seeds; bar and line: their mean; band: from the lowest to the highest seed",
            fontsize=9,
            color="#555555",
        )
        legend_below(figure, [axes[0]], 2)
    return figure


def _series(groups: Sequence[Group], x: str) -> dict[str, list[Group]]:
    """Groups by everything that is swept but x."""
    found: dict[str, list[Group]] = {}
    for one in groups:
        others = ", ".join(f"{key} {shown(value)}" for key, value in one.swept.items() if key != x)
        name = " ".join(part for part in ("dense" if one.is_dense else "TopK", others) if part)
        found.setdefault(name, []).append(one)
    return found


def _style(i: int, dense: bool) -> dict[str, Any]:
    colour = "#000000" if dense else COLOURS[i % (len(COLOURS) - 1)]
    dashes = "--" if dense else DASHES[i // (len(COLOURS) - 1) % len(DASHES)]
    return {"color": colour, "linestyle": dashes, "marker": MARKERS[i % len(MARKERS)]}


def _draw_series(
    panel: Any, axis: Axis, members: Sequence[Group], values: Values, name: str, style: dict[str, Any]
) -> None:
    found = sorted(((axis.place(one), values(one)) for one in members), key=lambda pair: pair[0])
    found = [(place, spread) for place, spread in found if spread.n]
    if not found:
        return
    points = [(place, value) for place, spread in found for value in spread.values]
    panel.plot(*zip(*points, strict=True), linestyle="", marker=style["marker"], color=style["color"], alpha=0.55, ms=5)
    # Between places that have no order of their own a line would say nothing.
    line = style["linestyle"] if axis.is_numeric else ""
    means = [(place, spread.mean) for place, spread in found]
    panel.plot(
        *zip(*means, strict=True), color=style["color"], linestyle=line, label=plain(name),
        marker="_", markersize=14, markeredgewidth=2,
    )  # fmt: skip


def _draw_level(panel: Any, members: Sequence[Group], values: Values, name: str, style: dict[str, Any]) -> None:
    spread = Spread(tuple(value for one in members for value in values(one).values))
    if spread.mean is None or not math.isfinite(spread.mean):
        return
    panel.axhline(spread.mean, color=style["color"], linestyle=style["linestyle"], linewidth=1.4, label=plain(name))
    panel.axhspan(min(spread.values), max(spread.values), color=style["color"], alpha=0.12, linewidth=0)
