"""The configuration of `apps.entropy`: which bundles, and which reading of the two entropies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from topklm.errors import Problem
from topklm.interp.entropy.response import Over
from topklm.interp.entropy.semantic_entropy import BinRange
from topklm.interp.entropy.token_entropy import Negative

Scope = Literal["neuron", "layer", "all"]


@dataclass(frozen=True, kw_only=True)
class EntropySettings:
    """Everything that decides the figures beside the bundle."""

    negative: Negative
    """What a mean activation below 0 counts in the token entropy: clamp (0), abs, or relu_first (mean of the positive
    part; the bundle needs positive_part=true where activations are negative)."""
    min_count: int
    """Token types that occurred less often are left out."""
    percentile: float
    """q of the threshold tau = share * P_q."""
    share: float
    """The paper's 0.7."""
    over: Over
    """Whether the percentile is over all means or the positive ones."""
    scope: Scope
    """Whether it is over the token types of one neuron, of all neurons of a layer, or of all layers."""
    bins: int
    """B, bins of the similarities."""
    bin_range: BinRange
    """fixed: [-1, 1] for all neurons; adaptive: each neuron's own range."""
    leave_one_out: bool
    """Leave coordinate i of the embedding out for neuron i."""
    cap: int
    """At most so many tokens of a neuron, those with the largest means."""
    draws: int
    """Random token sets behind each coherence's p-value; 0: none."""
    null_sets: int
    """Random token sets whose semantic entropy stands beside the neuron's; 0: none."""
    seed: int
    """Seed of the random sets."""


PRESETS: dict[str, EntropySettings] = {
    "paper": EntropySettings(
        negative="clamp", min_count=1, percentile=99.0, share=0.7, over="all", scope="neuron", bins=100,
        bin_range="adaptive", leave_one_out=False, cap=1000, draws=1000, null_sets=16, seed=0,
    ),
    "recommended": EntropySettings(
        negative="clamp", min_count=20, percentile=99.0, share=0.7, over="positive", scope="neuron", bins=100,
        bin_range="fixed", leave_one_out=True, cap=1000, draws=1000, null_sets=16, seed=0,
    ),
}  # fmt: skip
"""paper: what the paper says, and where it is silent the reading that its figures fit best. recommended: types that are
measured well, bins that neurons share, no coordinate that speaks for itself. docs/entropy.md gives the reasons."""


@dataclass(frozen=True, kw_only=True)
class EntropyConfig:
    """Entropies of one or more bundles. Settings that are null are the preset's."""

    bundle: list[str] = field(default_factory=list)
    """Bundles of `apps.collect`; bundle=A bundle=B on the command line is a list."""
    preset: Literal["recommended", "paper"] = "recommended"
    """Settings to begin with."""
    negative: Negative | None = None
    """Means below 0: clamp, abs or relu_first."""
    min_count: int | None = None
    """Token types that occurred less often are left out."""
    percentile: float | None = None
    """q of the threshold share * P_q."""
    share: float | None = None
    """Share of the percentile."""
    over: Over | None = None
    """all or positive means."""
    scope: Scope | None = None
    """neuron, layer or all."""
    bins: int | None = None
    """Bins of the similarities."""
    bin_range: BinRange | None = None
    """fixed or adaptive."""
    embedding: str = "own"
    """Whose token embeddings: own (each bundle's model), shared (the first bundle's model, for all), or a
    .safetensors or .npy file with one array [V, D]."""
    leave_one_out: bool | None = None
    """Leave coordinate i out for neuron i; null: the preset's, and false for another embedding than own."""
    cap: int | None = None
    """At most so many tokens of a neuron."""
    draws: int | None = None
    """Random sets behind each p-value."""
    null_sets: int | None = None
    """Random sets whose semantic entropy is shown beside."""
    seed: int | None = None
    """Seed of the random sets."""
    convergence: bool = True
    """Token entropy at the corpus sizes and halves that a bundle has apart."""
    force: bool = False
    """Compare bundles that differ in corpus, tokens, tokenizer or settings; the reasons are printed."""
    out: str | None = None
    """Directory of the results of one bundle; null: entropy/PRESET in the bundle's directory."""
    overwrite: bool = False
    """Compute again what is there with the same settings."""

    @property
    def settings(self) -> EntropySettings:
        """The preset with what is given here."""
        names = [f.name for f in dataclasses.fields(EntropySettings)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.embedding != "own" and self.leave_one_out is None:
            given["leave_one_out"] = False
        return dataclasses.replace(PRESETS[self.preset], **given)

    def problems(self) -> Iterator[Problem]:
        if not self.bundle:
            yield Problem("bundle", "is missing: a directory that apps.collect made, such as RUN/bundles/0000000500")
        if self.out is not None and len(self.bundle) > 1:
            yield Problem("out", "is for one bundle; with several, each has its results in its own directory")
        settings = self.settings
        for name, least in (("min_count", 1), ("bins", 2), ("cap", 2), ("draws", 0), ("null_sets", 0), ("seed", 0)):
            if getattr(settings, name) < least:
                yield Problem(name, f"{getattr(settings, name)} is below {least}")
        if not 0 < settings.percentile <= 100:
            yield Problem("percentile", f"{settings.percentile} is not in (0, 100]")
        if not 0 <= settings.share <= 1:
            yield Problem("share", f"{settings.share} is not in [0, 1]")
        if settings.leave_one_out and self.embedding not in ("own", "shared"):
            yield Problem("leave_one_out", "is for a model's own embedding: coordinates of a file are no neurons")
