"""How every figure of the report looks, where it says what it shows, and how it is saved."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topklm.optional import require
from topklm.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette, without its yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
"""One fewer than there are colours, so that models of one colour have other markers."""

# Explicit, so that a reader's own style (dark, say) cannot make white text on white.
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.facecolor": "white", "savefig.transparent": False,
    "text.color": "#222222", "axes.labelcolor": "#222222", "axes.edgecolor": "#666666",
    "xtick.color": "#444444", "ytick.color": "#444444", "grid.color": "#dddddd", "grid.linewidth": 0.6,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "font.family": ["DejaVu Sans"], "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left",
    "legend.frameon": False, "lines.linewidth": 1.8, "svg.hashsalt": "topklm", "svg.fonttype": "path",
}  # fmt: skip

_LINE_INCHES = 0.135
_LEGEND_LINE = 0.2
"""Inches of a line of a legend."""


@contextmanager
def house_style() -> Iterator[None]:
    """The look of the figures that are made or saved inside; the caller's own settings are back afterwards."""
    with require("matplotlib", "topklm[plots]").rc_context(STYLE):
        yield


def panels(
    title: str, runs: Sequence[Run], heights: Sequence[float], width: float = 8.0
) -> tuple[Figure, list[Any], str]:
    """A figure of panels below each other on a shared x axis, with provenance at its bottom.

    `heights` and `width` are in inches. Returns (figure, axes from top to bottom, the provenance). Call it and draw
    under `house_style()`.
    """
    lines = provenance(runs)
    figure = framed(title, lines, sum(heights), width)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=list(heights))[:, 0]
    return figure, list(axes), "\n".join(lines)


def framed(title: str, lines: Sequence[str], height: float, width: float = 8.0) -> Figure:
    """An empty figure with `height` inches for its panels, a title above and `lines`, wrapped, at its bottom."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # 16 characters of 7 points fit an inch, also where they are the digits of hashes, which are wide.
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(16 * width), subsequent_indent="    ")]
    foot = _LINE_INCHES * (len(wrapped) + 2)
    height += foot
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", rect=(0, foot / height, 1, 1 - foot / height), h_pad=0.08)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.text(
        0.01, _LINE_INCHES / 2 / height, "\n".join(wrapped), fontsize=7, color="#555555", va="bottom",
        linespacing=1.35, parse_math=False,
    )  # fmt: skip
    return figure


def provenance(runs: Sequence[Run]) -> list[str]:
    """One line a run: directory, steps, training tokens, seed, data, and the tokens that perplexity was measured on."""
    lines = []
    for run in runs:
        last = run.validation[-1] if run.validation else {}
        scored = [f"{last[key]:,.0f} tokens @{c}" for c in run.views if last.get(key := f"val/tokens@{c}")]
        if last.get("topk/tokens"):
            scored.append(f"health on {last['topk/tokens']:,.0f}")
        tokens = run.step * run.tokens_per_step
        trained = f" ({tokens:,.0f} tokens)" if tokens == tokens else ""
        validated = f", validated on {', '.join(scored)}" if scored else ""
        fingerprint = run.short_hash("data_fingerprint")
        data = f", data {fingerprint}" if fingerprint else ""
        lines.append(f"{run.name}: {run.path}, step {run.step:,}{trained}, seed {run.seeds}{data}{validated}")
    return lines


def line_style(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th run: colours first, then the same again with other dashes."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def legend_below(figure: Any, axes: Sequence[Any], columns: int, title: str = "") -> None:
    """One legend for the lines of some panels, between the panels and the provenance at the bottom of a `framed`
    figure, which becomes higher by as much as the legend needs."""
    found = [axis.get_legend_handles_labels() for axis in axes]
    handles, labels = ([each for pair in found for each in pair[i]] for i in (0, 1))
    lines = -(-len(labels) // columns) + (title.count("\n") + 1 if title else 0)
    (width, height), legend = figure.get_size_inches(), _LEGEND_LINE * lines + 0.15
    higher = height + legend
    figure.set_size_inches(width, higher)
    layout = figure.get_layout_engine()
    foot = layout.get()["rect"][1] * height
    for text in figure.texts:  # places are shares of the height
        text.set_y(text.get_position()[1] * height / higher)
    layout.set(rect=(0, (foot + legend) / higher, 1, 1 - (foot + legend) / higher))
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.0, foot / higher), ncols=columns, fontsize=9,
        handlelength=3.5, borderaxespad=0.3, title=title or None, title_fontsize=9, alignment="left",
    )  # fmt: skip


def plain(text: str) -> str:
    """Text for a legend, in which a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, stem: Path, description: str) -> list[Path]:
    """Write `stem`.png (150 dpi) and `stem`.svg, both with `description` in their metadata; returns their paths."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with house_style():
        figure.savefig(png, dpi=150, metadata={"Description": description})
        # Without a date, equal runs give equal files.
        figure.savefig(svg, metadata={"Description": description, "Date": None})
    return [png, svg]
