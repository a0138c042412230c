"""Persistence: whether a dimension that is active in one layer is active in the next ones too.

Of neuron i on n tokens, with f_l the tokens in which it fires in layer l and S(l, d) those in which it fires in all of
the layers l ... l + d (exact counts of the bundle: `fired_runs`, or `fired_next` for d = 1):

    P = S(l, 1) / f_l            base rate b = f_{l+1} / n
    lift = P / b                 at most 1 / b, so it does not compare across densities
    excess = (P - b) / (1 - b)   0 if the layers are independent, 1 if it always stays

Layers pool their neurons: sums of the numerators over sums of the denominators, each neuron with its own base rate.
Neurons that never fire in layer l have no P: they are left out and counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from topklm.bundles import Bundle, LayerStats
from topklm.errors import ConfigError, Problem
from topklm.interp.histories.config import PersistenceConfig
from topklm.interp.histories.curves import tail_of
from topklm.interp.histories.identity import Z95
from topklm.interp.histories.series import Opened, open_series
from topklm.interp.progress import PassProgress
from topklm.report.result import Drawing, Result
from topklm.report.tracing.match import looks
from topklm.report.tracing.persistence import (
    PersistencePoint,
    SurvivalPoint,
    persistence_figure,
    persistence_statements,
    persistence_table,
    survival_table,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFiring:
    """Who fired in one layer."""

    fired: np.ndarray
    """int64 [N]"""
    fired_next: np.ndarray | None
    """int64 [N]; None in the model's last layer."""
    fired_runs: np.ndarray | None
    """int64 [layer + 1, N]; None in older bundles."""

    @staticmethod
    def of(stats: LayerStats) -> LayerFiring:
        return LayerFiring(fired=stats.fired, fired_next=stats.fired_next, fired_runs=stats.fired_runs)


def ratio(y: np.ndarray, x: np.ndarray) -> tuple[float, float, float]:
    """(sum y / sum x, low, high): a ratio of sums over neurons and its 95 % interval for another draw of neurons
    (linearised standard error); NaN if x adds up to 0."""
    total = float(x.sum())
    if total == 0:
        return math.nan, math.nan, math.nan
    value = float(y.sum()) / total
    n = len(x)
    if n < 2:
        return value, math.nan, math.nan
    error = math.sqrt(float(((y - value * x) ** 2).sum()) * n / (n - 1)) / total
    return value, value - Z95 * error, value + Z95 * error


def persistence_point(
    series: str, step: int | None, layer: int, here: LayerFiring, following: LayerFiring, n_tokens: int
) -> PersistencePoint:
    """Persistence from one layer to the next, over the neurons that fire here."""
    if here.fired_next is None:
        raise ValueError(f"layer {layer} is the model's last; nothing comes after it")
    active = here.fired > 0
    fired, both = here.fired[active].astype(np.float64), here.fired_next[active].astype(np.float64)
    base = following.fired[active] / n_tokens
    share, low, high = ratio(both, fired)
    excess, excess_low, excess_high = ratio(both - fired * base, fired * (1 - base))
    with np.errstate(divide="ignore", invalid="ignore"):
        lifts = np.where(base > 0, both / fired / base, np.nan)
    lifts = lifts[np.isfinite(lifts)]
    quartiles = np.percentile(lifts, (25, 50, 75)) if len(lifts) else np.full(3, np.nan)
    expected = float((fired * base).sum())
    return PersistencePoint(
        series=series, step=step, layer=layer, n=int(active.sum()), silent=int((~active).sum()),
        density=float(here.fired.sum() / (n_tokens * len(active))),
        base=expected / float(fired.sum()) if len(fired) else math.nan,
        share=share, low=low, high=high, excess=excess, excess_low=excess_low,
        excess_high=excess_high,
        lift=float(both.sum()) / expected if expected else math.nan,
        lift_low=float(quartiles[0]), lift_median=float(quartiles[1]), lift_high=float(quartiles[2]),
    )  # fmt: skip


def survival_points(
    series: str, step: int | None, layers: dict[int, LayerFiring], start: int, n_tokens: int
) -> Iterator[SurvivalPoint]:
    """Share of the activity in layer `start` that goes on without a break through each later layer.

    Beside the exact share: what independent layers would give, and the product of the steps' P, neuron by neuron, which
    would be exact if staying did not depend on how long a neuron has been active. Ends where exact counts are missing.
    """
    first = layers[start]
    active = first.fired > 0
    fired = first.fired[active].astype(np.float64)
    independent, product = fired.copy(), fired.copy()
    layer = start
    while True:
        depth = layer - start
        here = layers[layer]
        survived = fired if depth == 0 else None
        if depth and here.fired_runs is not None:
            survived = here.fired_runs[depth:, active].sum(0).astype(np.float64)
        elif depth == 1 and first.fired_next is not None:
            survived = first.fired_next[active].astype(np.float64)
        if survived is None:
            return
        share, low, high = ratio(survived, fired)
        total = fired.sum()
        yield SurvivalPoint(
            series=series, step=step, start=start, depth=depth, n=int(active.sum()), silent=int((~active).sum()),
            share=share, low=low, high=high,
            independent=float(independent.sum() / total) if total else math.nan,
            product=float(product.sum() / total) if total else math.nan,
        )  # fmt: skip
        if layer + 1 not in layers or here.fired_next is None:
            return
        independent = independent * layers[layer + 1].fired[active] / n_tokens
        now = here.fired[active]
        product = product * np.divide(here.fired_next[active], now, out=np.zeros(len(now)), where=now > 0)
        layer += 1


def persistence_result(config: PersistenceConfig, shown: bool = False) -> Result:
    """Persistence and survival in all bundles that the configuration names. `shown`: with a progress bar.

    Raises `ConfigError`, `DataError`.
    """
    opened = open_series(config.paths, config.force)
    steps: list[PersistencePoint] = []
    survival: list[SurvivalPoint] = []
    old = 0
    # A bundle that is in two series (its own alpha is 0) is told once.
    label_of = {id(each): series.label for series in reversed(opened.series) for each in series.everything}
    all_of = [(label_of[id(each)], each) for each in opened.bundles]
    work = sum(len(each.bundle.layers) for _, each in all_of)
    with PassProgress("persistence", work, shown, unit="layers") as progress:
        for label, each in all_of:
            layers, n_tokens = _firing(each.bundle, progress.advance), each.bundle.n_tokens
            old += any(here.fired_runs is None for here in layers.values())
            for layer, here in layers.items():
                if layer + 1 in layers:
                    steps.append(persistence_point(label, each.step, layer, here, layers[layer + 1], n_tokens))
                survival += survival_points(label, each.step, layers, layer, n_tokens)
    if not steps:
        raise ConfigError(
            [Problem("bundles", "none of them has two layers that follow each other; collect all layers")]
        )
    if not any(point.start == config.start for point in survival):
        raise ConfigError([Problem("start", f"no bundle has layer {config.start}")])
    newest = _newest(opened) & {(point.series, point.step) for point in steps}
    if not newest:
        told = "none of the newest ones of a run has two layers that follow each other; collect all layers"
        raise ConfigError([Problem("bundles", told)])
    lines, tail = opened.provenance(), tail_of(opened)
    look = looks([(series.label, series.any.run) for series in opened.series])
    figure = persistence_figure(
        [p for p in steps if (p.series, p.step) in newest],
        [p for p in survival if (p.series, p.step) in newest], look, tail, config.start, lines,
    )  # fmt: skip
    warnings = [
        f"{old} of {len(all_of)} bundles were collected before runs over several layers were counted: their "
        "survival ends after one layer; collect them again."
    ] if old else []  # fmt: skip
    return Result(
        kind="persistence",
        title="Persistence: does a dimension stay active over the layers?",
        statements=[
            *(f"Compared by force: {warning}." for warning in opened.warnings), *warnings,
            *persistence_statements(steps, survival, newest, tail, config.start),
        ],
        provenance=lines,
        tables={"persistence": persistence_table(steps), "survival": survival_table(survival)},
        drawings={
            "persistence": Drawing(
                title="Persistence and survival over depth", figure=figure,
                text="Left: how far the chance that an active neuron is active in the next layer is above its base "
                "rate there. Right: share of a layer's activity that goes on without a break through the next layers.",
            )
        },
        data={
            "persistence": [dataclasses.asdict(p) for p in steps],
            "survival": [dataclasses.asdict(p) for p in survival], "settings": vars(config),
        },
    )  # fmt: skip


def _newest(opened: Opened) -> set[tuple[str, int | None]]:
    """(series, step) of what a figure shows: the newest checkpoint and the initial weights."""
    return {
        (series.label, each.step)
        for series in opened.series for each in (series.last, series.initial) if each is not None
    }  # fmt: skip


def _firing(bundle: Bundle, advance: Callable[[int], None]) -> dict[int, LayerFiring]:
    found = {}
    for layer in bundle.layers:
        found[layer] = LayerFiring.of(bundle.layer(layer).stats)
        advance(1)
    return found
