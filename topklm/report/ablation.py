"""Ablation as figures, tables and sentences: the loss without a neuron, beside controls and beside its estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from topklm.report.figure import COLOURS, MARKERS, framed, house_style, legend_below, plain
from topklm.report.steering import Estimate
from topklm.report.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHERE = {
    "overall": "all windows",
    "windows": "windows of its top contexts",
    "at": "after its top tokens",
}
"""Where an effect is measured: over everything, over the windows that hold the neuron's top contexts, and at the
predictions made at these contexts alone."""
WORDS = {"zero": "removed, place empty", "refill": "removed, next in rank enters", "mean": "set to its mean"}


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """One neuron. Effects are changes of the mean loss in nats a token."""

    neuron: str
    """LAYER:INDEX, from 0."""
    kind: str
    """topk or dense: its layer."""
    density: float
    """Share of the bundle's tokens in which it fired."""
    contexts: int
    """Top contexts that were measured."""
    effects: Mapping[str, Mapping[str, Estimate]]
    """By variant and `WHERE`."""
    controls: Mapping[str, Mapping[str, Sequence[float]]]
    """The same of each control, its own top contexts."""
    control_neurons: Sequence[str]
    attribution: float
    """Gradient times activation: the estimate of zero over all windows."""
    attribution_mean: float
    """The same for its mean."""
    fired: int
    """Tokens of the windows in which it fired."""
    survival: float
    """Mean share of it that reaches the end by itself, over these."""
    scale: float
    """Mean of what reaches the end over the root mean square of the last stream."""
    promoted: Sequence[tuple[str, float]]
    """Token pieces and their mean direct logit effect in nats, the largest first."""
    suppressed: Sequence[tuple[str, float]]

    def above(self, variant: str, where: str) -> tuple[int, int]:
        """(controls with a smaller effect, controls)."""
        others = [x for x in self.controls[variant][where] if math.isfinite(x)]
        return sum(x < self.effects[variant][where].value for x in others), len(others)

    def record(self) -> dict[str, Any]:
        """For `result.json`."""
        return {
            "neuron": self.neuron, "kind": self.kind, "density": self.density, "contexts": self.contexts,
            "effects": {v: {w: list(e) for w, e in by.items()} for v, by in self.effects.items()},
            "controls": {v: {w: list(e) for w, e in by.items()} for v, by in self.controls.items()},
            "control_neurons": list(self.control_neurons), "attribution": self.attribution,
            "attribution_mean": self.attribution_mean, "fired": self.fired, "survival": self.survival,
            "scale": self.scale, "promoted": list(self.promoted), "suppressed": list(self.suppressed),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Compared:
    """An estimate and a measurement over the same windows, in nats a token."""

    neuron: str
    layer: int
    variant: str
    is_target: bool
    """Else a control."""
    estimate: float
    effect: float


def findings(rows: Sequence[Ablated], compared: Sequence[Compared], loss: float) -> list[str]:
    """What was found, a sentence each."""
    said = []
    for variant in _variants(rows):
        mine = [row for row in rows if variant in row.effects]
        certain = [row for row in mine if _excludes_zero(row.effects[variant]["overall"])]
        harmful = sum(row.effects[variant]["overall"].value > 0 for row in certain)
        values = [row.effects[variant]["overall"].value for row in mine]
        told = (
            f"{_many(len(mine), 'neuron')} {WORDS[variant]}: the loss ({loss:.4f} nats a token) changes by a median of "
            f"{_signed(float(np.median(values)))} nats a token, at most {_signed(max(values))}; the interval excludes "
            f"0 for {len(certain)}, of which {harmful} raise the loss"
        )
        leads = []
        for where in ("overall", "at"):
            places = [(k, n) for k, n in (row.above(variant, where) for row in mine) if n]
            if places:
                share, p = _lead(places)
                leads.append(f"{share:.0%} of their controls' ({WHERE[where]}; p = {p:.2g})")
        if leads:
            told += f"; the effect is above {' and '.join(leads)}, where 50 % is what neurons like their controls have"
        said.append(f"{told}.")
    for variant in ("zero", "mean"):
        pairs = [(pair.estimate, pair.effect) for pair in compared if pair.variant == variant]
        if len(pairs) >= 3:
            estimate, effect = np.array(pairs).T
            agree = int((np.sign(estimate) == np.sign(effect)).sum())
            said.append(
                f"Gradient times activation orders {len(pairs)} neurons and controls ({WORDS[variant]}) as their "
                f"measured effects do with a rank correlation of {_spearman(estimate, effect):.2f}; signs agree for "
                f"{agree}, and the measured effect is {_slope(estimate, effect):.2f} times the estimate (least squares "
                "through 0)."
            )
    lost = [row.survival for row in rows if math.isfinite(row.survival)]
    if lost:
        said.append(
            f"Of what the neurons write, a median of {np.median(lost):.1%} ({min(lost):.1%} ... {max(lost):.1%}) "
            "reaches the end in their own coordinate."
        )
    return said


def caveats(rows: Sequence[Ablated]) -> list[str]:
    """What the figures do not say."""
    said = [
        "Intervals are over windows, which are taken as independent; neighbouring windows of one document are not. "
        "Neurons are taken as independent, too, though they share controls, and one index in several layers is much "
        "the same coordinate; nothing is corrected for their number.",
        "Top contexts were chosen by the activation, each neuron's own; in a token where it is silent its removal "
        "changes nothing there, but later tokens may read earlier ones.",
    ]
    if any(row.kind == "dense" for row in rows):
        said.append(
            "In a dense layer a neuron counts as firing where its value is above 0, about half of the tokens for each: "
            "equal density means little there, and 0 is no state that it is in when it is silent; its mean is."
        )
    return said


def effects_tables(rows: Sequence[Ablated], level: float) -> dict[str, Table]:
    """By `WHERE`, a row for each neuron and variant."""
    columns = [
        Column("neuron", "neuron"),
        Column("kind", "layer"),
        Column("density", "density", "{:.2%}"),
        Column("variant", "variant"),
        Column("effect", "change of the loss", "{:+.5f}"),
        Column("low", "from", "{:+.5f}"),
        Column("high", "to", "{:+.5f}"),
        Column("controls", "controls' median", "{:+.5f}"),
        Column("above", "above"),
    ]
    estimate = Column("estimate", "gradient x activation", "{:+.5f}")
    note = (
        f"Nats a token, when the neuron is changed at every position, with {level:.0%} intervals over windows; "
        f"“above”: how many controls have a smaller effect. {'; '.join(f'{v}: {words}' for v, words in WORDS.items())}."
    )
    tables = {}
    for where, title in WHERE.items():
        made = [_cells(row, variant, where) for row in rows for variant in row.effects]
        shown = [*columns, estimate] if where == "overall" else columns
        tables[where] = Table(f"Loss without a neuron, {title}", note, shown, made)
    return tables


def _cells(row: Ablated, variant: str, where: str) -> dict[str, Any]:
    effect = row.effects[variant][where]
    others = [x for x in row.controls[variant][where] if math.isfinite(x)]
    k, n = row.above(variant, where)
    return {
        "neuron": row.neuron, "kind": row.kind, "density": row.density, "variant": variant, "effect": effect.value,
        "low": effect.low, "high": effect.high, "controls": float(np.median(others)) if others else None,
        "above": f"{k} of {n}" if n else None,
        "estimate": {"zero": row.attribution, "mean": row.attribution_mean}.get(variant),
    }  # fmt: skip


def logits_table(rows: Sequence[Ablated]) -> Table:
    """What each neuron writes to the logits by itself."""
    columns = [
        Column("neuron", "neuron"),
        Column("fired", "tokens it fired in", "{:,}"),
        Column("survival", "reaches the end", "{:.1%}"),
        Column("scale", "mean value there / rms", "{:.3f}"),
        Column("promoted", "promotes (nats)"),
        Column("suppressed", "suppresses (nats)"),
    ]
    made = [
        {"neuron": row.neuron, "fired": row.fired, "survival": row.survival, "scale": row.scale,
         "promoted": [f"{piece} {value:+.2f}" for piece, value in row.promoted],
         "suppressed": [f"{piece} {value:+.2f}" for piece, value in row.suppressed]}
        for row in rows
    ]  # fmt: skip
    note = (
        "Direct effect: the neuron's own coordinate, as far as later layers keep it, through the final norm and the "
        "unembedding; the mean over the tokens in which it fired, and over tokens in which it does not reach the end 0."
    )
    return Table("Direct logit effect", note, columns, made)


def attribution_table(compared: Sequence[Compared]) -> Table:
    """Estimates beside measurements."""
    columns = [
        Column("neuron", "neuron"),
        Column("role", "role"),
        Column("variant", "variant"),
        Column("estimate", "gradient x activation", "{:+.6f}"),
        Column("effect", "measured", "{:+.6f}"),
    ]
    rows = [
        {"neuron": c.neuron, "role": "neuron" if c.is_target else "control", "variant": c.variant,
         "estimate": c.estimate, "effect": c.effect}
        for c in compared
    ]  # fmt: skip
    return Table("Gradient times activation against removal", "Nats a token over all windows.", columns, rows)


def strongest_table(strongest: Sequence[tuple[str, float, float]], n: int) -> Table:
    """The neurons of all layers with the largest estimates."""
    columns = [
        Column("neuron", "neuron"),
        Column("estimate", "gradient x activation", "{:+.5f}"),
        Column("density", "density", "{:.2%}"),
    ]
    rows = [{"neuron": name, "estimate": estimate, "density": density} for name, estimate, density in strongest]
    note = (
        f"The {n} largest, of either sign, of all neurons of all layers: first-order estimates of the change of the "
        "loss by removal, nats a token. They may have the wrong sign even so: measure the ones that you speak of."
    )
    return Table("Largest estimates", note, columns, rows)


def draw_effects(rows: Sequence[Ablated], variants: Sequence[str], lines: Sequence[str]) -> Figure:
    """A line for each neuron, a panel for each place; variants by colour and marker, controls small and grey."""
    with house_style():
        figure = framed("Loss without a neuron", lines, 1.0 + 0.42 * len(rows), 11.0)
        axes = figure.subplots(1, len(WHERE), sharey=True, squeeze=False)[0]
        shift = {v: 0.26 * (i - (len(variants) - 1) / 2) for i, v in enumerate(variants)}
        for axis, (where, title) in zip(axes, WHERE.items(), strict=True):
            for variant in variants:
                i = list(WORDS).index(variant)  # one look for each, whichever are shown
                y = [n + shift[variant] for n, row in enumerate(rows) if variant in row.effects]
                found = [row.effects[variant][where] for row in rows if variant in row.effects]
                others = [
                    (x, n + shift[variant])
                    for n, row in enumerate(rows)
                    for x in row.controls.get(variant, {}).get(where, ())
                ]
                if others:
                    axis.plot(*zip(*others, strict=True), "|", color="#999999", markersize=6, zorder=1)
                error = np.array([(e.value - e.low, e.high - e.value) for e in found]).T.reshape(2, -1)
                axis.errorbar(
                    [e.value for e in found], y, xerr=np.maximum(error, 0), fmt=MARKERS[i], color=COLOURS[i],
                    markersize=4.5, linewidth=1.2, label=WORDS[variant] if axis is axes[0] else None, zorder=2,
                )  # fmt: skip
            axis.axvline(0, color="#666666", linewidth=0.8, zorder=0)
            axis.set_title(title)
            axis.set_xlabel("change of the loss (nats a token)")
        axes[0].plot([], [], "|", color="#999999", markersize=6, label="controls of equal density")
        axes[0].set_yticks(range(len(rows)), [plain(f"{row.neuron} ({row.density:.1%})") for row in rows])
        axes[0].set_ylim(len(rows) - 0.5, -0.5)
        axes[0].set_ylabel("neuron (density)")
        legend_below(figure, [axes[0]], 4)
    return figure


def draw_attribution(compared: Sequence[Compared], lines: Sequence[str]) -> Figure:
    """Estimate against measurement, a panel for each variant, layers by colour and marker."""
    variants = [variant for variant in ("zero", "mean") if any(c.variant == variant for c in compared)]
    layers = sorted({c.layer for c in compared})
    with house_style():
        figure = framed("Gradient times activation against removal", lines, 4.2, 9.0)
        axes = figure.subplots(1, len(variants), squeeze=False)[0]
        for axis, variant in zip(axes, variants, strict=True):
            mine = [c for c in compared if c.variant == variant]
            for i, layer in enumerate(layers):
                for is_target, filled in ((True, True), (False, False)):
                    points = [(c.estimate, c.effect) for c in mine if c.layer == layer and c.is_target is is_target]
                    colour = COLOURS[i % len(COLOURS)]
                    if points:
                        axis.plot(
                            *zip(*points, strict=True), MARKERS[i % len(MARKERS)], color=colour, markersize=5,
                            fillstyle="full" if filled else "none", zorder=3 if filled else 2,
                        )  # fmt: skip
            ends = [f(getattr(c, name) for c in mine) for f in (min, max) for name in ("estimate", "effect")]
            axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#666666", linewidth=0.8, zorder=1)
            axis.set_title(WORDS[variant])
            axis.set_xlabel("gradient x activation (nats a token)")
            axis.set_ylabel("measured (nats a token)")
        for i, layer in enumerate(layers):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": ""}
            axes[0].plot([], [], label=f"layer {layer}", **style)
        axes[0].plot([], [], "o", color="#444444", fillstyle="none", label="open: controls")
        axes[0].plot([], [], color="#666666", linewidth=0.8, label="equal")
        legend_below(figure, [axes[0]], 6)
    return figure


def _variants(rows: Sequence[Ablated]) -> list[str]:
    return [variant for variant in WORDS if any(variant in row.effects for row in rows)]


def _excludes_zero(estimate: Estimate) -> bool:
    return estimate.low > 0 or estimate.high < 0


def _lead(places: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """(mean over neurons of the share of controls below each, how probable as much or more is).

    A neuron like its n controls is above 0, 1, ... n of them with equal probability; neurons are taken as independent,
    and ties count as not above. 20,000 draws, of which the found one is taken as another: p is never 0.
    """
    share = float(np.mean([k / n for k, n in places]))
    rng = np.random.default_rng(0)
    drawn = np.mean([rng.integers(0, n + 1, 20_000) / n for _, n in places], axis=0)
    return share, float((drawn >= share - 1e-9).sum() + 1) / (len(drawn) + 1)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks, equal values with their mean rank; NaN where one does not vary."""
    x, y = (np.array([(np.mean(each < value) + np.mean(each <= value)) / 2 for value in each]) for each in (a, b))
    if x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _slope(estimate: np.ndarray, effect: np.ndarray) -> float:
    below = float((estimate**2).sum())
    return float((estimate * effect).sum() / below) if below else math.nan


def _signed(value: float) -> str:
    return f"{value:+.5f}"


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"
