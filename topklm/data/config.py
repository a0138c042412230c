"""Configuration of the training data: which prepared sources, in which proportions and batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from topklm.data.tokenizers import TokenizerName
from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class DataTokenizerConfig:
    """What Meta Lingua would tokenise with. Here `apps.prepare` did it; what is given must be what it used."""

    name: TokenizerName | None = None
    """Kind of tokenizer; null: whatever the sources were prepared with."""
    path: str | None = None
    """The file that defines it; compared where it is there."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Prepared token shards and the batches that are made of them, in Meta Lingua's names."""

    only_values: ClassVar[dict[str, tuple[Any, str]]] = {
        "n_views": (2, "inputs and next-token targets are the only views, there is no prediction of several tokens"),
    }

    root_dir: str = ""
    """Directory that holds one directory per prepared source (`out_dir` of apps.prepare)."""
    sources: dict[str, float] = field(default_factory=dict)
    """Name of each source and its weight, in any unit."""
    weights_of: Literal["sequences", "documents"] = "sequences"
    """What the weights are shares of. documents is Meta Lingua's meaning: a source with longer documents gives more
    tokens than its weight says. The share of its sequences is then weight x mean tokens per document."""
    batch_size: int = 2
    """Sequences per rank and micro-batch. Does not change the global batches."""
    global_batch_size: int | None = None
    """Sequences per optimizer step over all ranks; gradient accumulation follows from it. null: batch_size x
    grad_acc_steps x ranks, computed at the first start and stored with the run."""
    seq_len: int = 2048
    """Tokens per sequence."""
    seed: int = 42
    """Seed of the order of the sequences."""
    load_async: bool = True
    """Read the next batches in a thread while a step runs. Does not change the batches."""
    prefetch_size: int = 4
    """Steps to read ahead with load_async; fewer where they would need more than 256 MiB in this process."""
    verify: bool = False
    """Check the hash of every shard at the start, which reads all of the data once."""
    add_bos: bool | None = None
    """Whether documents begin with BOS, as apps.prepare decided; if given, the sources must be so."""
    add_eos: bool | None = None
    """Whether documents end with EOS, as apps.prepare decided; if given, the sources must be so."""
    tokenizer: DataTokenizerConfig = field(default_factory=DataTokenizerConfig)
    """The tokenizer, as apps.prepare decided; if given, the sources must have it."""

    def problems(self) -> Iterator[Problem]:
        if not self.root_dir:
            yield Problem(
                "root_dir", "is missing; give the directory of the prepared sources (out_dir of apps.prepare)"
            )
        if not self.sources:
            yield Problem("sources", "is empty; give at least one: sources={NAME: 1.0}")
        for name, weight in self.sources.items():
            if not (weight > 0 and math.isfinite(weight)):
                yield Problem(f"sources.{name}", f"{weight} is not a weight above 0; remove sources that are not used")
        for key in ("batch_size", "global_batch_size", "seq_len", "prefetch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield Problem(key, f"{value} is below 1")
        if self.seed < 0:
            yield Problem("seed", f"{self.seed} is negative")
