"""Bytes on the wire for each rank and step, and how long they take: FSDP2's collectives as rings.

A ring over n ranks moves (n - 1) / n of the whole for a gathering or a reduce-scatter and twice that for an all-reduce,
through every rank. Rings over several nodes leave each of them once, through as many adapters as a node has GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from topklm.budget import sizes
from topklm.budget.setting import Setting

ADAPTER = 50e9
"""Bytes per second and direction of a GPU between nodes: 400 Gb/s each."""
REACHED = 0.8
"""Share of these rates, and of the links' inside a node, that large collectives reach. An assumption."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one rank in one step."""

    gathered: float
    """Bytes of all-gathers: the weights in the dtype of compute, of each block twice for each micro-batch (before its
    forward and its backward pass), of embedding and head once."""
    scattered: float
    """Bytes of reduce-scatters: the fp32 gradient, once a step."""
    reduced: float
    """Bytes of the all-reduce of the gradient's shards between replicas."""
    shards: int
    """Ranks of the first two."""
    gpus: int
    """Of a node."""
    link: float
    """Bytes per second and direction of a GPU inside a node."""

    @property
    def inside(self) -> float:
        """Bytes through a GPU's own links inside its node."""
        return self.gathered + self.scattered + (0 if self.shards >= self.gpus else self.reduced)

    @property
    def between(self) -> float:
        """Bytes through its adapter."""
        shared = 0.0 if self.shards <= self.gpus else (self.gathered + self.scattered) / self.gpus
        return shared + (self.reduced if self.shards >= self.gpus else self.reduced / self.gpus)

    def seconds(self, nodes: int) -> float:
        """One after the other, none hidden behind computation."""
        inside = self.inside / (self.link * REACHED)
        return inside + (self.between / (ADAPTER * REACHED) if nodes > 1 else 0.0)


def traffic_of(setting: Setting, gpus: int, link: float) -> Traffic:
    """`gpus`, `link`: of a node."""
    model, shards, replicas = setting.model, setting.shards, setting.replicas
    block, root = sizes.block(model), sizes.root(model)
    blocks = model.n_layers * block.padded(shards)
    ring, ring_of_replicas = (shards - 1) / shards, (replicas - 1) / replicas
    return Traffic(
        gathered=ring * setting.micro_batches * setting.width * (2 * blocks + root.padded(shards)),
        scattered=ring * 4 * (blocks + root.padded(shards)),
        reduced=2 * ring_of_replicas * 4 * sizes.sharded(model, shards),
        shards=shards,
        gpus=gpus,
        link=link,
    )
