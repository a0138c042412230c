"""What is to be steered and compared with what, settled from files before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from topklm.bundles import Bundle
from topklm.checkpoint.load import read_description, resolve, stored_tokenizers
from topklm.data import Tokenizer
from topklm.errors import CheckpointError, ConfigError, DataError, Problem
from topklm.interp.neurons import Neuron
from topklm.interp.own_bundle import open_own_bundle
from topklm.interp.steering.concept import Concept, concepts_of, written_by
from topklm.interp.steering.config import DoseConfig, SteerConfig
from topklm.interp.steering.controls import draw_controls
from topklm.interp.steering.offsets import Offset
from topklm.interp.steering.scale import Scale, scale_from_bundle
from topklm.model import ModelConfig, Transformer

log = logging.getLogger("topklm.interp")


@dataclass(frozen=True, kw_only=True)
class Control:
    """A neuron that a steered one is compared with."""

    neuron: Neuron
    density: float
    """Share of the bundle's tokens in which it fired."""
    offsets: list[float]
    """Its offset at each of the steered neuron's doses."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A neuron that is steered."""

    neuron: Neuron
    scale: Scale | None
    """Percentile of its activation; None where it is not known and no offset needs it."""
    offsets: list[float]
    """Absolute, ascending; empty until a percentile that they need is known."""
    concept: Concept | None
    """What it reads, its top-token set; None without a bundle, or where it has none (texts only)."""
    written: Concept | None = None
    """What it writes; None where that is not asked for."""
    density: float = float("nan")
    """Share of the bundle's tokens in which it fired."""
    controls: Sequence[Control] = ()
    """None but for a dose-response."""

    def multiple(self, offset: float) -> float | None:
        """An offset in units of the percentile; None where that is not known or not above 0."""
        return None if self.scale is None or self.scale.value <= 0 else offset / self.scale.value


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything but the model."""

    checkpoint: Path
    model: ModelConfig
    tokenizer: Tokenizer
    doses: list[Offset]
    targets: list[Target]
    bundle: Bundle | None


def make_plan(config: SteerConfig) -> Plan:
    """Check a configuration against its checkpoint and its bundle; no weights are read.

    Raises `ConfigError` with all problems: neurons that do not exist or are silent, a bundle of another checkpoint or
    another reading, no percentile to multiply with, no control in reach. `CheckpointError` for the checkpoint's own.
    """
    checkpoint = resolve(Path(config.ckpt))
    model, _, _ = read_description(checkpoint)
    tokenizer = next(iter(stored_tokenizers(checkpoint)), None)
    if tokenizer is None:
        raise CheckpointError(f"{checkpoint} has no tokenizer beside it; text needs one")
    neurons, doses = _asked(config), config.doses()
    problems = [problem for neuron in neurons for problem in _out_of_range(neuron, model, config.paper_layers)]
    bundle, wrong = _open(config, checkpoint, neurons)
    problems += wrong
    if problems or bundle is None:
        if problems:
            raise ConfigError(problems)
        offsets = [] if any(dose.relative for dose in doses) else _absolute(doses, None)
        targets = [Target(neuron=neuron, scale=None, offsets=offsets, concept=None) for neuron in neurons]
    else:
        targets, problems = _targets(config, bundle, neurons, doses, tokenizer)
        if problems:
            raise ConfigError(problems)
    return Plan(
        checkpoint=checkpoint, model=model, tokenizer=tokenizer, doses=doses, targets=targets, bundle=bundle
    )  # fmt: skip


def with_scales(plan: Plan, scales: Mapping[Neuron, Scale]) -> Plan:
    """The plan with percentiles that were measured. Raises `ConfigError` where one is not above 0."""
    if problems := [p for neuron, scale in scales.items() for p in _no_unit(neuron, scale)]:
        raise ConfigError(problems)
    targets = [
        replace(target, scale=scale, offsets=_absolute(plan.doses, scale.value))
        for target in plan.targets
        if (scale := scales[target.neuron])
    ]
    return replace(plan, targets=targets)


def with_written(plan: Plan, model: Transformer, config: DoseConfig) -> Plan:
    """The plan of a dose-response with the tokens that each neuron writes, if they are asked for."""
    if plan.bundle is None or not config.written:
        return plan
    found = written_by(
        model, plan.bundle, [target.neuron for target in plan.targets], config.written,
        min_count=config.concept.min_count, special=special_tokens(plan.tokenizer),
    )  # fmt: skip
    return replace(plan, targets=[replace(target, written=found[target.neuron]) for target in plan.targets])


def special_tokens(tokenizer: Tokenizer) -> list[int]:
    """BOS and EOS, which are no part of a concept."""
    return [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]


def _targets(
    config: SteerConfig, bundle: Bundle, neurons: list[Neuron], doses: list[Offset], tokenizer: Tokenizer
) -> tuple[list[Target], list[Problem]]:
    problems: list[Problem] = []
    settings = config.concept if isinstance(config, DoseConfig) else DoseConfig().concept
    concepts = concepts_of(bundle, neurons, settings, special_tokens(tokenizer))
    targets = []
    for neuron in neurons:
        stats = bundle.layer(neuron.layer).stats
        density = stats.fired / bundle.n_tokens
        concept = concepts.get(neuron)
        if not stats.fired[neuron.index]:
            problems.append(
                Problem("neuron", f"{neuron} is silent: it never fired in the {bundle.n_tokens:,} tokens of the bundle")
            )
            continue
        scale = scale_from_bundle(stats, neuron.index, bundle.n_tokens, config.percentile)
        if any(dose.relative for dose in doses):
            problems += _no_unit(neuron, scale)
        if concept is None or not len(concept.tokens):
            concept = None
            if isinstance(config, DoseConfig):
                told = f"{neuron} has no token type of {settings.min_count} occurrences with a positive mean"
                problems.append(Problem("neuron", told))
        target = Target(
            neuron=neuron, scale=scale, offsets=_absolute(doses, scale.value), concept=concept,
            density=float(density[neuron.index]),
        )  # fmt: skip
        if isinstance(config, DoseConfig):
            controls, wrong = _controls(config, bundle, target, density)
            problems += wrong
            target = replace(target, controls=controls)
        targets.append(target)
    return targets, problems


def _controls(
    config: DoseConfig, bundle: Bundle, target: Target, density: np.ndarray
) -> tuple[list[Control], list[Problem]]:
    neuron = target.neuron
    seed = (config.seed, neuron.layer, neuron.index)
    drawn = draw_controls(density, neuron.index, config.controls, config.density_tolerance, seed)
    if not len(drawn):
        advice = "set a larger density_tolerance"
        return [], [
            Problem("controls", f"no neuron of layer {neuron.layer} has about the density of {neuron}; {advice}")
        ]
    if len(drawn) < config.controls:
        log.warning(
            "%s has %d neurons of about its density (%.3g %%) in its layer, not %d controls",
            neuron, len(drawn), 100 * target.density, config.controls,
        )  # fmt: skip
    found, problems = [], []
    for index in drawn.tolist():
        offsets = target.offsets
        if config.control_dose == "own":
            stats = bundle.layer(neuron.layer).stats
            scale = scale_from_bundle(stats, index, bundle.n_tokens, config.percentile)
            own = Neuron(neuron.layer, index)
            problems += [Problem("control_dose", str(p)) for p in (*_no_unit(own, scale), *_no_unit_of(target))]
            offsets = [(target.multiple(offset) or 0.0) * scale.value for offset in offsets]
        found.append(Control(neuron=Neuron(neuron.layer, index), density=float(density[index]), offsets=offsets))
    return found, problems


def _asked(config: SteerConfig) -> list[Neuron]:
    try:
        return config.neurons()
    except DataError as error:
        raise ConfigError([Problem("candidates", str(error))]) from error


def _open(config: SteerConfig, checkpoint: Path, neurons: list[Neuron]) -> tuple[Bundle | None, list[Problem]]:
    if config.bundle is None:
        return None, []
    bundle, problems = open_own_bundle(config.bundle, checkpoint, config.force)
    if bundle is None:
        return None, problems
    absent = sorted({neuron.layer for neuron in neurons} - set(bundle.layers))
    if absent:
        problems.append(Problem("bundle", f"{config.bundle} has no layer {', '.join(map(str, absent))}"))
    return bundle, problems


def _out_of_range(neuron: Neuron, model: ModelConfig, from_one: bool) -> list[Problem]:
    problems = []
    if neuron.layer >= model.n_layers:
        shown = f"1 ... {model.n_layers}" if from_one else f"0 ... {model.n_layers - 1}"
        told = f"{neuron.layer + from_one}:{neuron.index}: the model's layers are {shown}"
        if neuron.layer == model.n_layers and not from_one:
            told += " (the paper counts from 1: paper_layers=true)"
        problems.append(Problem("neuron", told))
    if neuron.index >= model.dim:
        problems.append(Problem("neuron", f"{neuron}: the model's neurons are 0 ... {model.dim - 1}"))
    return problems


def _no_unit(neuron: Neuron, scale: Scale) -> list[Problem]:
    if scale.value > 0:
        return []
    told = f"P{scale.percentile:g} of {neuron}'s activation is {scale.value:g} over {scale.n_tokens:,} tokens"
    return [Problem("offset", f"{told}: no unit for multiples; give absolute offsets, or a higher percentile")]


def _no_unit_of(target: Target) -> list[Problem]:
    return [] if target.scale is None else _no_unit(target.neuron, target.scale)


def _absolute(doses: list[Offset], unit: float | None) -> list[float]:
    """Ascending, each once: 8 and 2x may be the same."""
    return sorted({dose.absolute(unit) for dose in doses})
