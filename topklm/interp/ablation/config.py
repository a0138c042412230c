"""The configuration of `apps.ablate`: whose neurons, how they are removed, and on which tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from topklm.config import Verbatim
from topklm.errors import Problem
from topklm.interp.neurons import Neuron, parse_neurons
from topklm.interp.statistics.collect_config import token_count

Variant = Literal["zero", "refill", "mean"]
VARIANTS: tuple[Variant, ...] = ("zero", "refill", "mean")


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Neurons that are removed one at a time, and random neurons of equal density beside them."""

    ckpt: str = ""
    """A run's dump_dir, a checkpoint directory, or a consolidated file."""
    bundle: str | None = None
    """Statistics of this checkpoint (apps.collect): tokens, means, densities and top contexts."""
    neurons: Verbatim = ""
    """LAYER:INDEX, several with commas: [21:894, 19:1439]; layers count from 0."""
    file: Verbatim | None = None
    """Neurons from a file, one LAYER:INDEX a line, or from the directory of a result (apps.label candidates)."""
    layers: list[int] = field(default_factory=list)
    """`n` random neurons of each of these layers, of those that fire."""
    n: int = 16
    """At most so many neurons of each of `layers`, and of `file`."""
    variants: list[Variant] = field(default_factory=lambda: list(VARIANTS))
    """zero: 0 after the cut, its place stays empty; refill: the next in rank takes the place (TopK layers only);
    mean: the neuron's mean over the bundle."""
    data: str | None = None
    """Directory of the prepared sources that the bundle was collected over; null: what the run was trained on."""
    tokens: int | str = "32k"
    """At most so many of the bundle's tokens for the overall effect, in windows spaced evenly; all if fewer."""
    top_contexts: int = 16
    """So many of the bundle's top contexts of each neuron."""
    controls: int = 8
    """Random neurons of the same layer and about the same density for each neuron."""
    density_tolerance: float = 2.0
    """A control's density is within this factor of the neuron's."""
    bootstrap: int = 2000
    """Draws of windows behind each interval."""
    level: float = 0.95
    """Of the intervals."""
    seed: int = 0
    """Of the controls, of the neurons of `layers` and of the draws."""
    alpha: float | None = None
    """1 dense ... 0 TopK; null: the checkpoint's own. It must be the bundle's."""
    batch_size: int | None = None
    """Windows in a forward pass; null: about 2,048 tokens on a CPU, 32,768 on a GPU."""
    device: str = "auto"
    """Where it runs: cpu, cuda, cuda:1; auto: a GPU if there is one."""
    dtype: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of weights and computation. Effects are small: below fp32 rounding shows in them."""
    out: str = "report/ablation"
    """Directory of the figures, tables and effects.jsonl. The same command again goes on where it was."""
    overwrite: bool = False
    """Replace effects of other settings in `out`."""
    force: bool = False
    """Take a bundle that is of another checkpoint; the difference is told."""

    def named(self) -> list[Neuron]:
        """The neurons in `neurons`. Raises `ValueError`."""
        return parse_neurons(self.neurons) if self.neurons.strip() else []

    def problems(self) -> Iterator[Problem]:
        if not self.ckpt:
            yield Problem("ckpt", "is missing: a run's dump_dir, a checkpoint or a consolidated file")
        if self.bundle is None:
            yield Problem("bundle", "is missing: statistics of this checkpoint, python -m apps.collect ckpt=...")
        if not (self.neurons.strip() or self.file or self.layers):
            yield Problem("neurons", "is missing: LAYER:INDEX, such as 21:894; or file=..., or layers=[3]")
        try:
            self.named()
        except ValueError as error:
            yield Problem("neurons", str(error))
        if not self.variants or len(set(self.variants)) < len(self.variants):
            yield Problem("variants", f"{self.variants}: give one or more of {', '.join(VARIANTS)}, each once")
        if not token_count(self.tokens):
            yield Problem("tokens", f"{self.tokens!r} is not a number of tokens above 0, such as 32k")
        for name, least in (("n", 1), ("controls", 0), ("top_contexts", 1), ("bootstrap", 100), ("seed", 0)):
            if getattr(self, name) < least:
                yield Problem(name, f"{getattr(self, name)} is below {least}")
        if self.batch_size is not None and self.batch_size < 1:
            yield Problem("batch_size", f"{self.batch_size} is below 1")
        if not 1 <= self.density_tolerance < float("inf"):
            yield Problem("density_tolerance", f"{self.density_tolerance} is not a factor of at least 1")
        if not 0 < self.level < 1:
            yield Problem("level", f"{self.level} is not in (0, 1)")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            yield Problem("alpha", f"{self.alpha} is not in [0, 1]")
