"""Persistence and survival over depth: figure, tables, sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from topklm.report.figure import framed, house_style, legend_below, plain
from topklm.report.table import Column, Table
from topklm.report.tracing.match import SeriesLook

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shown = Collection[tuple[str, int | None]]
"""(series, step) of what is shown."""


@dataclass(frozen=True, kw_only=True)
class PersistencePoint:
    """From one layer to the next."""

    series: str
    step: int | None
    """None: initial weights."""
    layer: int
    """From this layer to the next."""
    n: int
    """Neurons that fire here."""
    silent: int
    """Neurons that do not: left out."""
    density: float
    """Share of tokens in which a neuron fires here, mean over all neurons."""
    share: float
    """P(active in the next layer | active here), pooled over neurons; `low`, `high`: 95 % over neurons."""
    low: float
    high: float
    base: float
    """The share if the layers were independent: mean base rate in the next layer, weighted by firing here."""
    lift: float
    """share / base, pooled."""
    lift_low: float
    """Quartiles and median of each neuron's own lift."""
    lift_median: float
    lift_high: float
    excess: float
    """(share - base) / (1 - base), pooled; 0: independent, 1: always stays; `_low`, `_high`: 95 % over neurons."""
    excess_low: float
    excess_high: float


@dataclass(frozen=True, kw_only=True)
class SurvivalPoint:
    """Share of the activity in layer `start` that goes on through `depth` further layers without a break."""

    series: str
    step: int | None
    start: int
    depth: int
    n: int
    silent: int
    share: float
    low: float
    high: float
    independent: float
    """If layers were independent."""
    product: float
    """Product of the single steps."""


def persistence_figure(
    steps: Sequence[PersistencePoint],
    survival: Sequence[SurvivalPoint],
    look: dict[str, SeriesLook],
    tail: int | None,
    start: int,
    lines: Sequence[str],
) -> Figure:
    """Left: excess by layer; right: survival from layer `start`. Initial weights are hollow and thin."""
    with house_style():
        figure = framed("Persistence over depth", lines, 4.2, width=9.0)
        left, right = figure.subplots(1, 2)
        for label, style in look.items():
            for initial in (False, True):
                own: dict[str, Any] = style.style()
                if initial:
                    own |= {"linewidth": 0.9, "markerfacecolor": "white", "alpha": 0.8}
                mine = [p for p in steps if p.series == label and (p.step is None) == initial]
                name = plain(f"{label}{', initial weights' if initial else ''}")
                if mine:
                    x = [p.layer for p in mine]
                    left.plot(x, [p.excess for p in mine], label=name, **own)
                    if not initial:
                        low, high = [p.excess_low for p in mine], [p.excess_high for p in mine]
                        left.fill_between(x, low, high, color=own["color"], alpha=0.12, linewidth=0)
                rest = [p for p in survival if p.series == label and (p.step is None) == initial and p.start == start]
                if rest:
                    x = [start + p.depth for p in rest]
                    right.plot(x, [p.share for p in rest], **own)
                    if not initial:
                        flat = {"color": own["color"], "linewidth": 0.9, "linestyle": (0, (1, 2))}
                        right.plot(x, [p.independent for p in rest], **flat)
        left.set_xlabel("from layer (to the next one)")
        left.set_ylabel("persistence above the base rate\n(P - base) / (1 - base)")
        left.set_ylim(top=1.03)
        left.axhline(0, color="#666666", linewidth=0.8)
        right.set_xlabel("layer")
        right.set_ylabel(f"share of layer {start}'s activity\nthat is still active")
        right.set_ylim(0, 1.03)
        _ticks(left, [p.layer for p in steps], None if tail is None else tail - 1.5)
        _ticks(right, [start + p.depth for p in survival if p.start == start], None if tail is None else tail - 0.5)
        title = (
            "bands: 95 % over neurons; thin dotted (right): if layers were independent"
            + ("; right of the dashed line: the dense tail" if tail is not None else "")
        )  # fmt: skip
        longest = max(len(label) for label in left.get_legend_handles_labels()[1])
        legend_below(figure, [left], 1 if longest > 44 else 2, title)
    return figure


def persistence_table(points: Sequence[PersistencePoint]) -> Table:
    """Every step from a layer to the next."""
    columns = [
        Column("series", "model"), Column("step", "step"), Column("layer", "from layer"),
        Column("n", "neurons", "{:,}"),
        Column("silent", "silent"), Column("density", "density", "{:.2%}"), Column("share", "P(next | here)", "{:.2%}"),
        Column("base", "base rate", "{:.2%}"), Column("lift", "lift", "{:.2f}"),
        Column("lift_low", "lift, 1st quartile", "{:.2f}"), Column("lift_median", "median", "{:.2f}"),
        Column("lift_high", "3rd quartile", "{:.2f}"), Column("excess", "(P - base) / (1 - base)", "{:.3f}"),
        Column("excess_low", "95 % from", "{:.3f}"), Column("excess_high", "to", "{:.3f}"),
    ]  # fmt: skip
    return Table(
        "Persistence",
        "P(active in the next layer | active here), pooled over the neurons that fire here. Base rate: what "
        "independent layers would give. A lift is at most 1 / base rate: compare models of other densities by the last "
        "columns.",
        columns,
        [vars(p) | {"step": "initial" if p.step is None else p.step} for p in points],
    )


def survival_table(points: Sequence[SurvivalPoint]) -> Table:
    """Every start and depth."""
    columns = [
        Column("series", "model"), Column("step", "step"), Column("start", "from layer"),
        Column("depth", "layers later"),
        Column("share", "survives", "{:.2%}"), Column("low", "95 % from", "{:.2%}"), Column("high", "to", "{:.2%}"),
        Column("independent", "if independent", "{:.2%}"), Column("product", "product of steps", "{:.2%}"),
    ]  # fmt: skip
    return Table(
        "Survival",
        "Share of a layer's activity that goes on without a break: exact counts. The product of the single steps would "
        "be the same if staying did not depend on how long a neuron has been active.",
        columns,
        [vars(p) | {"step": "initial" if p.step is None else p.step} for p in points if p.depth],
    )


def persistence_statements(
    steps: Sequence[PersistencePoint], survival: Sequence[SurvivalPoint], shown: Shown, tail: int | None, start: int
) -> list[str]:
    """What the newest checkpoints and the initial weights show, over the layers before the dense tail."""
    body, ends, silent, of = [], [], 0, 0
    for label, step in sorted(shown, key=lambda key: ([p.series for p in steps].index(key[0]), key[1] is None)):
        name = f"{label}{' with initial weights' if step is None else f' at step {step:,}'}"
        mine = [p for p in steps if (p.series, p.step) == (label, step)]
        inside = [p for p in mine if tail is None or p.layer + 1 < tail]
        silent, of = silent + sum(p.silent for p in mine), of + sum(p.silent + p.n for p in mine)
        if inside:
            share, base = (sum(getattr(p, key) for p in inside) / len(inside) for key in ("share", "base"))
            excess = sum(p.excess for p in inside) / len(inside)
            body.append(f"{name} {share:.1%} (base rate {base:.1%}, lift {share / base:.2f}, excess {excess:.3f})")
        last = [p for p in survival if (p.series, p.step, p.start) == (label, step, start) and p.depth
                and (tail is None or p.start + p.depth < tail)]  # fmt: skip
        if last:
            end = last[-1]
            others = f"independent {end.independent:.1%}, product of steps {end.product:.1%}"
            ends.append(f"{name} {end.share:.1%} after {end.depth} layers ({others})")
    where = "" if tail is None else " before the dense tail"
    found = []
    if body:
        found.append(
            f"Active in a layer, a neuron is active in the next one{where}, mean of the layers: {'; '.join(body)}."
        )
        found.append(
            "A lift is at most one over the base rate, so that a dense model's cannot exceed about 2: across densities "
            "compare the excess, (P - base) / (1 - base), and the dense model read through the same cut."
        )
    if ends:
        found.append(f"Of the activity in layer {start}, without a break{where}: {'; '.join(ends)}.")
    found.append(f"{silent:,} of {of:,} neurons of these layers never fire and are left out.")
    return found


def _ticks(axis: Any, layers: Sequence[int], line: float | None) -> None:
    ticks = sorted(set(layers))
    axis.set_xticks(ticks)
    if line is not None and ticks and ticks[0] < line < ticks[-1] + 1:
        axis.axvline(line, color="#888888", linewidth=0.9, linestyle=(0, (3, 3)))
