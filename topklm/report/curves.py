"""Figures over training: loss and validation perplexity, and the health of the TopK."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from topklm.report.figure import house_style, line_style, panels
from topklm.report.runs import Line, Run, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAN = float("nan")


def training_curves(runs: Sequence[Run]) -> tuple[Figure, str]:
    """Training loss (each logged step thin, a running mean bold), validation perplexity and alpha over tokens.

    The grey background is the annealing phase of the TopK runs (alpha > 0). Returns (figure, its provenance). Raises
    `ConfigError` without matplotlib.
    """
    with_alpha = any(not run.is_dense for run in runs)
    with house_style():
        figure, axes, text = panels("Training", runs, [2.9, 2.9, 1.1] if with_alpha else [2.9, 2.9])
        for i, run in enumerate(runs):
            style, tokens = line_style(i), [line["global_step"] * run.tokens_per_step for line in run.training]
            losses = series(run.training, "loss/out")
            axes[0].plot(tokens, losses, **style | {"linestyle": "-"}, linewidth=0.7, alpha=0.45)
            axes[0].plot(tokens, smooth(losses), label=run.name, **style)
            for j, context in enumerate(run.contexts):
                _plot_perplexity(axes[1], run, context, j, style)
            if not run.is_dense:
                axes[2].plot(tokens, series(run.training, "topk/alpha"), **style)
        axes[0].set_ylabel("training loss\n(nats per token)")
        axes[1].set_ylabel("validation perplexity")
        axes[0].legend(loc="upper right", ncols=1 + (len(runs) - 1) // 8)
        _log_axis(axes[1])
        axes[1].legend(loc="upper right", ncols=1 + (len(runs) - 1) // 8)
        if with_alpha:
            axes[2].set_ylabel("alpha")
            axes[2].set_ylim(-0.05, 1.05)
        _shade(axes, [(run, run.tokens_per_step) for run in runs])
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
        for k in sorted({run.setting("topk.k") for _, run in shown} - {None}):
            axes[0].axhline(k, color="#444444", linestyle=(0, (1, 2)), linewidth=1.2)
            axes[0].annotate(f"k = {k}", (1, k), xycoords=("axes fraction", "data"), xytext=(3, 0),
                             textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        axes[0].set_ylabel("L0: entries per token\n(mean; band: min to max)")
        axes[0].set_ylim(bottom=0)
        axes[0].legend(loc="best")
        axes[1].set_ylabel("dead neurons\n(% of the TopK layers')")
        axes[1].set_ylim(bottom=0)
        _shade(axes, [(run, 1.0) for _, run in shown])
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


def _plot_perplexity(axes: Any, run: Run, context: int, j: int, style: dict[str, Any]) -> None:
    key = f"val/ppl@{context}"
    lines = [line for line in run.validation if key in line]
    tokens = [line["global_step"] * run.tokens_per_step for line in lines]
    marker = ("o", "s", "^", "D")[j % 4]
    label = f"{run.name}, context {context:,}"
    axes.plot(tokens, series(lines, key), marker=marker, markersize=4, label=label, **style)


def _log_axis(axes: Any) -> None:
    """A logarithmic y axis, labelled in plain numbers whether it spans a tenth of a decade or three."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 8 * low
    axes.yaxis.set_major_locator(AutoLocator() if narrow else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _count_axis(axes: Any, label: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _shade(axes: Sequence[Any], runs: Sequence[tuple[Run, float]]) -> None:
    """Shade from 0 to where annealing ends, once for runs that end together; said in words above the highest panel."""
    ends = sorted({annealed_until(run) * scale for run, scale in runs} - {0})
    for end in ends:
        if math.isfinite(end):
            for panel in axes:
                panel.axvspan(0, end, color="#888888", alpha=0.13, linewidth=0, zorder=0)
    if ends:
        axes[0].set_title("shaded: annealing, alpha > 0", fontsize=9, color="#555555", loc="left")
