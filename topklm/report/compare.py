"""What the runs have come to, side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from topklm.report.runs import Line, Run, all_views, number
from topklm.report.twins import dense_twin, same_recipe, why_no_twin


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run's results. A number is None where it was not measured and NaN where it was not finite."""

    run: Run
    loss: float | None
    """Mean training loss in nats per token over the last tenth of the logged steps."""
    loss_points: int
    """How many logged steps that are."""
    validated_step: int | None
    """Step of the last validation, from which the following figures are."""
    perplexity: dict[str, float | None] = field(default_factory=dict)
    """Validation perplexity by view (`Run.views`)."""
    scored: dict[str, float | None] = field(default_factory=dict)
    """Tokens that it was measured on, by view."""
    twin: str | None = None
    """Name of the dense twin; None for a dense run and where there is none."""
    ratio: dict[str, float | None] = field(default_factory=dict)
    """Perplexity over the dense twin's, by view; at the same step and on as many tokens, else None."""
    l0_mean: float | None = None
    """Mean number of active (selected and positive) entries per token and TopK layer."""
    dead: float | None = None
    """Share of the TopK layers' neurons that were active in no token of `health_tokens`."""
    health_tokens: float | None = None
    """Tokens that these two were measured on."""
    alpha: float | None = None
    """Annealing coefficient at the last validation: 1 dense, 0 TopK."""
    tokens_per_second: float | None = None
    """Median over the logged steps without the first, which holds warming up."""
    mfu: float | None = None
    """Median model FLOPs utilisation over the same steps, where it is known."""


@dataclass(frozen=True)
class Comparison:
    """Rows in the order of the runs, and what a reader has to know about them."""

    rows: list[Row]
    views: list[str]
    """Every way in which any run was validated (`Run.views`), smallest context first."""
    notes: list[str]
    """Reasons for missing ratios and figures that mislead, in sentences."""


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side. Needs no dense run; ratios are left out where there is no twin."""
    notes: list[str] = []
    rows = [_row(run, runs, notes) for run in runs]
    if len({run.recorded("tokenizer_sha256") for run in runs} - {None}) > 1:
        notes.append(
            "The runs have different tokenizers: their perplexities per token do not compare; bits per byte do "
            "(python -m apps.eval compare)."
        )
    return Comparison(rows, all_views(runs), notes)


def _row(run: Run, runs: Sequence[Run], notes: list[str]) -> Row:
    last: Line = run.validation[-1] if run.validation else {}
    twin = dense_twin(run, runs)
    loss, points = _last_loss(run)
    if loss is not None and math.isnan(loss):
        notes.append(f"{run.name}: the training loss was not finite within its last {points} logged steps.")
    planned = run.config.get("steps")
    if planned is not None and run.step < planned:
        notes.append(f"{run.name} has done {run.step} of {planned} steps.")
    alpha = number(last, "val/alpha")
    if alpha:
        notes.append(f"{run.name} is still annealing (alpha {alpha:.3g}): not yet the perplexity of a TopK model.")
    return Row(
        run=run,
        loss=loss,
        loss_points=points,
        validated_step=last.get("global_step"),
        perplexity={view: number(last, f"val/ppl@{view}") for view in run.views},
        scored={view: number(last, f"val/tokens@{view}") for view in run.views},
        twin=twin.name if twin else None,
        ratio=_ratios(run, runs, twin, notes),
        l0_mean=number(last, "topk/l0_mean"),
        dead=number(last, "topk/dead"),
        health_tokens=number(last, "topk/tokens"),
        alpha=alpha,
        tokens_per_second=_median(run, "speed/tokens_per_second"),
        mfu=_median(run, "speed/mfu"),
    )


def _last_loss(run: Run) -> tuple[float | None, int]:
    """(mean loss over the last tenth of the logged steps, at least one; their number)."""
    points = math.ceil(len(run.training) / 10)
    logged = [number(line, "loss/out") for line in run.training[-points:]] if points else []
    losses = [loss for loss in logged if loss is not None]  # none in a run whose training loss is not causal
    return (statistics.fmean(losses) if losses else None), points


def _median(run: Run, key: str) -> float | None:
    values = [value for line in run.training[1:] if (value := number(line, key)) is not None and math.isfinite(value)]
    return statistics.median(values) if values else None


def _ratios(run: Run, runs: Sequence[Run], twin: Run | None, notes: list[str]) -> dict[str, float | None]:
    if run.is_dense or not run.validation:
        return {}
    if twin is None:
        notes.append(f"{run.name} has no dense twin here: {why_no_twin(run, runs)}.")
        return {}
    if not same_recipe(run, twin):
        notes.append(f"{run.name} and its dense twin {twin.name} differ in seed or optimiser settings.")
    if not twin.validation:
        return {}
    mine, its = run.validation[-1], twin.validation[-1]
    if mine["global_step"] != its["global_step"]:
        notes.append(
            f"{run.name} was last validated at step {mine['global_step']}, its dense twin {twin.name} at step "
            f"{its['global_step']}: no ratio."
        )
        return {}
    ratios: dict[str, float | None] = {}
    for view in (view for view in run.views if view in twin.views):
        if mine.get(f"val/tokens@{view}") != its.get(f"val/tokens@{view}"):
            notes.append(f"{run.name} and {twin.name} were validated on different tokens at {view}: no ratio.")
            continue
        above, below = number(mine, f"val/ppl@{view}"), number(its, f"val/ppl@{view}")
        ratios[view] = above / below if above is not None and below else None
    return ratios
