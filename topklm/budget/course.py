"""The course of a run: tokens, time at a stated MFU, and its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from topklm.budget.setting import Setting, global_batch
from topklm.model import ModelConfig
from topklm.train import TrainConfig
from topklm.train.throughput import flops_per_token, lingua_flops_per_token

STATE_BYTES = 12
"""Of a parameter in a checkpoint: itself and two moments of AdamW, fp32."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """Time and tokens of a whole run; time without validation, saving and starting."""

    steps: int
    tokens_per_step: int
    flops_per_token: float
    """6 for each weight that multiplies, and 12 L S D for attention: what MFU is measured by."""
    lingua_flops_per_token: float
    """Meta Lingua's formula."""
    recomputed_flops_per_token: float
    """What activation checkpointing adds, which no MFU counts: full makes every block's forward pass twice."""
    tokens_per_second: float
    """Of all ranks."""
    ranks: int

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def step_seconds(self) -> float:
        return self.tokens_per_step / self.tokens_per_second

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.ranks


def course_of(config: TrainConfig, model: ModelConfig, ranks: int, flops_per_second: float) -> Course:
    """`model`: that of `config` with its vocabulary; `flops_per_second`: of one rank, peak x MFU."""
    length = config.data.seq_len
    flops = flops_per_token(model, length)
    attention = 4 * model.n_layers * length * model.heads * model.head_width
    forward = 2 * (model.n_block_params - model.dim) + attention
    return Course(
        steps=config.steps,
        tokens_per_step=global_batch(config, ranks) * length,
        flops_per_token=flops,
        lingua_flops_per_token=lingua_flops_per_token(model, length),
        recomputed_flops_per_token=forward if config.distributed.checkpointing == "full" else 0.0,
        tokens_per_second=ranks * flops_per_second / flops,
        ranks=ranks,
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """What a run writes, and what of it stays."""

    bytes: float
    """Of one checkpoint, all ranks together."""
    bytes_per_rank: float
    saves: int
    """In the whole run, the last step included."""
    kept: int
    """At the end."""
    seconds: float
    """Of one save at the stated bandwidth."""
    blocking: bool
    """Whether training waits for it."""
    host_bytes: float
    """Of each node's main memory that a save in the background takes."""

    @property
    def disk(self) -> float:
        """Bytes at most: all that are kept, and the one that is being written before another is removed."""
        return (self.kept + (self.saves > self.kept)) * self.bytes

    @property
    def waiting_seconds(self) -> float:
        """For which training stands still in the whole run."""
        return self.saves * self.seconds if self.blocking else 0.0


def checkpoints_of(config: TrainConfig, setting: Setting, nodes: int, disk: float) -> Checkpoints:
    """`disk`: bytes per second that each node writes. Replicas share the writing (torch.distributed.checkpoint)."""
    total = STATE_BYTES * setting.model.n_params
    ranks = setting.shards * setting.replicas
    saved = [step for step in range(1, config.steps + 1) if config.checkpoint.saves_at(step) or step == config.steps]
    return Checkpoints(
        bytes=total,
        bytes_per_rank=total / ranks,
        saves=len(saved),
        kept=len(saved) - len(config.checkpoint.retired(saved)),
        seconds=total / (nodes * disk),
        blocking=not config.checkpoint.async_save,
        host_bytes=total / nodes if config.checkpoint.async_save else 0.0,
    )


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for size, unit in ((7200, "hours"), (120, "minutes"), (1, "s")):
        if seconds >= size:
            return f"{seconds / {'hours': 3600, 'minutes': 60, 's': 1}[unit]:,.1f} {unit}"
    return f"{1000 * seconds:.3g} ms" if seconds else "0 s"
