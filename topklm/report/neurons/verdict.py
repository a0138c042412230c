"""What the comparison shows, in a sentence: is the TopK model more selective than its dense twin, reading apart?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import newest

INDIFFERENT = {"backend", "loss_chunk", "max_seqlen"}
"""Settings of a model that leave what it computes as it is."""
Z = 1.96


@dataclass(frozen=True)
class Gap:
    """Difference of mean token entropy over some layers, first minus second."""

    first: float
    """Mean of the layers' means, nats."""
    second: float
    """The same of the other."""
    error: float
    """Standard error of the difference over neurons, taken as independent, nats."""
    neurons: int
    """Neurons of both that have an entropy."""

    @property
    def difference(self) -> float:
        """Nats; below 0: the first responds to fewer tokens."""
        return self.first - self.second

    @property
    def text(self) -> str:
        """With its 95 % interval over neurons."""
        return f"{self.difference:+.2f} ± {Z * self.error:.2f} nats"


def gap(a: Measured, b: Measured, layers: Sequence[int]) -> Gap:
    """The difference over some layers, each layer with the same weight: the standard error is
    sqrt(sum over layers of (s_a² / n_a + s_b² / n_b)) / L, s² the variance over the n neurons with an entropy."""
    means: tuple[list[float], list[float]] = ([], [])
    variance, neurons = 0.0, 0
    for layer in layers:
        for each, into in ((a, means[0]), (b, means[1])):
            values = each.of(layer, "token_entropy")
            values = values[values == values]
            into.append(float(values.mean()) if len(values) else math.nan)
            variance += float(values.var(ddof=1)) / len(values) if len(values) > 1 else math.nan
            neurons += len(values)
    n = len(layers)
    first, second = (sum(each) / n if n else math.nan for each in means)
    return Gap(first, second, math.sqrt(variance) / n if n else math.nan, neurons)


def verdicts(measured: Sequence[Measured]) -> list[str]:
    """One statement for each TopK model, or what is missing for it. Empty without a TopK model."""
    shown = newest(measured)
    models = [each for each in shown if each.is_topk and not each.is_control]
    return [_verdict(each, shown, measured) for each in models]


def twins(topk: Measured, shown: Sequence[Measured], cut: bool, initial: bool = False) -> list[Measured]:
    """Dense models of the same shape at the same step: as they are, or read through the TopK model's own cut."""
    return [
        each for each in shown
        if not each.is_topk and each.is_initial == initial and _shape(each) == _shape(topk)
        and (initial or each.step == topk.step) and (each.cut is not None) == cut
        and (each.cut is None or (each.cut["k"], each.cut.get("relu", True)) == _own_cut(topk))
    ]  # fmt: skip


def _own_cut(topk: Measured) -> tuple[int, bool] | None:
    """(k, whether with ReLU) of the cut that the model makes; None if `read_topk` cannot make the same."""
    section = topk.bundle.meta.model.topk or {}
    if section.get("activation", "topk") != "topk" or section.get("k_per_layer"):
        return None
    return int(section.get("k") or 0), section.get("anneal_form") != "identity"


def _verdict(topk: Measured, shown: Sequence[Measured], measured: Sequence[Measured]) -> str:
    if "topk" not in topk.bundle.meta.layers.values():
        return f"{topk.name} is still annealing (alpha {topk.alpha:g}): nothing can be said of it as a TopK model yet."
    if (own := _own_cut(topk)) is None:
        section = topk.bundle.meta.model.topk or {}
        how = "a k_per_layer" if section.get("k_per_layer") else f"the activation {section['activation']}"
        return (
            f"Whether {topk.name} is more selective than its dense twin cannot be told: it has {how}, a dense model "
            "can be read through one top-k only, so that the reading itself would be part of the difference."
        )
    k, relu = own
    found = twins(topk, shown, cut=True)
    if not found:
        return (
            f"Whether {topk.name} is more selective than its dense twin cannot be told from these bundles: the twin "
            f"read through the same {'ReLU and ' * relu}top-{k}, at the same step, is missing (python -m apps.collect "
            f"ckpt=DENSE_RUN 'read_topk={{k: {k}{', relu: false' * (not relu)}}}', then apps.entropy)."
        )
    return " ".join(_against(topk, twin, shown) for twin in found)


def _against(topk: Measured, twin: Measured, shown: Sequence[Measured]) -> str:
    if not (layers := topk_layers(topk, twin)):
        return f"{topk.name} and {twin.label} have no TopK layer in common."
    corrected = gap(topk, twin, layers)
    low, high = (corrected.difference + sign * Z * corrected.error for sign in (-1, 1))
    beyond, holds = _extrapolated(topk, twin, layers)
    twin_says = "than its dense twin"
    if high < 0 and holds:
        says = f"is more selective {twin_says}"
    elif high < 0:
        says = f"looks more selective {twin_says} on so few tokens, but is not by the corrected measure"
    else:
        says = f"is less selective, not more, {twin_says}" if low > 0 else f"is not more selective {twin_says}"
    span = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    text = (
        f"Read alike, {topk.name} {says}: in its TopK layers ({span}) the mean token entropy at "
        f"{topk.bundle.n_tokens:,} tokens is {corrected.first:.2f} nats, that of {twin.label} "
        f"{corrected.second:.2f}, a difference of {corrected.text} (95 % interval over {corrected.neurons:,} neurons, "
        f"which in one seed are not independent runs: it says nothing about other seeds; types seen at least "
        f"{topk.min_count} times). {beyond}"
    )
    for bare in (each for each in twins(topk, shown, cut=False) if each.run == twin.run):
        text += f" Without the correction it is {gap(topk, bare, layers).text}: the reading alone makes the rest."
    for own in (each for each in shown if each.run == topk.run and each.is_initial):
        before = gap(topk, own, layers)
        text += f" Against {own.label}, training has changed it by {before.text}."
    return text


def extrapolated_gap(topk: Measured, twin: Measured, layers: Sequence[int]) -> tuple[float, list[int]]:
    """(the difference of the means extrapolated over corpus size, the layers of which both have one); NaN for none."""
    a, b = (
        {row["layer"]: row["limit"] for row in each.entropy["convergence"] if row["limit"] is not None}
        for each in (topk, twin)
    )
    both = [layer for layer in layers if layer in a and layer in b]
    return (sum(a[layer] - b[layer] for layer in both) / len(both) if both else math.nan), both


def _extrapolated(topk: Measured, twin: Measured, layers: Sequence[int]) -> tuple[str, bool]:
    """(what the difference comes to on more tokens, as far as both begin to converge; whether it stays below 0 there).

    Without limits nothing is known against it: True.
    """
    difference, both = extrapolated_gap(topk, twin, layers)
    if not both:
        return "It cannot be extrapolated over corpus size from these bundles: more tokens may change it.", True
    where = "" if both == list(layers) else f" (layers {', '.join(map(str, both))}: the others do not converge yet)"
    return f"Extrapolated over corpus size{where} the difference is {difference:+.2f} nats.", difference < 0


def topk_layers(topk: Measured, twin: Measured) -> list[int]:
    """The layers that both are read as TopK in."""
    a, b = (each.bundle.meta.layers for each in (topk, twin))
    return [layer for layer in topk.bundle.layers if a[str(layer)] == b.get(str(layer)) == "topk"]


def _shape(each: Measured) -> dict[str, object]:
    """Of equal shapes are models that begin from the same weights: the seed is part of it."""
    return {key: value for key, value in each.bundle.meta.model.model.items() if key not in INDIFFERENT}
