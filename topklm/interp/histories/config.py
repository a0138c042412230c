"""The configurations of `apps.trace`: which bundles, and what is followed through them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from topklm.config import Verbatim
from topklm.errors import Problem
from topklm.interp.profiles import Centre


@dataclass(frozen=True, kw_only=True)
class _Bundles:
    """What all three read and write."""

    run: str | None = None
    """A run whose bundles are in RUN/bundles: short for bundles=[RUN/bundles]."""
    bundles: list[str] = field(default_factory=list)
    """Bundles, or directories of them: one of each checkpoint, and controls (init=random, read_topk, alpha=0)."""
    force: bool = False
    """Compare bundles that differ in corpus, tokens or tokenizer; the reasons are printed and stand in the result."""
    out: str | None = None
    """Directory of the result; null: report/trace, report/identity_match or report/persistence."""

    @property
    def paths(self) -> list[str]:
        """All directories that were named."""
        return [*([f"{self.run}/bundles"] if self.run else []), *self.bundles]

    def problems(self) -> Iterator[Problem]:
        if not self.paths:
            yield Problem(
                "bundles", "is missing: a run, run=runs/quickstart/topk, or directories that apps.collect made"
            )
        if self.out == "":
            yield Problem("out", "is empty; give the directory of the result")


@dataclass(frozen=True, kw_only=True)
class TraceConfig(_Bundles):
    """One dimension and one token, over the layers and checkpoints of one run."""

    token: Verbatim | None = None
    """A token as text, with its leading space: token=" work". It has to be one token of the model's tokenizer."""
    token_id: int | None = None
    """The token by its number instead."""
    neuron: Verbatim | None = None
    """The dimension, as INDEX (its strengths are averaged over `layers`) or LAYER:INDEX; layers count from 0. null: the
    dimension that is most specific for the token."""
    layers: list[int] | None = None
    """Layers in which the dimension, or the token, is searched for; null: the TopK layers, all of a dense model."""
    threshold: float = 3.0
    """A dimension responds to the token in a layer from this strength on: standard deviations of its own profile."""
    min_count: int = 20
    """Token types that occurred less often are left out of the profiles; the token has to occur as often."""
    top: int = 10
    """Rows of the table of candidates."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.token is None and self.token_id is None and self.neuron is None:
            yield Problem("token", 'is missing: a token, token=" work" or token_id=7, or a dimension, neuron=894')
        if self.token is not None and self.token_id is not None:
            yield Problem("token_id", "and token are both given; leave out one of them")
        if self.neuron is not None and not all(part.strip().isdecimal() for part in self.neuron.split(":", 1)):
            yield Problem("neuron", f"{self.neuron!r} is not INDEX or LAYER:INDEX, such as 894 or 21:894")
        if self.neuron is not None and ":" in self.neuron and self.layers:
            yield Problem("layers", f"and the layer of neuron {self.neuron} are both given; leave out one of them")
        if self.threshold <= 0:
            yield Problem("threshold", f"{self.threshold} is not above 0")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            yield Problem("layers", f"{self.layers}: give layers counted from 0, or null")
        for name in ("min_count", "top"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")


@dataclass(frozen=True, kw_only=True)
class MatchConfig(_Bundles):
    """How often the nearest token profile is that of the same index: over checkpoints and over layers."""

    centre: Centre = "scaled"
    """What is taken away from the profiles. scaled: each neuron's mean over the types, and of what is left, at length
    1, each type's mean over the neurons; token: of each type its mean over the neurons, which a few loud ones decide;
    both: and of each neuron its mean over the types; none: nothing."""
    min_count: int = 20
    """Token types that occurred less often are left out."""
    bins: int = 10
    """Groups of equal size by how often neurons fire, within which the chance level permutes them; 1: over all."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name in ("min_count", "bins"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")


@dataclass(frozen=True, kw_only=True)
class PersistenceConfig(_Bundles):
    """How often a dimension that is active in one layer is active in the next ones too."""

    start: int = 0
    """The layer from which survival is drawn; the table has all."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.start < 0:
            yield Problem("start", f"{self.start} is negative; layers count from 0")
