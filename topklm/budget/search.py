"""What fits: searched among micro-batches, modes of checkpointing and numbers of GPUs, each tried by the planner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from topklm.budget.setting import Setting, global_batch, setting_of
from topklm.model import ModelConfig
from topklm.train import TrainConfig

MODES = ("none", "selective", "full")
MOST_SEQUENCES = 512
NODE = 8
MOST_NODES = 128

Fits = Callable[[Setting], bool]


@dataclass(frozen=True)
class Remedy:
    """A change with which a run fits."""

    arguments: str
    """As on the command line."""
    price: str
    """What it costs."""


def with_mode(config: TrainConfig, mode: str) -> TrainConfig:
    """The run with another mode of activation checkpointing."""
    changed = replace(config.distributed, activation_checkpointing=mode, selective_activation_checkpointing=False)  # type: ignore[arg-type]
    return replace(config, distributed=changed)


def largest_micro_batch(config: TrainConfig, model: ModelConfig, ranks: int, fits: Fits) -> int | None:
    """The largest data.batch_size that fits, None if not even 1 does; no more than a rank's share of the global batch.

    All are tried that divide this share: a larger one that needs no accumulation can take less memory.
    """
    share = -(-global_batch(config, ranks) // ranks) if config.data.global_batch_size else 0
    for size in range(share or MOST_SEQUENCES, 0, -1):
        if share % size == 0 and fits(setting_of(_batch(config, size), model, ranks)):
            return size
    return None


def remedies(config: TrainConfig, model: ModelConfig, gpus: int, nodes: int, fits: Fits) -> Iterator[Remedy]:
    """Changes that make a run fit, one kind at a time: the micro-batch in each mode of checkpointing, more GPUs.

    The mode alone comes first where it is enough.
    """
    now, ranks = config.distributed.checkpointing, gpus * nodes
    for mode in MODES:
        tried = with_mode(config, mode)
        switch = "" if mode == now else f"distributed.activation_checkpointing={mode}"
        if MODES.index(mode) < MODES.index(now):
            continue
        if switch and fits(setting_of(tried, model, ranks)):
            yield Remedy(switch, _price(mode))
        elif (size := largest_micro_batch(tried, model, ranks, fits)) is not None:
            price = f"{setting_of(_batch(tried, size), model, ranks).micro_batches} micro-batches a step"
            yield Remedy(" ".join(filter(None, [switch, f"data.batch_size={size}"])), _price(mode, price))
    yield from _more_gpus(config, model, gpus, nodes, fits)


def _more_gpus(config: TrainConfig, model: ModelConfig, gpus: int, nodes: int, fits: Fits) -> Iterator[Remedy]:
    """The fewest that share one copy of the weights and suffice: these, more in a node, more nodes of at least 8."""
    mesh = {"fsdp_type": "full_shard", "dp_shard": None, "dp_replicate": None}
    spread = replace(config, distributed=replace(config.distributed, **mesh))  # type: ignore[arg-type]
    changed = [
        f"distributed.{name}={'null' if value is None else value}"
        for name, value in mesh.items()
        if getattr(config.distributed, name) != value
    ]
    whole = max(gpus, NODE)
    places = [(gpus, nodes), *((each, nodes) for each in (2, 4, NODE) if each > gpus)]
    places += [(whole, nodes * 2**i) for i in range(1, MOST_NODES.bit_length()) if nodes * 2**i <= MOST_NODES]
    for each, count in places:
        if fits(setting_of(spread, model, each * count)):
            machine = [f"gpus={each}"] * (each != gpus) + [f"nodes={count}"] * (count != nodes)
            yield Remedy(" ".join(machine + changed), f"{each * count} GPUs share one copy of the weights")
            return


def _batch(config: TrainConfig, size: int) -> TrainConfig:
    return replace(config, data=replace(config.data, batch_size=size))


def _price(mode: str, also: str = "") -> str:
    told = {
        "none": "",
        "selective": "norms and elementwise operations are computed twice",
        "full": "the forward pass of the blocks is computed twice",
    }[mode]
    return "; ".join(filter(None, [told, also]))
