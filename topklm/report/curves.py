"""Figures over training: loss and validation perplexity, and the health of the TopK."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from topklm.report.figure import house_style, line_style, panels
from topklm.report.runs import Line, Run, all_views, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")
MARKERS = ("o", "s", "^", "D", "v", "P")
SHADED = "shaded: annealing, alpha > 0"


def training_curves(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Training loss (each logged step thin, a running mean bold), validation perplexity and alpha over tokens.

    The grey background is the annealing phase of the TopK runs (alpha > 0). Returns (figure, its provenance). Raises
    `ConfigError` without matplotlib.
    """
    views = all_views(runs)
    with_alpha = any(not run.is_dense for run in runs)
    with house_style():
        figure, axes, text = panels("Training", runs, [2.9, 2.9, 1.1] if with_alpha else [2.9, 2.9])
        for i, run in enumerate(runs):
            style, tokens = line_style(i), [line["global_step"] * run.tokens_per_step for line in run.training]
            losses = series(run.training, "loss/out")
            axes[0].plot(tokens, losses, **style | {"linestyle": "-"}, linewidth=0.7, alpha=0.45)
            axes[0].plot(tokens, smooth(losses), label=run.name, **style)
            for view in run.views:
                _plot_perplexity(axes[1], run, view, MARKERS[views.index(view) % len(MARKERS)], style)
            if not run.is_dense:
                axes[2].plot(tokens, series(run.training, "topk/alpha"), **style)
        axes[0].set_ylabel("training loss\n(nats per token)")
        axes[1].set_ylabel("validation perplexity" + (f"\n(context {views[0]})" if len(views) == 1 else ""))
        _log_axis(axes[1])
        _run_legend(figure, axes[0], "upper right")
        if len(views) > 1:
            for view, marker in zip(views, MARKERS, strict=False):
                axes[1].plot([], [], color="#666666", linestyle="", marker=marker, label=f"context {view}")
            axes[1].legend(loc="upper right")
        if with_alpha:
            axes[2].set_ylabel("alpha")
            axes[2].set_ylim(-0.05, 1.05)
        title = "thin: each logged step; bold: running mean over a tenth of them"
        shaded = _shade(axes, [(run, run.tokens_per_step) for run in runs])
        axes[0].set_title(f"{title}\n{SHADED}" if shaded else title, fontsize=9, color="#555555")
        _count_axis(axes[-1], "training tokens")
        return figure, text


def health_curves(runs: Sequence[Run]) -> tuple[Figure, str] | None:
    """L0 and dead neurons at each validation of the TopK runs; None if no run has logged them.

    Returns (figure, its provenance). Raises `ConfigError` without matplotlib.
    """
    shown = [(i, run) for i, run in enumerate(runs) if any("topk/l0_mean" in line for line in run.validation)]
    if not shown:
        return None
    with house_style():
        from matplotlib.ticker import MaxNLocator

        figure, axes, text = panels("TopK health at validation", [run for _, run in shown], [2.9, 2.4])
        for i, run in shown:
            lines = [line for line in run.validation if "topk/l0_mean" in line]
            steps, style = [line["global_step"] for line in lines], line_style(i)
            low, high = series(lines, "topk/l0_min"), series(lines, "topk/l0_max")
            axes[0].fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes[0].plot(steps, series(lines, "topk/l0_mean"), marker="o", markersize=4, label=run.name, **style)
            axes[1].plot(
                steps,
                [100 * share for share in series(lines, "topk/dead")],
                marker="o",
                markersize=4,
                label=run.name,
                **style,
            )
        # Not of a k per layer or per group: that is no number of entries per token.
        counted = (run.k for _, run in shown if run.setting("topk.activation") != "grouptopk")
        ks = sorted({k for k in counted if isinstance(k, int)})
        for k in ks:
            axes[0].axhline(k, color="#444444", linestyle=(0, (1, 2)), linewidth=1.2)
            axes[0].annotate(f"k = {k}", (1, k), xycoords=("axes fraction", "data"), xytext=(3, 0),
                             textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        axes[0].set_ylabel("L0: entries per token\n(mean; band: min to max)")
        if ks and ks[-1] >= 8 * ks[0]:
            _log_axis(axes[0])
        else:
            axes[0].set_ylim(bottom=0)
            axes[0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
        _run_legend(figure, axes[0], "lower right")
        axes[1].set_ylabel("dead neurons\n(% of the TopK layers')")
        axes[1].set_ylim(bottom=0)
        if _shade(axes, [(run, 1.0) for _, run in shown]):
            axes[0].set_title(SHADED, fontsize=9, color="#555555")
        _count_axis(axes[-1], "optimizer steps")
        return figure, text


def series(lines: Sequence[Line], key: str) -> list[float]:
    """A metric's values, NaN where it is missing or was not finite: the curve has a gap there."""
    return [NAN if (value := number(line, key)) is None else value for line in lines]


def smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over a tenth of the points (at least 3), shorter towards the ends so as not to shift them.

    A value that is not finite makes the means that hold it NaN: the gap stays visible.
    """
    half = max(1, len(values) // 20)
    means = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        means.append(sum(window) / len(window))
    return means


def annealed_until(run: Run) -> int:
    """The step at which alpha reaches 0, or the last one that was logged if it has not; 0 if there is no annealing."""
    if run.is_dense:
        return 0
    steps = run.setting("topk.anneal_steps")
    if steps is not None:
        return min(int(steps), run.step)
    return max((line["global_step"] for line in run.training if number(line, "topk/alpha")), default=0)


def _plot_perplexity(axes: Any, run: Run, view: str, marker: str, style: dict[str, Any]) -> None:
    key = f"val/ppl@{view}"
    lines = [line for line in run.validation if key in line]
    tokens = [line["global_step"] * run.tokens_per_step for line in lines]
    axes.plot(tokens, series(lines, key), marker=marker, markersize=4, **style)


def _run_legend(figure: Figure, axes: Any, loc: str) -> None:
    """The runs' names: in a corner of the panel, or beside all panels where they are too many for that."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= 4 and max(map(len, labels)) <= 40:
        axes.legend(loc=loc)
    else:
        wrapped = ["\n".join(textwrap.wrap(label, 28)) for label in labels]
        figure.legend(handles, wrapped, loc="outside right upper", fontsize=8, handlelength=3.5)


def _log_axis(axes: Any) -> None:
    """A logarithmic y axis, labelled in plain numbers whether it spans a tenth of a decade or three."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 1.6 * low:
        axes.yaxis.set_major_locator(AutoLocator())
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if high < 8 * low else (1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _count_axis(axes: Any, label: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _shade(axes: Sequence[Any], runs: Sequence[tuple[Run, float]]) -> bool:
    """Shade from 0 to where annealing ends (step times a factor), once for runs that end together; whether any did."""
    ends = sorted({annealed_until(run) * scale for run, scale in runs} - {0})
    for end in ends:
        if math.isfinite(end):
            for panel in axes:
                panel.axvspan(0, end, color="#888888", alpha=0.13, linewidth=0, zorder=0)
    return bool(ends)
