"""A plan with its model: every removal that is not there already, then attribution and direct effects."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from topklm.checkpoint.load import LoadedConfig
from topklm.errors import ConfigError, DataError, Problem
from topklm.interp.ablation.attribution import Attribution, attribute
from topklm.interp.ablation.config import AblateConfig
from topklm.interp.ablation.direct import Direct, direct_effects
from topklm.interp.ablation.effects import Effect, Effects
from topklm.interp.ablation.losses import Reader
from topklm.interp.ablation.plan import Plan
from topklm.interp.ablation.store import EffectStore
from topklm.interp.neurons import Neuron
from topklm.interp.progress import PassProgress
from topklm.model import Transformer

log = logging.getLogger("topklm.interp")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that was measured."""

    effects: dict[tuple[Neuron, str], Effect]
    """Of targets and controls, by neuron and variant."""
    attribution: Attribution
    """Over the windows of the overall effect."""
    means: np.ndarray
    """float64 [L, N]: means over the bundle; NaN in layers that it does not have."""
    direct: dict[Neuron, Direct]
    """Of the targets."""
    loss: float
    """Of the model as it is, over the windows of the overall effect, in nats a token."""


def measure(config: AblateConfig, plan: Plan, model: Transformer, loaded: LoadedConfig) -> Measured:
    """Measure what is not in `config.out` already, with a progress bar.

    Raises `ConfigError` if the bundle is of another alpha, or `out` holds effects of other settings; `DataError` if the
    tokens are not ones that the model knows.
    """
    _check(config, plan, loaded)
    store = EffectStore(Path(config.out), settings_of(config, plan, loaded), config.overwrite)
    reader = Reader(model, plan.corpus, config.batch_size)
    effects = Effects(plan, reader, config.top_contexts)
    todo = [(neuron, variant) for neuron in plan.all_neurons() for variant in plan.variants_of(neuron)]
    tokens = sum(effects.tokens(neuron) for neuron, _ in todo)
    log.info(
        "%d neurons and %d controls, %d removals of about %s tokens each: %s tokens to read",
        len(plan.targets), len(plan.all_neurons()) - len({t.neuron for t in plan.targets}), len(todo),
        f"{tokens // max(len(todo), 1):,}", f"{tokens:,}",
    )  # fmt: skip
    found: dict[tuple[Neuron, str], Effect] = {}
    targets = [target.neuron for target in plan.targets]
    starts = plan.windows.tolist()
    once = len(starts) * plan.corpus.context
    with PassProgress("ablate", tokens + 5 * once, True) as progress:
        for neuron, variant in todo:
            effect = store.get(neuron, variant)
            if effect is None:
                effect = effects.measure(neuron, variant)
                store.add(effect)
                progress.advance(effects.tokens(neuron))
            else:
                progress.skip(effects.tokens(neuron))
            found[neuron, variant] = effect
        attribution = attribute(reader, starts, lambda n: progress.advance(3 * n))  # a backward pass is two forward
        direct = direct_effects(reader, starts, targets, progress.advance)
        loss = float(reader.losses(starts).mean())
        progress.advance(once)
    means = np.full((len(model.layers), model.config.dim), np.nan)
    for layer in plan.bundle.layers:
        means[layer] = plan.bundle.layer(layer).stats.sum / plan.bundle.n_tokens
    return Measured(effects=found, attribution=attribution, means=means, direct=direct, loss=loss)


def settings_of(config: AblateConfig, plan: Plan, loaded: LoadedConfig) -> dict[str, Any]:
    """Everything that an effect depends on beside its neuron and its variant."""
    return {
        "checkpoint": {"step": loaded.step, "sha256": loaded.sha256, "path": str(loaded.path.resolve())},
        "bundle": plan.bundle.sha256,
        "alpha": loaded.alpha,
        "windows": plan.windows.tolist(),
        "top_contexts": config.top_contexts,
        "dtype": config.dtype,
    }


def _check(config: AblateConfig, plan: Plan, loaded: LoadedConfig) -> None:
    known = plan.bundle.meta.model.alpha
    if known != loaded.alpha:
        told = f"{config.bundle} was collected at alpha {known}, the model runs at {loaded.alpha}"
        if not config.force:
            raise ConfigError([Problem("bundle", f"{told}; collect one at that alpha, or take it with force=true")])
        log.warning("%s; taken all the same", told)
    if plan.bundle.vocab_size > loaded.model.vocab_size:
        types = f"{plan.bundle.vocab_size} token types, the model {loaded.model.vocab_size}"
        raise DataError(f"{config.bundle} has {types}; collect a bundle of this model")
