"""Validation during training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Perplexity on the held-out shards."""

    unused_keys: ClassVar[dict[str, str]] = {
        "max_steps": "it would depend on the number of ranks; use max_tokens",
        "use_val_from_train_src": "the held-out part of the training sources is what is used",
        "root_dir": "the held-out part of the training sources is what is used",
        "sources": "the held-out part of the training sources is what is used",
    }

    contexts: list[int] = field(default_factory=list)
    """Tokens in a window; data.seq_len if empty. Each makes a metric that is named after it: val/ppl@2048."""
    batch_size: int | None = None
    """Windows per rank and forward pass; data.batch_size if null. Does not change the result."""
    max_tokens: int | None = None
    """Score about so many tokens at most, in windows spaced evenly over each source (at least one); null: all."""

    def problems(self) -> Iterator[Problem]:
        for context in self.contexts:
            if context < 1:
                yield Problem("contexts", f"{context} is below 1")
        for name in ("batch_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield Problem(name, f"{value} is below 1")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is evaluated during training, and how often."""

    unused_keys: ClassVar[dict[str, str]] = {
        "harness": "training validates on held-out shards only",
        "generator": "training validates on held-out shards only",
    }

    every: int | None = None
    """Evaluate every so many steps, and at the end; 0: only at the end; null: as checkpoint.eval.every says, as in
    Lingua."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Perplexity on the held-out shards."""

    def problems(self) -> Iterator[Problem]:
        if self.every is not None and self.every < 0:
            yield Problem("every", f"{self.every} is negative; 0 means only at the end")
