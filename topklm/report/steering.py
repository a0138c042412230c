"""Steering as figures, tables and sentences: concept rate and perplexity against the dose, beside the controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from topklm.report.figure import COLOURS, MARKERS, framed, house_style, legend_below, plain
from topklm.report.result import Drawing
from topklm.report.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = 0.05
"""Below it, or at it, a difference is called one."""


Counted = Literal["reads", "writes"]
"""reads: tokens that the neuron responds to; writes: tokens whose logits it raises most."""


class Estimate(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Dose:
    """One neuron at one offset."""

    offset: float
    """What was added to the pre-activation."""
    multiple: float | None
    """The same in the neuron's own unit, a percentile of its activation; None if that is not above 0."""
    n_tokens: int
    """Generated tokens."""
    rate: Estimate
    """Share of them in the concept's set."""
    gain: Estimate
    """rate minus that of the unsteered texts of the same random numbers."""
    lead: Estimate
    """rate minus the mean of the controls'."""
    perplexity: Estimate
    """Under the unsteered model."""
    price: Estimate
    """perplexity divided by that of the unsteered texts of the same random numbers."""
    repeated: float
    """Share of the bigrams that came before in their text."""
    control_rates: Sequence[float]
    """Share of the same set in the texts of each control."""
    control_perplexities: Sequence[float]
    control_repeated: float
    """Mean over the controls."""
    p: float
    """Of this dose among the controls, adjusted for the number of doses."""


@dataclass(frozen=True, kw_only=True)
class DoseCurve:
    """One steered neuron against its controls."""

    neuron: str
    """LAYER:INDEX, from 0."""
    counted: Counted
    """Which of its sets of tokens."""
    kind: str
    """topk or dense: its layer."""
    density: float
    """Share of the bundle's tokens in which it fired."""
    unit: str
    """Its percentile in words; empty where it has none above 0."""
    concept: Sequence[str]
    """The first tokens of its set, as text."""
    n_concept: int
    """Token types in the set."""
    corpus_rate: float
    """Their share of the bundle's tokens."""
    n_samples: int
    """Texts of each cell."""
    rate: Estimate
    """Of the unsteered texts."""
    perplexity: Estimate
    """Of the unsteered texts."""
    repeated: float
    """Of the unsteered texts."""
    n_tokens: int
    """Of the unsteered texts."""
    controls: Sequence[str]
    """LAYER:INDEX of each."""
    control_densities: Sequence[float]
    same_dose: bool
    """Whether controls got the same offsets, or the same multiples of their own percentiles."""
    doses: Sequence[Dose]
    """Ascending."""
    p: float
    """Over all doses: how often one of the controls would stand out as much."""


def verdict(curve: DoseCurve) -> str:
    """Whether a neuron beats its controls, at what dose, at what price, in one sentence with its limits.

    The figures are those of the smallest dose at which it does, or of the one where it comes furthest.
    """
    n = len(curve.controls)
    pieces = ", ".join(f"“{one_line(piece).strip()}”" for piece in curve.concept[:4])
    told = f"{curve.neuron} ({curve.counted} {pieces})"
    if n < 1 / P - 1:
        test = f"{_many(n, 'control')} cannot decide it: p is at least {1 / (n + 1):.2f}"
    else:
        test = f"p = {curve.p:.2g} over {_many(len(curve.doses), 'dose')}, {_many(n, 'control')}"
    found = [dose for dose in curve.doses if stands_out(dose)]
    shown = min(found, key=lambda dose: abs(dose.offset)) if found else max(curve.doses, key=_wanted)
    where = f" at {', '.join(map(_dose, found))}" if found else ""
    mean = f"{_mean(shown.control_rates):.2%}"
    best = "" if found else f" and {_most(shown.control_rates):.2%} for the best of them, {best_control(curve, shown)},"
    price = _geometric(shown.control_perplexities) / curve.perplexity.value
    return (
        f"{told} {'beats' if found else 'does not beat'} its controls{where} ({test}): at {_dose(shown)} "
        f"{_percent(shown.rate)} of the generated tokens are among the {_many(curve.n_concept, 'token type')} that it "
        f"{curve.counted}, against {mean} for its controls{best} and {curve.rate.value:.2%} unsteered, at "
        f"{shown.price.value:.2f} ({shown.price.low:.2f} ... {shown.price.high:.2f}) times the unsteered perplexity "
        f"(controls: {price:.2f})."
    )


def stands_out(dose: Dose) -> bool:
    """Whether the neuron beats its controls at a dose: p is small enough, and the interval over texts of its distance
    from their mean excludes 0 on the side that the dose should take it to (one token more is not a difference)."""
    return dose.p <= P and (dose.lead.low > 0 if dose.offset > 0 else dose.lead.high < 0)


def best_control(curve: DoseCurve, dose: Dose) -> str:
    """The control with the highest rate at a dose, LAYER:INDEX."""
    return max(zip(dose.control_rates, curve.controls, strict=True), key=lambda pair: (pair[0] == pair[0], pair[0]))[1]


def summaries(curves: Sequence[DoseCurve]) -> list[str]:
    """How many of several neurons beat their controls in what they read and in what they write, and how many would by
    chance; nothing for one neuron."""
    said = []
    for counted in dict.fromkeys(curve.counted for curve in curves):
        tested = [curve for curve in curves if curve.counted == counted and len(curve.controls) >= 1 / P - 1]
        beat = sum(any(map(stands_out, curve.doses)) for curve in tested)
        if len(tested) > 1:
            said.append(
                f"In the tokens that a neuron {counted}, {beat} of {len(tested)} neurons beat their controls at "
                f"p ≤ {P:g}; at most about {P * len(tested):.2g} would if steering had no effect of its own."
            )
    return said


def caveats(curves: Sequence[DoseCurve]) -> list[str]:
    """What the figures do not say."""
    said = [
        "Intervals are over the random numbers of texts from one prompt, not over prompts; p-values are over which "
        "neuron is steered, given its controls' layer and density, and cannot be below 1 / (1 + controls).",
        "A low perplexity is not fluency where text repeats itself: the share of repeated bigrams stands beside it.",
    ]
    if any(curve.kind == "dense" for curve in curves):
        said.append(
            "In a dense layer a neuron counts as firing where its value is above 0, about half of the tokens for each: "
            "equal density means little there."
        )
    return said


def dose_table(curves: Sequence[DoseCurve]) -> Table:
    """A row for each neuron and dose, the unsteered texts first."""
    rows = []
    for curve in curves:
        base: dict[str, Any] = {"neuron": curve.neuron, "counted": curve.counted, "samples": curve.n_samples}
        rows.append(
            base
            | {"dose": "unsteered", "offset": 0.0, "tokens": curve.n_tokens, "repeated": curve.repeated}
            | _spread("rate", curve.rate)
            | _spread("perplexity", curve.perplexity)
        )
        for dose in curve.doses:
            rows.append(
                base
                | {"dose": _dose(dose), "offset": dose.offset, "multiple": dose.multiple, "tokens": dose.n_tokens}
                | _spread("rate", dose.rate) | _spread("gain", dose.gain) | _spread("lead", dose.lead)
                | _spread("perplexity", dose.perplexity) | _spread("price", dose.price)
                | {
                    "repeated": dose.repeated, "controls": len(dose.control_rates), "p": dose.p,
                    "control_rate": _mean(dose.control_rates),
                    "control_rate_least": _least(dose.control_rates), "control_rate_most": _most(dose.control_rates),
                    "best_control": best_control(curve, dose),
                    "control_perplexity": _geometric(dose.control_perplexities),
                    "control_repeated": dose.control_repeated,
                }
            )  # fmt: skip
    columns = [
        Column("neuron", "neuron"), Column("counted", "tokens it"), Column("dose", "dose"),
        Column("offset", "offset", "{:+.3g}"),
        Column("rate", "concept rate", "{:.2%}"), Column("rate_low", "from", "{:.2%}"),
        Column("rate_high", "to", "{:.2%}"),
        Column("control_rate", "controls, mean", "{:.2%}"), Column("control_rate_least", "least", "{:.2%}"),
        Column("control_rate_most", "most", "{:.2%}"), Column("best_control", "of"),
        Column("lead", "above controls", "{:+.2%}"), Column("lead_low", "from", "{:+.2%}"),
        Column("lead_high", "to", "{:+.2%}"), Column("p", "p (adjusted)", "{:.3f}"),
        Column("perplexity", "perplexity", "{:.1f}"), Column("perplexity_low", "from", "{:.1f}"),
        Column("perplexity_high", "to", "{:.1f}"), Column("price", "times unsteered", "{:.2f}"),
        Column("control_perplexity", "controls' perplexity", "{:.1f}"),
        Column("repeated", "repeated bigrams", "{:.0%}"), Column("control_repeated", "controls'", "{:.0%}"),
        Column("samples", "texts"), Column("tokens", "tokens", "{:,}"), Column("controls", "controls"),
    ]  # fmt: skip
    note = (
        "Concept rate: share of the generated tokens that are among those that the steered neuron reads (its top-token "
        "set) or writes, the same tokens for its controls. Perplexity under the unsteered model, of controls the "
        "geometric mean. Intervals: bootstrap over texts, paired by random numbers."
    )
    return Table("Dose-response", note, columns, rows)


def concept_table(curves: Sequence[DoseCurve]) -> Table:
    """What each neuron is taken to stand for, and what it is compared with."""
    rows = [
        {
            "neuron": curve.neuron, "counted": curve.counted, "kind": curve.kind,
            "density": curve.density, "unit": curve.unit or "-", "types": curve.n_concept,
            "corpus": curve.corpus_rate, "tokens": list(curve.concept),
            "controls": len(curve.controls),
            "least": min(curve.control_densities), "most": max(curve.control_densities),
        }
        for curve in curves
    ]  # fmt: skip
    columns = [
        Column("neuron", "neuron"), Column("counted", "tokens it"), Column("kind", "layer is"),
        Column("density", "density", "{:.2%}"),
        Column("unit", "percentile of its activation"), Column("types", "token types in its set"),
        Column("corpus", "their share of the bundle's text", "{:.2%}"), Column("controls", "controls"),
        Column("least", "least density", "{:.2%}"), Column("most", "most", "{:.2%}"),
        Column("tokens", "the first of the set"),
    ]  # fmt: skip
    return Table(
        "Steered neurons",
        "Tokens that it reads by falling mean activation, tokens that it writes by falling effect on their logits.",
        columns,
        rows,
    )


def text_table(texts: Sequence[Mapping[str, Any]], prompt: str) -> Table:
    """Table 2 of the paper: a row a text, with `neuron`, `dose`, `sample` and `text`."""
    columns = [Column("neuron", "neuron"), Column("dose", "dose"), Column("sample", "sample"), Column("text", "text")]
    rows = [dict(row) | {"text": one_line(str(row["text"]))} for row in texts]
    note = f"What follows “{one_line(prompt)}”; texts of one number have the same random numbers. ⏎: a new line."
    return Table("Texts", note, columns, rows)


def dose_figure(curve: DoseCurve, provenance: Sequence[str]) -> Drawing:
    """Concept rate above, perplexity below, against the offset; controls as a band from the least to the most."""
    title = f"Steering {curve.neuron}, which {curve.counted} " + ", ".join(
        plain(f"“{one_line(piece).strip()}”") for piece in curve.concept[:6]
    )
    n = len(curve.controls)
    with house_style():
        figure = framed(title, provenance, 5.6)
        rate, perplexity = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        for axis, name, factor in ((rate, "rate", 100.0), (perplexity, "perplexity", 1.0)):
            _panel(axis, curve, name, factor, n)
        rate.set_ylabel(f"tokens that it {curve.counted}, %")
        rate.set_ylim(bottom=0)
        rate.axhline(100 * curve.corpus_rate, color="#888888", linestyle=":", linewidth=1.2, label="the bundle's text")
        perplexity.set_ylabel("perplexity under\nthe unsteered model")
        perplexity.set_yscale("log")
        _plain_ticks(perplexity)
        _dose_axis(rate, perplexity, curve)
        test = f"p = {curve.p:.2g} over {_many(len(curve.doses), 'dose')} against {_many(n, 'control')}"
        legend_below(figure, [rate], 3, f"{test}; filled markers: it beats them at the dose (p ≤ {P:g})")
    low, high = min(curve.control_densities), max(curve.control_densities)
    text = (
        f"{curve.n_samples} texts a point from one prompt; lines and bars: estimates with intervals over texts; grey: "
        f"{n} random neurons of the same layer (density {low:.2%} ... {high:.2%}, the "
        f"steered neuron's {curve.density:.2%}), steered with the same "
        f"{'offsets' if curve.same_dose else 'multiples of their own percentiles'}. Filled markers: p ≤ {P:g} against "
        "the controls, adjusted for the number of doses, and above their mean beyond the interval over texts."
    )  # fmt: skip
    return Drawing(title=f"Dose-response of what {curve.neuron} {curve.counted}", text=text, figure=figure)


def one_line(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("\r", "").replace("\n", " ⏎ ")


def _panel(axis: Axes, curve: DoseCurve, name: str, factor: float, n: int) -> None:
    x = [dose.offset for dose in curve.doses]
    own = [getattr(dose, name) for dose in curve.doses]
    others = [dose.control_rates if name == "rate" else dose.control_perplexities for dose in curve.doses]
    axis.fill_between(
        x, [factor * _least(each) for each in others], [factor * _most(each) for each in others],
        color="#888888", alpha=0.14, linewidth=0, label=f"{n} controls, least to most",
    )  # fmt: skip
    for i in range(n):
        label = "each control" if i == 0 else None
        axis.plot(x, [factor * each[i] for each in others], color="#888888", linewidth=0.6, alpha=0.7, label=label)
    middle = _mean if name == "rate" else _geometric
    axis.plot(
        x, [factor * middle(each) for each in others], color="#444444", linestyle="--", linewidth=1.5,
        label="their mean",
    )  # fmt: skip
    base: Estimate = getattr(curve, name)
    axis.axhspan(factor * base.low, factor * base.high, color=COLOURS[0], alpha=0.15, linewidth=0)
    axis.axhline(factor * base.value, color=COLOURS[0], linewidth=1.2, label="unsteered")
    axis.errorbar(
        x, [factor * e.value for e in own],
        yerr=[[factor * (e.value - e.low) for e in own], [factor * (e.high - e.value) for e in own]],
        color=COLOURS[1], linewidth=1.8, capsize=3, elinewidth=1.2, label=f"{curve.neuron} steered",
    )  # fmt: skip
    for dose, each in zip(curve.doses, own, strict=True):
        fill = COLOURS[1] if stands_out(dose) else "white"
        axis.plot(
            dose.offset, factor * each.value, MARKERS[0], color=COLOURS[1], markerfacecolor=fill, markersize=6, zorder=5
        )


def _dose_axis(rate: Axes, perplexity: Axes, curve: DoseCurve) -> None:
    """Doses that double lie evenly; above, the same in the neuron's own unit."""
    x = [dose.offset for dose in curve.doses]
    if len(x) > 2 and min(x) > 0 and max(x) / min(x) >= 8:
        rate.set_xscale("log", base=2)
    perplexity.set_xticks(x, [f"{each:+.3g}" for each in x])
    perplexity.minorticks_off()
    perplexity.set_xlabel("offset, added to the pre-activation at every position")
    known = [dose for dose in curve.doses if dose.multiple is not None]
    if known:
        top = rate.secondary_xaxis("top")
        top.set_xticks([dose.offset for dose in known], [f"{dose.multiple:.3g}x" for dose in known])
        top.minorticks_off()
        top.set_xlabel(f"in multiples of {curve.unit}", fontsize=9)
        top.spines["top"].set_visible(False)


def _plain_ticks(axis: Axes) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_locator(LogLocator(subs=()))


def _spread(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _dose(dose: Dose) -> str:
    return f"{dose.offset:+.3g}" + (f" ({dose.multiple:.3g}x)" if dose.multiple is not None else "")


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.2%} ({estimate.low:.2%} ... {estimate.high:.2%})"


def _wanted(dose: Dose) -> float:
    """How far it is from its controls in the direction that its sign should take it."""
    return math.copysign(1, dose.offset) * dose.lead.value if math.isfinite(dose.lead.value) else -math.inf


def _known(values: Sequence[float]) -> list[float]:
    """Those of cells with tokens: a model that ends at once has no rate."""
    return [value for value in values if math.isfinite(value)] or [math.nan]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(_known(values)) / len(_known(values))


def _geometric(values: Sequence[float]) -> float:
    """Geometric mean, of perplexities: one control that writes nonsense does not speak for all."""
    return math.exp(math.fsum(map(math.log, _known(values))) / len(_known(values)))


def _least(values: Sequence[float]) -> float:
    return min(_known(values))


def _most(values: Sequence[float]) -> float:
    return max(_known(values))


def _many(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
