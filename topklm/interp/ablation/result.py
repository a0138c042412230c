"""From what was measured to figures, tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from topklm.checkpoint.load import LoadedConfig
from topklm.interp.ablation.config import AblateConfig
from topklm.interp.ablation.effects import Effect
from topklm.interp.ablation.measure import Measured
from topklm.interp.ablation.plan import Plan, Target
from topklm.interp.steering.estimate import draws, interval, ratio
from topklm.report.ablation import (
    WHERE,
    Ablated,
    Compared,
    attribution_table,
    caveats,
    draw_attribution,
    draw_effects,
    effects_tables,
    findings,
    logits_table,
    strongest_table,
)
from topklm.report.result import Drawing, Result
from topklm.report.steering import Estimate

PIECES = 6
"""Tokens shown of each end of a direct logit effect."""
STRONGEST = 20
"""Neurons shown of all that were attributed."""


def ablation_result(config: AblateConfig, plan: Plan, measured: Measured, loaded: LoadedConfig) -> Result:
    """The result as `apps.ablate` writes it."""
    rows = [_ablated(config, plan, measured, target) for target in plan.targets]
    compared = _compared(plan, measured)
    lines = provenance(config, plan, measured, loaded)
    drawings = {
        "effects": Drawing(
            title="Loss without a neuron",
            text="Change of the loss when one neuron is removed, with intervals, beside random neurons of the same "
            "layer and about the same density (grey); 0: no change.",
            figure=draw_effects(rows, config.variants, lines),
        )
    }
    if compared:
        drawings["attribution"] = Drawing(
            title="Gradient times activation against removal",
            text="Each point is a neuron: the first-order estimate of the change of the loss against the measured one; "
            "on the line they are equal.",
            figure=draw_attribution(compared, lines),
        )
    tables = {
        **{f"effects_{where}": table for where, table in effects_tables(rows, config.level).items()},
        "logits": logits_table(rows),
        "attribution": attribution_table(compared),
        "strongest": strongest_table(_strongest(plan, measured), STRONGEST),
    }
    return Result(
        kind="ablation",
        title="Ablation of neurons",
        statements=[*findings(rows, compared, measured.loss), *caveats(rows)],
        provenance=lines,
        tables={name: table for name, table in tables.items() if table.rows},
        drawings=drawings,
        data=_data(config, plan, measured, rows),
    )


def provenance(config: AblateConfig, plan: Plan, measured: Measured, loaded: LoadedConfig) -> list[str]:
    """Where the numbers come from."""
    meta = plan.bundle.meta
    parts = ", ".join(f"{part.source}/{part.split} {part.fingerprint[:12]}" for part in meta.corpus.parts)
    alpha = "dense model" if loaded.alpha is None else f"alpha {loaded.alpha:g}"
    forced = ""
    if meta.model.sha256 != loaded.sha256:
        forced += f", OF ANOTHER CHECKPOINT ({(meta.model.sha256 or 'no hash')[:12]})"
    if meta.model.alpha != loaded.alpha:
        forced += f", AT ANOTHER ALPHA ({meta.model.alpha:g})" if meta.model.alpha is not None else ", OF A DENSE MODEL"
    return [
        f"model: {meta.model.run}, {loaded.path}, step {loaded.step}, {(loaded.sha256 or 'no hash')[:12]}, {alpha}, "
        f"{config.dtype}",
        f"bundle: {plan.bundle.path}, {plan.bundle.sha256[:12]}, {plan.bundle.n_tokens:,} tokens of {parts}{forced}",
        f"overall: {measured.attribution.n_tokens:,} predicted tokens in {len(plan.windows):,} windows of "
        f"{plan.corpus.context}, loss {measured.loss:.4f} nats; intervals: {config.level:.0%}, {config.bootstrap:,} "
        f"draws of windows, seed {config.seed}; controls: {config.controls} of the same layer within a factor "
        f"{config.density_tolerance:g} of the density",
    ]


def _ablated(config: AblateConfig, plan: Plan, measured: Measured, target: Target) -> Ablated:
    neuron = target.neuron
    variants: list[str] = [*plan.variants_of(neuron)]
    context = plan.corpus.context
    effects = {
        variant: _estimates(measured.effects[neuron, variant], context, config) for variant in variants
    }  # fmt: skip
    controls = {
        variant: {
            where: [_figures(measured.effects[control, variant], context)[where] for control in target.controls]
            for where in WHERE
        }
        for variant in variants
    }
    direct = measured.direct[neuron]
    order = np.argsort(-direct.logits, kind="stable")
    pieces = plan.bundle.tokens
    shown: tuple[list[Any], list[Any]] = ([], [])
    if direct.fired and np.isfinite(direct.logits).all():
        shown = (order[:PIECES].tolist(), order[::-1][:PIECES].tolist())
    to_mean = measured.attribution.to(np.nan_to_num(measured.means))
    return Ablated(
        neuron=str(neuron),
        kind=target.kind,
        density=target.density,
        contexts=int(measured.effects[neuron, variants[0]].contexts.sum()),
        effects=effects,
        controls=controls,
        control_neurons=[str(control) for control in target.controls],
        attribution=float(measured.attribution.to(0.0)[neuron.layer, neuron.index]),
        attribution_mean=float(to_mean[neuron.layer, neuron.index]),
        fired=direct.fired,
        survival=direct.survival,
        scale=direct.scale,
        promoted=[(_piece(pieces, i), float(direct.logits[i])) for i in shown[0]],
        suppressed=[(_piece(pieces, i), float(direct.logits[i])) for i in shown[1]],
    )


def _piece(pieces: Sequence[str] | None, i: int) -> str:
    return str(i) if pieces is None else pieces[i]


def _sums(effect: Effect, context: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(nats, predictions) of each window, by where."""
    return {
        "overall": (effect.overall, np.full(len(effect.overall), context - 1.0)),
        "windows": (effect.windows, np.full(len(effect.windows), context - 1.0)),
        "at": (effect.at, effect.contexts.astype(np.float64)),
    }


def _figures(effect: Effect, context: int) -> dict[str, float]:
    return {where: float(ratio(*sums)) for where, sums in _sums(effect, context).items()}


def _estimates(effect: Effect, context: int, config: AblateConfig) -> dict[str, Estimate]:
    found = {}
    for where, (nats, n) in _sums(effect, context).items():
        # Draws of a single window are all the same: no interval, and not one of width 0.
        drawn = draws(len(nats), config.bootstrap, config.seed) if len(nats) > 1 else np.empty((0, 0), np.int64)
        found[where] = interval(float(ratio(nats, n)), ratio(nats[drawn], n[drawn]), config.level)
    return found


def _compared(plan: Plan, measured: Measured) -> list[Compared]:
    """Estimate and measurement of each neuron that was set to 0, or to its mean, without refill."""
    to_mean = measured.attribution.to(np.nan_to_num(measured.means))
    to_zero = measured.attribution.to(0.0)
    targets = {target.neuron for target in plan.targets}
    found = []
    for (neuron, variant), effect in measured.effects.items():
        if variant == "refill":
            continue
        estimate = (to_zero if variant == "zero" else to_mean)[neuron.layer, neuron.index]
        found.append(
            Compared(
                neuron=str(neuron), layer=neuron.layer, variant=variant, is_target=neuron in targets,
                estimate=float(estimate), effect=_figures(effect, plan.corpus.context)["overall"],
            )
        )  # fmt: skip
    return found


def _strongest(plan: Plan, measured: Measured) -> list[tuple[str, float, float]]:
    """(neuron, estimate of its removal, density) of all neurons of the bundle's layers that fired, by falling size."""
    to_zero = measured.attribution.to(0.0)
    found = []
    for layer in plan.bundle.layers:
        density = plan.bundle.layer(layer).stats.fired / plan.bundle.n_tokens
        found += [
            (f"{layer}:{i}", float(to_zero[layer, i]), float(density[i])) for i in np.flatnonzero(density).tolist()
        ]
    return sorted(found, key=lambda row: -abs(row[1]))[:STRONGEST]


def _data(config: AblateConfig, plan: Plan, measured: Measured, rows: Sequence[Ablated]) -> dict[str, Any]:
    return {
        "neurons": [row.neuron for row in rows],
        "loss": measured.loss,
        "n_tokens": measured.attribution.n_tokens,
        "level": config.level,
        "rows": [row.record() for row in rows],
        "attribution": {
            str(layer): [float(f"{value:.6g}") for value in values]
            for layer, values in enumerate(measured.attribution.to(0.0).tolist())
        },
        "windows": plan.windows.tolist(),
    }
