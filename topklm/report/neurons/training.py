"""Entropies over the checkpoints of a run: its last TopK layer and its last dense layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from topklm.report.figure import COLOURS, MARKERS, framed, house_style, legend_below, plain
from topklm.report.neurons.look import basis
from topklm.report.neurons.read import Measured
from topklm.report.neurons.series import over_training, runs_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = (("token_entropy", "token entropy\n(nats)"), ("semantic_entropy", "semantic entropy\n(nats)"))
DASHES: dict[str, Any] = {"": "-", "own alpha": "-", "alpha 0": (0, (4, 2))}


def training_figure(measured: Sequence[Measured]) -> tuple[Figure, str] | None:
    """Mean token and semantic entropy over optimizer steps (the paper's Fig. 4); None without two checkpoints of a run.

    Left: the last TopK layer; right: the last layer of the dense tail; of a dense run the same layers. Solid: at each
    checkpoint's own alpha; dashed: at alpha 0. Bands: one standard deviation. Returns (figure, its provenance).
    """
    runs = [run for run in runs_of(measured) if over_training(measured, run)]
    if not runs:
        return None
    lines = [_provenance(name, bundles) for run in runs for name, bundles in over_training(measured, run)]
    picked = {run: _layers(run, measured) for run in runs}
    columns = [i for i in (0, 1) if any(layers[i] is not None for layers in picked.values())]
    with house_style():
        figure = framed("Entropy over training", lines, 6.2)
        axes = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
        for j, column in enumerate(columns):
            for run in runs:
                if (layer := picked[run][column]) is not None:
                    for axis, (name, _) in zip(axes[:, j], ROWS, strict=True):
                        _lines(axis, run, measured, layer, name, label=j == 0 or picked[run][columns[0]] is None)
            where = ", ".join(map(str, sorted({v for layers in picked.values() if (v := layers[column]) is not None})))
            axes[0, j].set_title(("last TopK layer", "last dense layer")[column] + f": layer {where}", fontsize=10)
        for axis, (_, title) in zip(axes[:, 0], ROWS, strict=True):
            axis.set_ylabel(title)
        ends = {each.anneal_steps for each in measured if each.run in runs and each.is_topk} - {0}
        _finish(figure, axes, measured, ends)
    return figure, "\n".join(lines)


def _layers(run: str, measured: Sequence[Measured]) -> tuple[int | None, int | None]:
    """(last TopK layer, last dense layer) of a run; a dense run is shown at the layers of a TopK run as deep as it."""
    mine = next(each for each in measured if each.run == run)
    n = mine.bundle.meta.model.n_layers
    model = mine if mine.is_topk else next(
        (each for each in measured if each.is_topk and each.bundle.meta.model.n_layers == n), mine
    )  # fmt: skip
    if not model.is_topk:
        return None, _there(mine, n - 1)
    return (_there(mine, model.tail - 1) if model.tail else None), (_there(mine, n - 1) if model.tail < n else None)


def _there(each: Measured, layer: int) -> int | None:
    return layer if layer in each.by_layer else None


def _lines(axis: Any, run: str, measured: Sequence[Measured], layer: int, column: str, label: bool) -> None:
    i = runs_of(measured).index(run)
    for name, bundles in over_training(measured, run):
        rows = [(each.step, each.by_layer[layer]) for each in bundles if layer in each.by_layer]
        steps = [step for step, _ in rows]
        means, sds = (
            [math.nan if (v := row[f"{column}_{what}"]) is None else v for _, row in rows] for what in ("mean", "sd")
        )
        colour = COLOURS[i % len(COLOURS)]
        if name != "alpha 0":
            low, high = ([m + sign * s for m, s in zip(means, sds, strict=True)] for sign in (-1, 1))
            axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.plot(
            steps, means, color=colour, linestyle=DASHES[name], marker=MARKERS[i % len(MARKERS)], markersize=4.5,
            label=plain(f"{bundles[0].name}{f', {name}' if name else ''}") if label else None,
        )  # fmt: skip


def _finish(figure: Any, axes: Any, measured: Sequence[Measured], ends: set[int]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for axis in axes.flat:
        for end in ends:
            axis.axvspan(0, end, color="#888888", alpha=0.13, linewidth=0, zorder=0)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in axes[-1]:
        axis.set_xlabel("optimizer steps")
    shaded = (
        "\nshaded: annealing, alpha > 0, where a line at the checkpoint's own alpha shows the schedule" if ends else ""
    )
    title = f"{basis(measured[0])}\nlines: mean over neurons; bands: one standard deviation{shaded}"
    longest = max(len(label) for axis in axes[0] for label in axis.get_legend_handles_labels()[1])
    legend_below(figure, axes[0], 1 if longest > 34 else 3, title)


def _provenance(name: str, bundles: Sequence[Measured]) -> str:
    first = bundles[0]
    steps = ", ".join(f"{each.step:,} ({_alpha(each)}{each.bundle.sha256[:12]})" for each in bundles)
    return (
        f"{first.name}{f', {name}' if name else ''}: {first.run}, {first.bundle.n_tokens:,} tokens, tokenizer "
        f"{first.bundle.meta.corpus.tokenizer_sha256[:12]}; steps (bundles) {steps}"
    )


def _alpha(each: Measured) -> str:
    return f"alpha {each.alpha:g}, " if each.alpha else ""
