"""Parameters by part, and how FSDP2 holds them: a group per block, and the root group with everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from topklm.model import ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP2 gathers and reduces together."""

    shapes: Sequence[Shape]

    @property
    def numel(self) -> int:
        """Entries."""
        return sum(map(math.prod, self.shapes))

    def shard(self, ranks: int) -> int:
        """Entries that each of so many ranks holds: the first dimension is cut into equal parts, padded up."""
        return sum(-(-shape[0] // ranks) * math.prod(shape[1:]) for shape in self.shapes)

    def padded(self, ranks: int) -> int:
        """Entries of the buffers of an all-gather and a reduce-scatter."""
        return ranks * self.shard(ranks)


def attention_shapes(model: ModelConfig) -> list[Shape]:
    q, kv = model.heads * model.head_width, model.kv_heads * model.head_width
    return [(q, model.dim), (kv, model.dim), (kv, model.dim), (model.dim, q)]


def ffn_shapes(model: ModelConfig) -> list[Shape]:
    return [(model.ffn_width, model.dim), (model.ffn_width, model.dim), (model.dim, model.ffn_width)]


def block(model: ModelConfig) -> Group:
    """One block."""
    return Group([*attention_shapes(model), *ffn_shapes(model), (model.dim,), (model.dim,)])


def root(model: ModelConfig) -> Group:
    """Embedding, final norm and head."""
    embeddings = 1 if model.weight_tying else 2
    return Group([(model.vocab_size, model.dim)] * embeddings + [(model.dim,)])


def sharded(model: ModelConfig, ranks: int) -> int:
    """Entries of all parameters that one of so many ranks holds, padding included."""
    return model.n_layers * block(model).shard(ranks) + root(model).shard(ranks)


def by_part(model: ModelConfig) -> dict[str, int]:
    """Number of parameters."""
    layers, table = model.n_layers, model.vocab_size * model.dim
    return {
        "embedding": table,
        "attention": layers * Group(attention_shapes(model)).numel,
        "feed-forward": layers * Group(ffn_shapes(model)).numel,
        "norms": (2 * layers + 1) * model.dim,
        "head": 0 if model.weight_tying else table,
    }
