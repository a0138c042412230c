"""Which neurons, which controls and which windows, settled from files before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topklm.bundles import Bundle
from topklm.bundles.sketch import EMPTY
from topklm.checkpoint.load import read_description, resolve
from topklm.errors import ConfigError, DataError, Problem
from topklm.interp.ablation.config import AblateConfig, Variant
from topklm.interp.labels.corpus import BundleCorpus, open_corpus
from topklm.interp.neurons import Neuron, parse_neurons, result_neurons
from topklm.interp.own_bundle import open_own_bundle
from topklm.interp.statistics.collect_config import token_count
from topklm.interp.steering.controls import draw_controls
from topklm.sparsity.registry import activation_class

log = logging.getLogger("topklm.interp")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A neuron that is removed."""

    neuron: Neuron
    density: float
    """Share of the bundle's tokens in which it fired."""
    kind: str
    """topk or dense: its layer."""
    controls: Sequence[Neuron]
    """Neurons of its layer that fire about as often."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything but the model."""

    checkpoint: Path
    bundle: Bundle
    corpus: BundleCorpus
    windows: np.ndarray
    """int64 [w], ascending: positions of the windows of the overall effect."""
    targets: Sequence[Target]
    variants: Sequence[Variant]
    has_places: bool
    """Whether TopK layers select a fixed number of neurons, so that there is a refill."""

    def all_neurons(self) -> list[Neuron]:
        """Targets and controls, each once."""
        return sorted({n for target in self.targets for n in (target.neuron, *target.controls)})

    def variants_of(self, neuron: Neuron) -> list[Variant]:
        """Without refill where no fixed number is selected."""
        refills = self.has_places and self.bundle.layer(neuron.layer).kind != "dense"
        return [variant for variant in self.variants if variant != "refill" or refills]

    def top_positions(self, neuron: Neuron, n: int) -> np.ndarray:
        """int64 [m], m <= n: where it is most active, falling; not last tokens of windows, which nothing follows."""
        positions = self.bundle.layer(neuron.layer).stats.top.position[neuron.index]
        positions = positions[positions != EMPTY]
        inside = positions - self.window_of(positions) < self.corpus.context - 1
        return positions[inside][:n]

    def window_of(self, positions: np.ndarray) -> np.ndarray:
        """int64, like `positions`: where the window of each begins."""
        windows = self.bundle.windows
        return windows[np.searchsorted(windows, positions, side="right") - 1]


def make_plan(config: AblateConfig) -> Plan:
    """Check a configuration against its checkpoint, its bundle and its data; no weights are read.

    Raises `ConfigError` with all problems: neurons that do not exist or are silent, a bundle of another checkpoint or
    another reading, data that are not the bundle's; `CheckpointError` for the checkpoint's own.
    """
    checkpoint = resolve(Path(config.ckpt))
    model, topk, _ = read_description(checkpoint)
    bundle, problems = open_own_bundle(config.bundle or "", checkpoint, config.force)
    neurons, wrong = _asked(config)
    problems += wrong
    for neuron in neurons:
        if neuron.layer >= model.n_layers or neuron.index >= model.dim:
            bounds = f"layers 0 ... {model.n_layers - 1}, neurons 0 ... {model.dim - 1}"
            problems.append(Problem("neurons", f"{neuron}: the model has {bounds}"))
    if bad := [layer for layer in config.layers if not 0 <= layer < model.n_layers]:
        problems.append(Problem("layers", f"{bad}: the model has 0 ... {model.n_layers - 1}"))
    if problems or bundle is None:
        raise ConfigError(problems)
    absent = sorted({*config.layers, *(n.layer for n in neurons)} - set(bundle.layers))
    if absent:
        raise ConfigError([Problem("bundle", f"{bundle.path} has no layer {', '.join(map(str, absent))}")])
    densities = {layer: bundle.layer(layer).stats.fired / bundle.n_tokens for layer in bundle.layers}
    for layer in dict.fromkeys(config.layers):
        alive = np.flatnonzero(densities[layer] > 0)
        drawn = np.random.default_rng((config.seed, layer)).permutation(alive)[: config.n]
        neurons += [Neuron(layer, int(i)) for i in np.sort(drawn)]
    neurons = list(dict.fromkeys(neurons))
    problems = [
        Problem("neurons", f"{neuron} never fired on the bundle's {bundle.n_tokens:,} tokens: its removal does nothing")
        for neuron in neurons
        if densities[neuron.layer][neuron.index] == 0
    ]
    corpus = None
    try:
        corpus = open_corpus(bundle, config.data)
    except ConfigError as error:
        problems += error.problems
    if problems or corpus is None:
        raise ConfigError(problems)
    targets = [_target(config, bundle, densities[neuron.layer], neuron) for neuron in neurons]
    if lonely := [target for target in targets if config.controls and len(target.controls) < config.controls]:
        fewest = min(len(target.controls) for target in lonely)
        log.warning(
            "%d neurons have fewer than %d controls within a factor %g of their density (%d at least)",
            len(lonely), config.controls, config.density_tolerance, fewest,
        )  # fmt: skip
    activation = None if topk is None else activation_class(topk.activation)
    plan = Plan(
        has_places=activation is not None and activation.exact and activation.cuts,
        checkpoint=checkpoint, bundle=bundle, corpus=corpus, targets=targets, variants=config.variants,
        windows=_spaced(bundle.windows, max(1, (token_count(config.tokens) or 0) // corpus.context)),
    )  # fmt: skip
    if none := [str(neuron) for neuron in neurons if not plan.variants_of(neuron)]:
        told = f"{', '.join(none[:6])}: nothing is selected there, so nothing enters; add zero or mean"
        raise ConfigError([Problem("variants", told)])
    return plan


def _target(config: AblateConfig, bundle: Bundle, density: np.ndarray, neuron: Neuron) -> Target:
    seed = (config.seed, neuron.layer, neuron.index)
    drawn = draw_controls(density, neuron.index, config.controls, config.density_tolerance, seed)
    return Target(
        neuron=neuron, density=float(density[neuron.index]), kind=bundle.layer(neuron.layer).kind,
        controls=[Neuron(neuron.layer, int(i)) for i in drawn],
    )  # fmt: skip


def _spaced(windows: np.ndarray, n: int) -> np.ndarray:
    """n of the windows at equal distances, or all."""
    if n >= len(windows):
        return windows
    return windows[(np.arange(n) * 2 + 1) * len(windows) // (2 * n)]


def _asked(config: AblateConfig) -> tuple[list[Neuron], list[Problem]]:
    """Those of `neurons` and of `file`."""
    neurons = config.named()
    if config.file is None:
        return neurons, []
    path = Path(config.file)
    try:
        if path.is_dir():
            found = result_neurons(path)
        else:
            lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
            found = parse_neurons(",".join(line for line in lines if line))
    except DataError as error:
        return neurons, [Problem("file", str(error))]
    except (OSError, ValueError) as error:
        told = f"{path} names no neurons ({error}); give a file with one LAYER:INDEX a line, or a result's directory"
        return neurons, [Problem("file", told)]
    return neurons + found[: config.n], []
