"""Configuration of an export for transformers and of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from topklm.errors import Problem

Precision = Literal["fp32", "fp64"]


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """How a model is written for transformers."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """hf: precision of the stored weights."""
    max_shard_size: str = "5GB"
    """hf: weights beyond this are divided between several files."""
    tokenizer: bool = True
    """hf: whether the tokenizer is written. It must give the ids of the model's own on every text that is tried."""
    add_bos: bool | None = None
    """hf: whether the tokenizer begins a text with BOS by itself; null: as in training."""
    license: str | None = None
    """hf: licence of the weights for the model card, as the hub names it (apache-2.0, mit, ...); null: not stated."""
    title: str | None = None
    """hf: name in the model card; null: the run's."""


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """How two forms of a model are compared."""

    text: str | None = None
    """A text file to compare on; null: held-out text of the run's data if it is there, else a built-in page."""
    tokens: int = 1024
    """About so many tokens of it."""
    precisions: list[Precision] = field(default_factory=lambda: ["fp32", "fp64"])
    """Precisions in which both forms run. fp64 takes 16 bytes per parameter for the two."""
    tolerance: float = 1.0
    """Factor on every bound of what is still the same."""
    device: str = "cpu"
    """Where both run: cpu, cuda, cuda:1; auto: a GPU if there is one."""

    def problems(self) -> Iterator[Problem]:
        if self.tokens < 2:
            yield Problem("tokens", f"{self.tokens} is below 2")
        if not self.precisions:
            yield Problem("precisions", "is empty; give fp32, fp64 or both")
        if not self.tolerance > 0:
            yield Problem("tolerance", f"{self.tolerance} must be above 0")
