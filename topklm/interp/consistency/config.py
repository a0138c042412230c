"""The configuration of `apps.consistency`: which runs, and what of them is compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from topklm.errors import Problem
from topklm.interp.profiles import Centre

Kind = Literal["profiles", "embedding", "unembedding"]

HUNGARIAN_WIDTH = 4096
"""Widest dictionaries that the Hungarian matching is computed for unasked. Its time grows with about the third power of
the width, and the cosines of a pair have to be in memory twice, 8 bytes each (docs/log.md has measurements)."""


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Pairs of runs that differ in their seeds."""

    bundles: list[str] = field(default_factory=list)
    """Bundles of apps.collect, at least two runs of one configuration; several configurations, and random
    initialisations (init=random) as floors, are told apart by what the bundles say of themselves."""
    files: list[str] = field(default_factory=list)
    """Instead of bundles: .safetensors or .npy files with one matrix [m, d] each, of at least two runs, such as the
    decoders of sparse autoencoders."""
    dictionary: Kind = "profiles"
    """What stands for the neurons of a bundle: profiles (of each layer), embedding or unembedding (columns; the latter
    are read from the checkpoints)."""
    second: str | None = None
    """A second dictionary: a neuron counts as shared if it is matched above the threshold in both, to the same partner.
    Of bundles another of these three; of files the name of another array, such as W_enc."""
    array: str | None = None
    """Name of the matrix in .safetensors files; null: W_dec, decoder or decoder.weight, or the only one."""
    transpose: bool | None = None
    """Whether the matrices are stored as [d, m]; null: by their name (decoder.weight and W_enc are), else not."""
    layers: list[int] | None = None
    """Only these layers, counted from 0; null: all that the bundles have."""
    min_count: int = 20
    """Token types that occurred less often in one of the bundles are left out."""
    centre: Centre = "scaled"
    """What is taken away from token profiles: scaled (each neuron's mean over the types, then, all brought to length 1,
    each type's mean over the neurons), token (each type's mean over the neurons as they are), both (then each neuron's
    mean), or none. docs/consistency.md says what goes wrong with each."""
    threshold: float = 0.7
    """A cosine above this counts as the same feature (0.7: as public summaries of arXiv 2501.16615 have it)."""
    null_draws: int = 10
    """Draws of each null."""
    hungarian: bool | None = None
    """Whether to compute the best one-to-one matching; null: for widths up to 4,096. Without it there are mutual
    nearest neighbours alone."""
    seed: int = 0
    """Seed of the nulls."""
    force: bool = False
    """Compare bundles that differ in corpus, tokens or windows; the reasons are printed and stand in the result."""
    out: str = "report/consistency"
    """Directory of the result. Matchings that are done are kept in its pairs/, and the same command goes on there."""

    def problems(self) -> Iterator[Problem]:
        if bool(self.bundles) == bool(self.files):
            yield Problem("bundles", "give the bundles of at least two runs, or files=[a.safetensors,b.safetensors]")
        if len(self.files) == 1:
            yield Problem("files", "give those of at least two runs")
        if self.bundles and self.second is not None:
            if self.second not in ("profiles", "embedding", "unembedding"):
                yield Problem("second", f"{self.second!r} is none of profiles, embedding, unembedding")
            if self.second == self.dictionary:
                yield Problem("second", f"{self.second} is the first dictionary already; give another one")
        if self.files and self.dictionary != "profiles":
            yield Problem("dictionary", "is for bundles; a matrix in a file is named with array=NAME")
        if self.bundles:
            for key in ("array", "transpose"):
                if getattr(self, key) is not None:
                    yield Problem(key, "is for files=[...]")
        if self.files and self.layers is not None:
            yield Problem("layers", "is for bundles")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            yield Problem("layers", f"{self.layers}: give layers counted from 0, or null for all")
        if self.min_count < 1:
            yield Problem("min_count", f"{self.min_count} is below 1")
        if self.null_draws < 1:
            yield Problem(
                "null_draws", f"{self.null_draws}: without a null a consistency means nothing; give 1 or more"
            )
        if not 0 <= self.threshold < 1:
            yield Problem("threshold", f"{self.threshold} is not in [0, 1)")
        if self.seed < 0:
            yield Problem("seed", f"{self.seed} is negative")
        if not self.out:
            yield Problem("out", "is empty; give the directory of the result")
