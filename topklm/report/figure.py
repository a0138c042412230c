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

    # 18 characters of 7 points fit an inch, also those of long paths.
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(18 * width), subsequent_indent="    ")]
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


def save(figure: Figure, stem: Path, description: str) -> list[Path]:
    """Write `stem`.png (150 dpi) and `stem`.svg, both with `description` in their metadata; returns their paths."""
    png, svg = stem.with_suffix(".png"), stem.with_suffix(".svg")
    with house_style():
        figure.savefig(png, dpi=150, metadata={"Description": description})
        # Without a date, equal runs give equal files.
        figure.savefig(svg, metadata={"Description": description, "Date": None})
    return [png, svg]
