"""Identity match over training and over depth: figures, table, sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from topklm.report.figure import COLOURS, MARKERS, framed, house_style, legend_below, plain
from topklm.report.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Comparison = Literal["next checkpoint", "last checkpoint", "next layer", "other half", "dense twin"]
Group = Literal["layer", "body", "tail"]


@dataclass(frozen=True, kw_only=True)
class MatchPoint:
    """One identity-match rate."""

    series: str
    """Which model, read how."""
    comparison: Comparison
    """next or last checkpoint: the same layer later in training; next layer: the same checkpoint; other half: the same
    checkpoint and layer on the other half of the tokens, the most that noise leaves; dense twin: the same layer of the
    dense model."""
    step: int | None
    """Of the profiles whose nearest is looked for; None: initial weights."""
    to_step: int | None
    """Of those among which it is."""
    group: Group
    """layer: one layer; body: the TopK layers together, or those layers of a dense model; tail: the dense tail."""
    layer: int | None
    """The layer; None for a group."""
    rate: float
    low: float
    high: float
    n: int
    silent: int
    uniform: float
    chance: float
    cosine: float
    """Mean cosine with the own index."""
    rival: float
    """Mean cosine with the nearest of the others."""


@dataclass(frozen=True, kw_only=True)
class SeriesLook:
    """How the lines of a series look."""

    colour: int
    """Index of the run."""
    dashes: Any
    """Of the reading."""

    def style(self) -> dict[str, Any]:
        """For `plot`."""
        return {
            "color": COLOURS[self.colour % len(COLOURS)], "linestyle": self.dashes,
            "marker": MARKERS[self.colour % len(MARKERS)], "markersize": 4.5,
        }  # fmt: skip


DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.6)), (0, (4, 1.5, 1, 1.5)))


def looks(series: Sequence[tuple[str, str]]) -> dict[str, SeriesLook]:
    """The look of each (label, run): a colour and marker a run, dashes a reading of it."""
    runs = list(dict.fromkeys(run for _, run in series))
    found: dict[str, SeriesLook] = {}
    for label, run in series:
        before = sum(r == run for name, r in series if name in found)
        found[label] = SeriesLook(colour=runs.index(run), dashes=DASHES[before % len(DASHES)])
    return found


def training_figure(
    points: Sequence[MatchPoint], look: dict[str, SeriesLook], anneal_ends: Sequence[int], lines: Sequence[str]
) -> Figure | None:
    """Rate and own cosine over steps, between consecutive checkpoints and against the last one, over the layers of the
    body. None without two checkpoints of a series."""
    shown = [p for p in points if p.group == "body" and p.comparison in ("next checkpoint", "last checkpoint")]
    if not shown:
        return None
    with house_style():
        figure = framed("Identity match over training", lines, 6.6)
        axes = figure.subplots(2, 2, sharex=True, sharey="row", squeeze=False)
        for j, comparison in enumerate(("next checkpoint", "last checkpoint")):
            for label, style in look.items():
                mine = [p for p in shown if p.comparison == comparison and p.series == label]
                _curve(axes[:, j], mine, style, label if j == 0 else None, [p.step or 0 for p in mine])
            axes[0, j].set_title(f"against the {comparison}", fontsize=10)
            axes[1, j].set_xlabel("optimizer steps of the earlier checkpoint")
        for axis in axes.flat:
            for end in anneal_ends:
                axis.axvspan(0, end, color="#888888", alpha=0.13, linewidth=0, zorder=0)
            axis.set_xlim(left=0)
        note = "the TopK layers together, and the same layers of a dense model; step 0: initial weights"
        _finish(figure, axes, shown, note + ("\nshaded: annealing, alpha > 0" if anneal_ends else ""))
    return figure


def depth_figure(
    points: Sequence[MatchPoint], look: dict[str, SeriesLook], tail: int | None, lines: Sequence[str]
) -> Figure | None:
    """Rate and own cosine of each layer with the next one: left the newest checkpoints, right initial weights."""
    shown = [p for p in points if p.group == "layer" and p.comparison == "next layer"]
    if not shown:
        return None
    with house_style():
        figure = framed("Identity match with the next layer", lines, 6.6)
        axes = figure.subplots(2, 2, sharex=True, sharey="row", squeeze=False)
        for j, initial in enumerate((False, True)):
            for label, style in look.items():
                mine = [p for p in shown if p.series == label and (p.step is None) == initial]
                _curve(axes[:, j], mine, style, label if j == 0 else None, [p.layer or 0 for p in mine])
            axes[0, j].set_title("initial weights" if initial else "newest checkpoint", fontsize=10)
            axes[1, j].set_xlabel("from layer (to the next one)")
        ticks = sorted({p.layer for p in shown if p.layer is not None})
        for axis in axes.flat:
            axis.set_xticks(ticks)
            if tail is not None and ticks[0] < tail <= ticks[-1] + 1:
                axis.axvline(tail - 1.5, color="#888888", linewidth=0.9, linestyle=(0, (3, 3)))
        note = "right of the dashed line the next layer is in the dense tail" if tail is not None else ""
        _finish(figure, axes, shown, note)
    return figure


def match_table(points: Sequence[MatchPoint]) -> Table:
    """Every rate."""
    columns = [
        Column("series", "model"), Column("comparison", "against"), Column("step", "step"),
        Column("to_step", "its step"),
        Column("group", "of"), Column("layer", "layer"), Column("n", "neurons", "{:,}"), Column("silent", "silent"),
        Column("rate", "match", "{:.2%}"), Column("low", "95 % from", "{:.2%}"), Column("high", "to", "{:.2%}"),
        Column("chance", "chance, by frequency", "{:.2%}"), Column("uniform", "1/N", "{:.2%}"),
        Column("cosine", "own cosine", "{:.4f}"), Column("rival", "nearest other's", "{:.4f}"),
    ]  # fmt: skip
    rows = [vars(point) | {"step": "initial" if point.step is None else point.step} for point in points]
    return Table(
        "Identity match",
        "Share of neurons whose nearest token profile is that of their own index. body: the TopK layers, or those "
        "layers of a dense model; tail: the dense tail. Silent neurons are left out and counted. Intervals: Wilson "
        "over neurons.",
        columns,
        rows,
    )


def match_statements(points: Sequence[MatchPoint], twins: tuple[str, str] | None = None) -> list[str]:
    """What the rates say; `twins`: labels of a TopK model and of the dense one that it is held against."""
    found = [] if twins is None else _verdicts(points, *twins)
    for comparison, words in (
        ("next checkpoint", "From one checkpoint to the next (mean over training)"),
        ("last checkpoint", "From the first checkpoint to the last"),
        ("next layer", "From one layer to the next, newest checkpoint"),
    ):
        parts = []
        for label in dict.fromkeys(p.series for p in points):
            mine = [
                p for p in points
                if p.series == label and p.group == "body" and p.comparison == comparison and p.step is not None and p.n
            ]  # fmt: skip
            if not mine:
                continue
            if comparison == "next checkpoint":
                least = min(mine, key=lambda p: p.rate)
                mean = math.fsum(p.rate for p in mine) / len(mine)
                parts.append(f"{label} {mean:.1%} (least {least.rate:.1%}, at step {least.step:,})")
            else:
                parts.append(f"{label} {_told(mine[0])}")
        if parts:
            found.append(f"{words}, this share of neurons has its own index as nearest profile: {'; '.join(parts)}.")
    initial = [p for p in points if p.step is None and p.group == "body" and p.n]
    for comparison, words in (
        (
            "next layer",
            "At initial weights, where nothing but the residual stream carries an index on, the match with the next "
            "layer is",
        ),
        ("last checkpoint", "Where the initial weights are matched with the last checkpoint, it is"),
    ):
        parts = [f"{p.series} {_told(p)}" for p in initial if p.comparison == comparison]
        if parts:
            found.append(f"{words} {'; '.join(parts)}.")
    halves = [f"{p.series} {p.rate:.1%}" for p in points if p.comparison == "other half" and p.group == "body" and p.n]
    if halves:
        found.append(f"Between two halves of the tokens, the most that can be measured, it is {'; '.join(halves)}.")
    for p in points:
        if p.comparison == "dense twin" and p.group == "body" and p.n:
            found.append(
                f"Between {p.series} and the dense model, newest checkpoints, {_told(p)} of the neurons have their own "
                f"index as nearest profile (chance {p.chance:.1%}); twins with the same initial weights may share some."
            )
    chance = [p.chance for p in points if p.n]
    silent = sum(p.silent for p in points if p.group == "layer")
    pairs = silent + sum(p.n for p in points if p.group == "layer")
    if chance:
        found.append(
            f"Chance (indices permuted among neurons that fire about as often) is at most {max(chance):.1%} in all of "
            f"them; {silent:,} of {pairs:,} pairs of neurons are left out because one is silent."
        )
    return found


def _verdicts(points: Sequence[MatchPoint], topk: str, dense: str) -> list[str]:
    """Whether the TopK model keeps its indices better than the dense one, or not."""
    found = []
    for comparison, words in (
        ("next checkpoint", "Between the last two checkpoints"), ("next layer", "From one layer to the next"),
    ):  # fmt: skip
        pair = []
        for label in (topk, dense):
            mine = [
                p for p in points
                if p.series == label and p.group == "body" and p.comparison == comparison and p.step is not None and p.n
            ]  # fmt: skip
            pair += mine[-1:]
        if len({(p.step, p.to_step) for p in pair}) != 1 or len(pair) < 2:  # further apart, fewer match
            continue
        a, b = pair
        verdict = "and the intervals overlap"
        if a.low > b.high:
            verdict = "so it keeps its indices better"
        elif a.high < b.low:
            verdict = "so it does not keep its indices better, but worse"
        found.append(
            f"{words} {a.rate:.1%} of the neurons of {topk} match their own index ({a.low:.1%} to {a.high:.1%}), of "
            f"{dense} {b.rate:.1%} ({b.low:.1%} to {b.high:.1%}), {verdict}."
        )
    return found


def _told(point: MatchPoint) -> str:
    interval = f"{point.low:.1%} to {point.high:.1%}"
    return f"{point.rate:.1%} ({interval}; own cosine {point.cosine:.3f}, nearest other {point.rival:.3f})"


def _curve(axes: Any, points: Sequence[MatchPoint], look: SeriesLook, label: str | None, x: Sequence[float]) -> None:
    if not points:
        return
    style = look.style()
    rate, cosine = axes
    rate.fill_between(
        x, [p.low for p in points], [p.high for p in points], color=style["color"], alpha=0.12, linewidth=0
    )  # fmt: skip
    rate.plot(x, [p.rate for p in points], label=plain(label) if label else None, **style)
    rate.plot(x, [p.chance for p in points], color=style["color"], linewidth=0.9, linestyle=(0, (1, 2)))
    cosine.plot(x, [p.cosine for p in points], **style)


def _finish(figure: Any, axes: Any, points: Sequence[MatchPoint], note: str) -> None:
    axes[0, 0].set_ylabel("neurons whose nearest\nprofile is their own")
    axes[0, 0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[0, 0].set_ylim(-0.03, 1.04)
    axes[1, 0].set_ylabel("mean cosine with\nthe own index")
    n = max((p.n for p in points), default=0)
    title = (
        f"{n:,} neurons at most per point; bands: 95 % over neurons; thin dotted: chance within groups of equal "
        f"firing frequency\n{note}"
    ).rstrip()
    longest = max((len(label) for label in axes[0, 0].get_legend_handles_labels()[1]), default=0)
    legend_below(figure, axes[0], 1 if longest > 34 else 3, title)
