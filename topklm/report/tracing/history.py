"""One dimension and one token over layers and checkpoints: figure, tables, sentences (the paper's Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from topklm.report.figure import framed, house_style, legend_below, plain
from topklm.report.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAIL, ANNEALING = "#D55E00", "#0072B2"


@dataclass(frozen=True, kw_only=True)
class History:
    """One dimension and one token in one series of C checkpoints with L layers."""

    series: str
    """Which model, read how."""
    steps: list[int]
    """[C], ascending."""
    alphas: list[float | None]
    """[C] what each ran with; None for a dense model."""
    layers: list[int]
    """[L], ascending."""
    tail: int
    """Layers from this one on are the dense tail; the number of layers for a dense model."""
    activation: np.ndarray
    """float64 [L, C]: mean activation of the dimension on the token."""
    strength: np.ndarray
    """float64 [L, C]: standard deviations of the dimension's profile; NaN where it is silent."""
    token_rank: np.ndarray
    """int64 [L, C]: place of the token in the dimension's profile, from 1; 0 where it is silent."""
    dimension_rank: np.ndarray
    """int64 [L, C]: place of the dimension among all for this token, by strength; 0 where it is silent."""

    def emerged(self, threshold: float) -> list[int | None]:
        """[L]: index of the first checkpoint from which the strength stays at the threshold or above; None: never."""
        above = np.nan_to_num(self.strength, nan=-np.inf) >= threshold
        return [_since(row) for row in above]


def _since(above: np.ndarray) -> int | None:
    if not len(above) or not above[-1]:
        return None
    below = np.flatnonzero(~above)
    return int(below[-1]) + 1 if len(below) else 0


def history_figure(
    histories: Sequence[History], token: str, neuron: int, threshold: float, lines: Sequence[str]
) -> Figure:
    """Heat maps over layers (upwards) and checkpoints, a column a series: above the mean activation, below the
    strength, with a dot from where it stays at the threshold. Lines mark the dense tail and the end of annealing."""
    n_layers = max(len(h.layers) for h in histories)
    with house_style():
        height = 2 * (1.25 + 0.26 * n_layers)
        title = f"Dimension {neuron} on the token {plain(repr(token))}"
        figure = framed(title, lines, height, width=max(7.0, 1.6 + 3.6 * len(histories)))
        axes = figure.subplots(2, len(histories), squeeze=False)
        for i, name in enumerate(("activation", "strength")):
            grids = [getattr(h, name) for h in histories]
            colours = _colours(grids)
            for j, (history, grid) in enumerate(zip(histories, grids, strict=True)):
                axis = axes[i, j]
                image = axis.imshow(grid, origin="lower", aspect="auto", interpolation="nearest", **colours)
                _label(axis, history, bottom=i == 1)
                if i == 0:
                    axis.set_title(plain(history.series), fontsize=10)
                else:
                    _dots(axis, history, threshold)
            bar = figure.colorbar(image, ax=list(axes[i]), pad=0.02)
            bar.set_label(("mean activation", "strength (sd)")[i])
            bar.outline.set_visible(False)
        _explain(figure, axes, histories, threshold)
    return figure


def _explain(figure: Any, axes: Any, histories: Sequence[History], threshold: float) -> None:
    axis = axes[1, 0]
    if any(h.layers[0] < h.tail <= h.layers[-1] for h in histories):
        axis.plot([], [], color=TAIL, linewidth=2, label="above: the dense tail")
    if any(alpha for h in histories for alpha in h.alphas):
        axis.plot([], [], color=ANNEALING, linewidth=2, label="left: annealing, alpha > 0")
    dot = {"color": "black", "markeredgecolor": "white", "linestyle": "none", "markersize": 6}
    axis.plot([], [], marker="o", label=f"strength stays at {threshold:g} or above", **dot)
    legend_below(figure, [axis], 3)


def candidate_table(title: str, note: str, rows: list[dict[str, Any]], of: str) -> Table:
    """Dimensions of a token, or tokens of a dimension, by falling strength."""
    columns = [
        Column("rank", "rank"), Column("candidate", of), Column("strength", "mean strength (sd)", "{:.2f}"),
        Column("activation", "mean activation", "{:.3f}"), Column("layers_above", "layers at the threshold"),
        Column("count", "occurrences", "{:,}"),
    ]  # fmt: skip
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return Table(title, note, used, rows)


def emergence_table(histories: Sequence[History], threshold: float) -> Table:
    """A row a series and layer."""
    rows = []
    for history in histories:
        for i, (layer, since) in enumerate(zip(history.layers, history.emerged(threshold), strict=True)):
            rows.append({
                "series": history.series, "layer": layer, "kind": "tail" if layer >= history.tail else "body",
                "since": None if since is None else history.steps[since],
                "after": None if not since else history.steps[since - 1],
                "activation": float(history.activation[i, -1]), "strength": float(history.strength[i, -1]),
                "token_rank": int(history.token_rank[i, -1]) or None,
                "dimension_rank": int(history.dimension_rank[i, -1]) or None,
            })  # fmt: skip
    columns = [
        Column("series", "model"), Column("layer", "layer"), Column("kind", ""),
        Column("since", "holds from step", "{:,}"),
        Column("after", "not yet at", "{:,}"), Column("activation", "mean activation at the end", "{:.3f}"),
        Column("strength", "strength at the end (sd)", "{:.2f}"), Column("token_rank", "token's rank in the dimension"),
        Column("dimension_rank", "dimension's rank for the token"),
    ]  # fmt: skip
    note = (
        f"holds from: the first checkpoint from which the strength stays at {threshold:g} or above up to the last; it "
        "was reached between the step of `not yet at` and that one. body: TopK layers, or all of a dense model."
    )
    return Table("Emergence", note, columns, rows)


def history_statements(history: History, token: str, neuron: int, threshold: float) -> list[str]:
    """When the dimension emerged and where it spread to."""
    since = history.emerged(threshold)
    held = {layer: at for layer, at in zip(history.layers, since, strict=True) if at is not None}
    name = f"{history.series}: dimension {neuron}"
    if not held:
        top = float(np.nanmax(history.strength)) if np.isfinite(history.strength).any() else float("nan")
        return [
            f"{name} does not hold {token!r}: in no layer does its strength stay at {threshold:g} up to the last "
            f"checkpoint (highest anywhere {top:.2f})."
        ]
    first = min(held.values())
    start = [layer for layer, at in held.items() if at == first]
    told = [
        f"{name} holds {token!r} (strength of at least {threshold:g}, up to the last checkpoint) "
        f"{_when(history, first)} in {_layers(start)}, and at step {history.steps[-1]:,} in {len(held)} of "
        f"{len(history.layers)} layers."
    ]
    later = {layer: at for layer, at in held.items() if at > first}
    if later:
        waves = [(at, [layer for layer in later if later[layer] == at]) for at in sorted(set(later.values()))]
        told.append(f"It spreads: {'; '.join(f'{_layers(wave)} {_when(history, at)}' for at, wave in waves)}.")
    never = [layer for layer in history.layers if layer not in held]
    if never:
        told.append(f"It does not hold in {_layers(never)}.")
    return told


def _when(history: History, index: int) -> str:
    if index == 0:
        return f"from the first checkpoint on (step {history.steps[0]:,} or before)"
    return f"from step {history.steps[index]:,} on (not yet at {history.steps[index - 1]:,})"


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def _colours(grids: Sequence[np.ndarray]) -> dict[str, Any]:
    """One scale for all: symmetric about 0 where there are large negative values as well."""
    from matplotlib import colormaps

    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    signed = low < -0.1 * high
    colours = colormaps["PuOr_r" if signed else "cividis"].with_extremes(bad="#e6e6e6")
    most = max(abs(low), abs(high)) or 1.0
    return {"cmap": colours, "vmin": -most if signed else min(low, 0.0), "vmax": most}


def _label(axis: Any, history: History, bottom: bool) -> None:
    axis.grid(False)
    axis.set_yticks(range(len(history.layers)), [str(layer) for layer in history.layers], fontsize=8)
    every = -(-len(history.steps) // 12)
    at = range(0, len(history.steps), every)
    axis.set_xticks(at, [f"{history.steps[i]:,}" for i in at], rotation=45, ha="right", fontsize=8)
    axis.set_ylabel("layer")
    if bottom:
        axis.set_xlabel("optimizer steps")
    inside = [i for i, layer in enumerate(history.layers) if layer < history.tail]
    if inside and len(inside) < len(history.layers):
        axis.axhline(len(inside) - 0.5, color=TAIL, linewidth=2)
    annealing = sum(bool(alpha) for alpha in history.alphas)
    if annealing:
        axis.axvline(annealing - 0.5, color=ANNEALING, linewidth=2)


def _dots(axis: Any, history: History, threshold: float) -> None:
    for row, since in enumerate(history.emerged(threshold)):
        if since is not None:
            x = range(since, len(history.steps))
            axis.plot(x, [row] * len(x), "o", color="black", markeredgecolor="white", markersize=4.5)
