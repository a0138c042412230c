"""How the next token is chosen, and when a completion ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling and ending of completions. The filters act in the order temperature, top_k, top_p, min_p."""

    max_tokens: int = 128
    """Tokens of a completion at most."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token always (greedy)."""
    top_k: int | None = None
    """Only the k most probable tokens (and those as probable as the k-th) can be drawn; null: all."""
    top_p: float | None = None
    """Only the fewest most probable tokens whose probabilities reach this sum can be drawn; null or 1: all."""
    min_p: float | None = None
    """Only tokens of at least this fraction of the highest probability can be drawn; null or 0: all."""
    stop: list[str] = field(default_factory=list)
    """A completion ends before the first of these texts."""
    stop_at_eos: bool = True
    """Whether the tokenizer's EOS token ends a completion."""
    seed: int = 0
    """Seed of the draws. A completion depends on it, the prompt's number and the sample's, and not on the batch."""
    n_samples: int = 1
    """Completions of each prompt."""

    def problems(self) -> Iterator[Problem]:
        for name in ("max_tokens", "n_samples"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")
        if not 0 <= self.temperature < float("inf"):
            yield Problem("temperature", f"{self.temperature} must be a number of at least 0; 0 is greedy")
        if self.top_k is not None and self.top_k < 1:
            yield Problem("top_k", f"{self.top_k} is below 1; null takes all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield Problem("top_p", f"{self.top_p} is not in (0, 1]")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            yield Problem("min_p", f"{self.min_p} is not in [0, 1]")
        if "" in self.stop:
            yield Problem("stop", "holds an empty text, before which everything would end")
        if self.seed < 0:
            yield Problem("seed", f"{self.seed} is negative")
