"""The configurations of `apps.label`: candidates for steering, labels from words, labels from a language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from topklm.errors import Problem
from topklm.interp.labels.classes import Null

BUNDLE = "is missing: a directory that apps.collect made, such as RUN/bundles/0000000500"


@dataclass(frozen=True, kw_only=True)
class CandidatesConfig:
    """Which neurons of a bundle are worth steering."""

    bundle: str = ""
    """A bundle of apps.collect with entropies of apps.entropy."""
    preset: Literal["recommended", "paper"] = "recommended"
    """Which of its entropies."""
    fdr: float = 0.05
    """Coherent: coherence_q, the false discovery rate over all neurons of the bundle, is at most this."""
    min_density: float = 0.001
    """Least share of tokens in which it fires."""
    max_density: float = 0.2
    """Largest share of tokens in which it fires."""
    min_fired: int = 100
    """Least number of tokens in which it fires: whatever fires once is perfectly coherent."""
    min_types: int = 5
    """Least number of token types in its set (`response_tokens`): the coherence of two is one similarity."""
    min_lift: float = 1.5
    """Persistent: P(active in the next layer | active here) over P(active in the next layer), of the same index, is at
    least this. 0: not asked for, which admits the last layer, where it is not defined."""
    layers: list[int] | None = None
    """Only these layers, counted from 0; null: all."""
    n: int = 50
    """At most so many candidates."""
    out: str | None = None
    """Directory of the result; null: candidates in the bundle's directory."""

    def problems(self) -> Iterator[Problem]:
        if not self.bundle:
            yield Problem("bundle", BUNDLE)
        if not 0 < self.fdr <= 1:
            yield Problem("fdr", f"{self.fdr} is not in (0, 1]")
        if not 0 <= self.min_density <= self.max_density <= 1:
            yield Problem(
                "min_density", f"0 <= {self.min_density} <= max_density {self.max_density} <= 1 does not hold"
            )
        for key, least in (("min_fired", 1), ("min_types", 2), ("min_lift", 0), ("n", 1)):
            if getattr(self, key) < least:
                yield Problem(key, f"{getattr(self, key)} is below {least}")
        if self.layers is not None and not self.layers:
            yield Problem("layers", "is empty; give layers counted from 0, or null for all")


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Labels from the tokens that neurons respond to: their top tokens, and their class in WordNet."""

    bundle: list[str] = field(default_factory=list)
    """Bundles of apps.collect; bundle=A bundle=B on the command line is a list."""
    wordnet: str | None = None
    """Directory of WordNet's files (bash scripts/fetch_wordnet.sh brings them to data/wordnet); null: labels from top
    tokens only."""
    data: str | None = None
    """Prepared data that the bundles were collected over; null: where the model's run had it."""
    whole_words: bool = True
    """Leave out pieces that another piece continues in most of their occurrences (" con" of "continue"), which needs
    the data. false: every piece that begins a word is one."""
    min_count: int = 20
    """Token types, and words in all their forms together, that occurred less often are left out."""
    top_tokens: int = 8
    """Token pieces in a label from tokens."""
    top_words: int = 20
    """Words of each neuron that are tested: those with the largest mean activation above 0."""
    chance: Null = "words"
    """What chance is: words (any words of the corpus) or part_of_speech (any words of the same part of speech)."""
    fdr: float = 0.05
    """A class is significant at a q (false discovery rate over all neurons and classes of a bundle) of at most this."""
    shuffles: int = 20
    """Times that classes are shuffled among words of like frequency, as a control; 0: not at all."""
    seed: int = 0
    """Seed of the shuffles."""
    force: bool = False
    """Show bundles that do not compare (other corpus, tokens or tokenizer) side by side; the reasons are printed."""
    out: str | None = None
    """Directory of the result; null: labels in the first bundle's directory."""

    def problems(self) -> Iterator[Problem]:
        if not self.bundle:
            yield Problem("bundle", BUNDLE)
        for key, least in (("min_count", 1), ("top_tokens", 1), ("top_words", 5), ("shuffles", 0), ("seed", 0)):
            if getattr(self, key) < least:
                yield Problem(key, f"{getattr(self, key)} is below {least}")
        if not 0 < self.fdr <= 1:
            yield Problem("fdr", f"{self.fdr} is not in (0, 1]")
