"""The comparison of evaluations as a picture: scores against guessing, and each TopK model against its dense twin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from topklm.report.evals.compare import Difference, EvalComparison, EvalRow
from topklm.report.evals.figures import Column
from topklm.report.evals.pairs import CONFIDENCE_Z
from topklm.report.evals.tables import interval_of, verdict
from topklm.report.figure import COLOURS, framed, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_ROW = 0.34
# Not in colours: those tell runs apart.
_VERDICTS = {
    "worse": ("TopK worse", "v", "#000000"), "better": ("TopK better", "^", "#000000"),
    "": ("no difference seen", "o", "#888888"),
}  # fmt: skip


def evaluation_figure(comparison: EvalComparison) -> tuple[Figure, str] | None:
    """Top: accuracies with 95 % intervals and the level of guessing. Below: paired differences of accuracies, in
    points, and ratios of perplexities and bits per byte, with 95 % intervals.

    Returns (figure, its provenance), or None where there is nothing of either. Raises `ConfigError` without matplotlib.
    """
    accuracies = [c for c in comparison.main_columns if c.metric.startswith("acc")]
    shown = [d for d in comparison.differences if d.column in set(comparison.main_columns)]
    points = [d for d in shown if d.column.scale == "mean"]
    ratios = [d for d in shown if d.column.scale == "perplexity"]
    rows = [len(accuracies) * max(1, len(comparison.rows) / 2), len(points), len(ratios)]
    drawn = [i for i, n in enumerate(rows) if n]
    if not drawn:
        return None
    lines = [_provenance(row) for row in comparison.rows]
    heights = [rows[i] * _ROW + 0.95 for i in drawn]
    with house_style():
        figure = framed("Evaluation", lines, sum(heights))
        axes = dict(zip(drawn, figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0], strict=True))
        if 0 in axes:
            _scores(axes[0], comparison, accuracies)
        if 1 in axes:
            _forest(axes[1], points, 0.0, "difference of the TopK model and its dense twin (95 % interval)")
        if 2 in axes:
            _forest(axes[2], ratios, 1.0, "perplexity over the dense twin's (95 % interval)")
    return figure, "\n".join(lines)


def _scores(axes: Any, comparison: EvalComparison, columns: list[Column]) -> None:
    n = len(comparison.rows)
    for i, row in enumerate(comparison.rows):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
        for j, column in enumerate(columns):
            cell = row.cells.get(column)
            if cell is None:
                continue
            reach = 0.0 if cell.stderr is None else CONFIDENCE_Z * cell.stderr
            axes.errorbar(
                cell.value, j + (i - (n - 1) / 2) * 0.6 / n, xerr=reach, markersize=6, capsize=0, linewidth=1.6,
                markerfacecolor="white" if cell.near_chance else style["color"], **style,
            )  # fmt: skip
        axes.plot([], [], label=row.run.name, **style)
    for j, column in enumerate(columns):
        levels = {cell.chance for row in comparison.rows if (cell := row.cells.get(column)) and cell.chance is not None}
        for level in levels:
            axes.plot([level, level], [j - 0.42, j + 0.42], color="#222222", linewidth=1.4, linestyle=(0, (2, 1.5)))
    axes.plot([], [], color="#222222", linewidth=1.4, linestyle=(0, (2, 1.5)), label="guessing")
    axes.plot(
        [], [], marker="o", linestyle="none", color="#222222", markerfacecolor="white", label="within 2 s.e. of it"
    )
    _rows_named(axes, [column.title for column in columns])
    axes.set_xlabel("accuracy (95 % interval)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _forest(axes: Any, differences: list[Difference], none: float, label: str) -> None:
    several = len({difference.run for difference in differences}) > 1
    names = []
    for j, difference in enumerate(differences):
        value, low, high = interval_of(difference)
        _, marker, colour = _VERDICTS[verdict(difference)]
        if not math.isnan(low):
            axes.plot([low, high], [j, j], color=colour, linewidth=1.8, solid_capstyle="butt")
        axes.plot(value, j, marker=marker, color=colour, markersize=6)
        p = difference.paired
        names.append(f"{difference.column.title}{f', {difference.run}' if several else ''} (n = {p.n:,})")
    axes.axvline(none, color="#222222", linewidth=1.2, linestyle=(0, (2, 1.5)))
    for kind, marker, colour in _VERDICTS.values():
        axes.plot([], [], marker=marker, color=colour, linestyle="none", label=kind)
    _rows_named(axes, names)
    axes.set_xlabel(label)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _rows_named(axes: Any, names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _provenance(row: EvalRow) -> str:
    provenance = row.evaluation.provenance
    sha = provenance.get("checkpoint_sha256")
    alpha = "" if row.alpha is None else f", alpha {row.alpha:.3g}"
    return (
        f"{row.run.name}: {row.evaluation.path}, step {row.step}{alpha}, checkpoint {(sha or 'unknown')[:12]}, "
        f"tokenizer {row.run.short_hash('tokenizer_sha256')}, context {provenance.get('context')}, "
        f"{provenance.get('dtype')} on {provenance.get('device')}, {provenance.get('date')}"
    )
