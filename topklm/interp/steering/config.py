"""The configuration of `apps.steer`: whose neurons, which offsets, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

from topklm.config import Verbatim
from topklm.errors import Problem
from topklm.generate import SamplingConfig
from topklm.interp.neurons import Neuron, parse_neurons, result_neurons
from topklm.interp.statistics.collect_config import token_count
from topklm.interp.steering.concept import ConceptSettings
from topklm.interp.steering.offsets import Offset, parse_offsets


@dataclass(frozen=True, kw_only=True)
class SteerConfig(SamplingConfig):
    """Texts of a steered model beside those of the same model unsteered; defaults of the sampling are the paper's."""

    ckpt: str = ""
    """A run's dump_dir, a checkpoint directory, or a consolidated file."""
    neuron: Verbatim = ""
    """LAYER:INDEX, several with commas: 21:894,19:1439. Each is steered by itself."""
    candidates: Verbatim | None = None
    """Directory of a result whose neurons to steer (apps.label candidates), as well or instead."""
    n: int = 1
    """Only the first so many of `candidates`."""
    paper_layers: bool = False
    """Layers in `neuron` count from 1, as in the paper: its 22:894 is 21:894 here."""
    offset: float | str | None = None
    """What is added to the neuron's pre-activation: 8, or a multiple of the percentile of its activation, 2x."""
    offsets: list[float | str] = field(default_factory=list)
    """Several: [0.5x, 1x, 2x, 8]."""
    relative: bool = False
    """All offsets are multiples of the percentile."""
    percentile: float = 99.9
    """Which percentile of the neuron's activation over held-out tokens multiples are of."""
    bundle: str | None = None
    """Statistics of this checkpoint (apps.collect): percentiles, and the tokens that a neuron responds to."""
    data: str | None = None
    """Directory of the prepared sources on which percentiles are measured without a bundle; null: what the run was
    trained on."""
    data_tokens: int | str = "100k"
    """At most so many held-out tokens for that."""
    prompt: Verbatim = "Once upon a time,"
    """What is continued."""
    bos: bool | None = None
    """Whether the prompt begins with the BOS token; null: as the texts of the model's training did."""
    temperature: float = 0.7
    """Divides the logits; 0 takes the most probable token always (greedy)."""
    top_k: int | None = 50
    """Only the k most probable tokens can be drawn; null: all."""
    top_p: float | None = 0.9
    """Only the fewest most probable tokens whose probabilities reach this sum can be drawn; null or 1: all."""
    alpha: float | None = None
    """1 dense ... 0 TopK; null: the checkpoint's own."""
    batch_size: int = 64
    """Texts that are made together."""
    device: str = "auto"
    """Where it runs: cpu, cuda, cuda:1; auto: a GPU if there is one."""
    dtype: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of weights and computation."""
    out: str | None = None
    """Directory of the texts (samples.jsonl), tables and figures; null: texts are printed only. The same command again
    goes on where it was."""
    overwrite: bool = False
    """Replace texts of other settings in `out`."""
    force: bool = False
    """Take a bundle that is of another checkpoint; the difference is told."""

    def neurons(self) -> list[Neuron]:
        """The steered neurons, those of `neuron` first, each once, layers counted from 0. Reads `candidates`.

        Raises `ValueError` for `neuron`, `DataError` for `candidates`.
        """
        found = self._named()
        if self.candidates is not None:
            found += result_neurons(self.candidates)[: self.n]
        return list(dict.fromkeys(found))

    def doses(self) -> list[Offset]:
        """The offsets in ascending order. Raises `ValueError`."""
        given = [] if self.offset is None else [self.offset]
        return parse_offsets([*given, *self.offsets], self.relative)

    def _named(self) -> list[Neuron]:
        return parse_neurons(self.neuron, 1 if self.paper_layers else 0) if self.neuron.strip() else []

    def sampling(self) -> SamplingConfig:
        """The settings of `topklm.generate`."""
        return SamplingConfig(**{f.name: getattr(self, f.name) for f in fields(SamplingConfig)})

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if not self.ckpt:
            yield Problem("ckpt", "is missing: a run's dump_dir, a checkpoint or a consolidated file")
        if not self.neuron.strip() and self.candidates is None:
            told = "is missing: LAYER:INDEX, such as 21:894; layers count from 0; or candidates=DIR of apps.label"
            yield Problem("neuron", told)
        try:
            self._named()
        except ValueError as error:
            yield Problem("neuron", str(error))
        if self.n < 1:
            yield Problem("n", f"{self.n} is below 1")
        if self.offset is None and not self.offsets:
            yield Problem("offset", "is missing: a number, such as 8, or a multiple of the percentile, such as 2x")
        else:
            try:
                self.doses()
            except ValueError as error:
                yield Problem("offset" if self.offset is not None else "offsets", str(error))
        if not 0 < self.percentile <= 100:
            yield Problem("percentile", f"{self.percentile} is not in (0, 100]")
        if not token_count(self.data_tokens):
            yield Problem("data_tokens", f"{self.data_tokens!r} is not a number of tokens above 0, such as 100k")
        if self.batch_size < 1:
            yield Problem("batch_size", f"{self.batch_size} is below 1")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            yield Problem("alpha", f"{self.alpha} is not in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DoseConfig(SteerConfig):
    """A dose-response measurement against controls."""

    offsets: list[float | str] = field(default_factory=lambda: ["0.25x", "0.5x", "1x", "2x", "4x"])
    """The doses, as multiples of the percentile or absolute."""
    n_samples: int = 32
    """Texts of each neuron and dose, with the same random numbers for each."""
    out: str | None = "report/steering"
    """Directory of the texts (samples.jsonl), tables and figures. The same command again goes on where it was."""
    controls: int = 19
    """Random neurons of the same layer and about the same density. A p-value cannot be below 1 / (1 + controls)."""
    density_tolerance: float = 2.0
    """A control's density is within this factor of the steered neuron's."""
    control_dose: Literal["same", "own"] = "same"
    """same: controls get the steered neuron's offsets; own: the same multiples of their own percentiles."""
    concept: ConceptSettings = field(default_factory=ConceptSettings)
    """Which tokens count as the steered neuron's concept, for it and for its controls."""
    written: int = 20
    """Count, from the same texts, also the tokens that the neuron writes: so many, those with the largest direct effect
    on their logits. 0: only those that it responds to."""
    bootstrap: int = 2000
    """Draws of texts behind each interval."""
    level: float = 0.95
    """Of the intervals."""
    shown_samples: int = 2
    """Texts of each dose in the table."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.bundle is None:
            yield Problem("bundle", "is missing: statistics of this checkpoint, python -m apps.collect ckpt=...")
        if self.out is None:
            yield Problem("out", "is null: give a directory")
        if self.offset is not None:
            yield Problem("offset", "is for texts; a dose-response takes a grid, offsets=[1x,2x]")
        if self.controls < 1:
            yield Problem("controls", f"{self.controls} is below 1: without controls there is nothing to compare with")
        if not 1 <= self.density_tolerance < float("inf"):
            yield Problem("density_tolerance", f"{self.density_tolerance} is a factor of at least 1")
        if self.n_samples < 2:
            yield Problem("n_samples", f"{self.n_samples}: an interval over texts needs 2 at least, better 32")
        if self.bootstrap < 100:
            yield Problem("bootstrap", f"{self.bootstrap} is below 100")
        if not 0 < self.level < 1:
            yield Problem("level", f"{self.level} is not in (0, 1)")
        for name in ("shown_samples", "written"):
            if getattr(self, name) < 0:
                yield Problem(name, f"{getattr(self, name)} is negative")
        if self.temperature == 0:
            yield Problem("temperature", "0 is greedy: all texts of a dose would be the same")
        if self.concept.min_count < 1 or self.concept.cap < 1:
            yield Problem("concept", "min_count and cap must be at least 1")
        if not 0 < self.concept.percentile <= 100 or not 0 <= self.concept.share <= 1:
            yield Problem("concept", "percentile must be in (0, 100] and share in [0, 1]")
