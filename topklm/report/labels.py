"""Figures, tables and sentences about labels: which share of the neurons has a class, by layer and by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from topklm.bundles import NamedBundle
from topklm.report.figure import COLOURS, framed, house_style, legend_below, plain
from topklm.report.neurons.look import style_of
from topklm.report.result import Drawing
from topklm.report.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES_SHOWN = 14
"""Classes in the figure, those with most neurons over all models; the table has all."""
LAYER_COLUMNS = (
    Column("model", "model"),
    Column("layer", "layer"),
    Column("neurons", "neurons", "{:,}"),
    Column("silent", "silent", "{:,}"),
    Column("tested", "tested", "{:,}"),
    Column("significant", "with a class", "{:,}"),
    Column("share", "share of the tested", "{:.1%}"),
    Column("beyond", "by the other null", "{:,}"),
    Column("beyond_share", "share", "{:.1%}"),
)
NEURON_COLUMNS = (
    Column("neuron", "neuron"),
    Column("label", "class"),
    Column("q", "q", "{:.2g}"),
    Column("lift", "over-represented", "{:.1f}x"),
    Column("words", "its words of this class, strongest first"),
)
NULLS = {"words": "all words", "part_of_speech": "words of the same part of speech"}


@dataclass(frozen=True, kw_only=True)
class ClassedModel:
    """Which of one bundle's M neurons have a class of words, and which."""

    named: NamedBundle
    """The bundle."""
    layer: np.ndarray
    """int64 [M]"""
    silent: np.ndarray
    """bool [M]"""
    tested: np.ndarray
    """bool [M]"""
    significant: np.ndarray
    """bool [M]: at the false discovery rate, by the null that was asked for."""
    beyond: np.ndarray
    """bool [M]: by the other null."""
    number: np.ndarray
    """int64 [M] the nearest class, an index of `names`."""
    shuffled: np.ndarray
    """float64 [shuffles]: share of the tested neurons that are significant when classes are shuffled."""

    def share(self, which: np.ndarray) -> float:
        """Share of the tested neurons."""
        return float((which & self.tested).sum() / max(1, self.tested.sum()))


def class_statements(models: Sequence[ClassedModel], names: Sequence[str], null: str, fdr: float) -> list[str]:
    """A sentence a model: how many neurons have a class, by chance, and by the other null."""
    other = next(text for key, text in NULLS.items() if key != null)
    said = []
    for each in models:
        n, tested = int((each.significant & each.tested).sum()), int(each.tested.sum())
        found = np.bincount(each.number[each.significant & each.tested], minlength=len(names))
        most = [f"{names[i]} {found[i]:,}" for i in np.argsort(-found, kind="stable")[:3] if found[i]]
        shuffled = ""
        if len(each.shuffled):
            mean, top = float(np.nanmean(each.shuffled)), float(np.nanmax(each.shuffled))
            shuffled = f"; with classes shuffled {len(each.shuffled)} times {mean:.2%} on average, {top:.2%} at most"
        said.append(
            f"{each.named.label}: {n:,} of {tested:,} tested neurons ({each.share(each.significant):.1%}) prefer "
            f"words of a class over {NULLS[null]} (q <= {fdr:g}){shuffled}. Over {other} it is "
            f"{each.share(each.beyond):.1%}." + (f" Most often: {', '.join(most)}." if most else "")
        )
    return said


def layer_table(models: Sequence[ClassedModel], null: str) -> Table:
    """Share of each layer's neurons that have a class."""
    rows = []
    for each in models:
        for layer in np.unique(each.layer).tolist():
            here = each.layer == layer
            tested = int((each.tested & here).sum())
            n, beyond = (int((which & each.tested & here).sum()) for which in (each.significant, each.beyond))
            rows.append({
                "model": each.named.label, "layer": layer, "neurons": int(here.sum()),
                "silent": int((each.silent & here).sum()), "tested": tested, "significant": n,
                "share": n / tested if tested else None, "beyond": beyond,
                "beyond_share": beyond / tested if tested else None,
            })  # fmt: skip
    other = next(text for key, text in NULLS.items() if key != null)
    note = (
        f"Chance is {NULLS[null]}; the other null is {other}. Silent neurons and those with few words are not tested."
    )
    return Table("Neurons with a class, by layer", note, LAYER_COLUMNS, rows)


def class_table(models: Sequence[ClassedModel], names: Sequence[str], members: np.ndarray) -> Table:
    """Neurons by significant class, a column a model; `members` [C]: words of each class in the universe."""
    found = _by_class(models, names)
    columns = [Column("class", "class"), Column("words", "words", "{:,}")]
    columns += [Column(f"model{i}", each.named.label, "{:,}") for i, each in enumerate(models)]
    rows: list[dict[str, Any]] = [
        {"class": names[c], "words": int(members[c]), **{f"model{i}": int(found[i, c]) for i in range(len(models))}}
        for c in np.argsort(-found.sum(0), kind="stable").tolist() if found[:, c].any()
    ]  # fmt: skip
    return Table("Neurons by class", "Neurons whose nearest class is significant.", columns, rows)


def neuron_table(each: ClassedModel, rows: Sequence[Mapping[str, Any]], n: int = 30) -> Table:
    """The neurons with the smallest q; rows have the keys of `NEURON_COLUMNS`."""
    best = sorted(rows, key=lambda row: (row["q"], -row["lift"]))[:n]
    note = f"{each.named.label}: the smallest q first, then the most over-represented."
    return Table("Neurons with the clearest class", note, NEURON_COLUMNS, [dict(row) for row in best])


def class_drawings(models: Sequence[ClassedModel], names: Sequence[str], null: str, fdr: float) -> dict[str, Drawing]:
    """Share of neurons with a class by layer, and by class."""
    lines = [each.named.provenance() for each in models]
    tokens = models[0].named.bundle.n_tokens
    with house_style():
        depth = _depth(models, lines, null, fdr)
        classes = _classes(models, names, lines)
    basis = f"{tokens:,} tokens"
    return {
        "labels_depth": Drawing(
            title="Neurons that prefer a class of words, by depth", figure=depth,
            text=f"Share of each layer's tested neurons whose top words belong to one of WordNet's classes more often "
            f"than chance (q <= {fdr:g}); {basis}. Initial weights are the control.",
        ),
        "labels_classes": Drawing(
            title="Classes of words that neurons prefer", figure=classes,
            text=f"Share of all tested neurons by their significant class, the {CLASSES_SHOWN} most frequent; {basis}.",
        ),
    }  # fmt: skip


def _depth(models: Sequence[ClassedModel], lines: Sequence[str], null: str, fdr: float) -> Figure:
    figure = framed("Neurons that prefer a class of words, by depth", lines, 6.0)
    axes = figure.subplots(2, 1, sharex=True)
    every = [each.named for each in models]
    other = next(text for key, text in NULLS.items() if key != null)
    for axis, title, which in zip(axes, (NULLS[null], other), ("significant", "beyond"), strict=True):
        for each in models:
            layers = np.unique(each.layer)
            shares = [_percent(getattr(each, which), each.tested & (each.layer == layer)) for layer in layers]
            axis.plot(layers, shares, label=plain(each.named.label), **style_of(each.named, every), markersize=5)
        top = max(5.0, axis.get_ylim()[1])
        axis.set_ylim(-0.04 * top, 1.04 * top)  # markers at 0 whole
        axis.set_title(f"chance: {title}", fontsize=9)
        axis.set_ylabel("neurons with a class\n(% of the tested ones)")
    axes[-1].set_xticks(np.unique(np.concatenate([each.layer for each in models])))
    axes[-1].set_xlabel("layer, counted from 0")
    legend_below(figure, axes[:1], 2, f"nearest class of WordNet, false discovery rate q <= {fdr:g}")
    return figure


def _classes(models: Sequence[ClassedModel], names: Sequence[str], lines: Sequence[str]) -> Figure:
    found = _by_class(models, names)
    shown = [i for i in range(len(models)) if found[i].any()]
    order = [c for c in np.argsort(-found.sum(0), kind="stable")[:CLASSES_SHOWN] if found[:, c].any()]
    figure = framed("Classes of words that neurons prefer", lines, 1.2 + 0.1 * (len(shown) + 1) * max(4, len(order)))
    axis = figure.subplots()
    high = 0.8 / max(1, len(shown))
    for place, i in enumerate(shown):
        at = np.arange(len(order)) + (place - (len(shown) - 1) / 2) * high
        axis.barh(
            at, 100 * found[i, order] / max(1, models[i].tested.sum()), height=high, color=COLOURS[i % len(COLOURS)],
            label=plain(models[i].named.label), edgecolor="white", linewidth=0.4,
        )  # fmt: skip
    axis.set_yticks(np.arange(len(order)), [names[c] for c in order])
    axis.margins(y=0.02)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("neurons whose significant class it is (% of the tested ones)")
    if not order:
        axis.text(0.5, 0.5, "no neuron has a significant class", ha="center", va="center", transform=axis.transAxes)
    none = [models[i].named.label for i in range(len(models)) if i not in shown]
    legend_below(figure, [axis], 2, plain("no neuron of: " + "; ".join(none)) if none and shown else "")
    return figure


def _percent(which: np.ndarray, among: np.ndarray) -> float:
    return 100 * float((which & among).sum() / among.sum()) if among.any() else float("nan")


def _by_class(models: Sequence[ClassedModel], names: Sequence[str]) -> np.ndarray:
    """int64 [models, C]"""
    return np.array([np.bincount(m.number[m.significant & m.tested], minlength=len(names)) for m in models])
