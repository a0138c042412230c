"""The configuration of a plan: that of the training run, and the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from topklm.budget.gpus import find_gpu
from topklm.errors import ConfigError, Problem
from topklm.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainConfig):
    """A training run and the machine that it is planned for."""

    gpus: int = 8
    """GPUs of one node."""
    nodes: int = 1
    """Nodes."""
    gpu: str = "h200"
    """b200, h200, gh200, h100, h100-nvl, h100-pcie, h800, a100, a100-40, a800, l40s, a40, a10, a10g or l4; another
    name with gpu_gib and gpu_tflops."""
    gpu_gib: float | None = None
    """GiB of memory of each GPU; null: the table's."""
    gpu_tflops: float | None = None
    """Dense bf16 peak of each GPU in TFLOP/s; null: the table's."""
    gpu_link_gbps: float | None = None
    """GB/s in each direction between the GPUs of a node; null: the table's, of NVLink or PCIe."""
    mfu: float = 0.45
    """Share of the peak that the model's FLOP reach. An assumption: `speed/mfu` of a run's first steps tells."""
    vocab_size: int | None = None
    """V where the data are not prepared yet and model.vocab_size is -1."""
    slack: float = 0.05
    """Share of the tensors' memory that is added for gaps in the allocator. An assumption."""
    context_gib: float = 1.5
    """GiB of each GPU that CUDA, its libraries and NCCL take. An assumption."""
    disk_gbps: float = 2.0
    """GB/s that each node writes checkpoints with. An assumption."""
    out: str | None = None
    """Directory for the plan as files; null: none."""

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes

    @property
    def train(self) -> TrainConfig:
        """The run alone."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)})

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        for name in ("gpus", "nodes"):
            if getattr(self, name) < 1:
                yield Problem(name, f"{getattr(self, name)} is below 1")
        for name in ("gpu_gib", "gpu_tflops", "gpu_link_gbps", "vocab_size", "disk_gbps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield Problem(name, f"{value} must be above 0")
        if self.vocab_size is not None and self.model.vocab_size not in (-1, self.vocab_size):
            told = (
                f"{self.vocab_size} is not the {self.model.vocab_size} of model.vocab_size, which counts; leave it out"
            )
            yield Problem("vocab_size", told)
        if not 0 < self.mfu <= 1:
            yield Problem("mfu", f"{self.mfu} is no share of the peak; 0.45 is 45 %")
        if self.slack < 0 or self.context_gib < 0:
            yield Problem("slack" if self.slack < 0 else "context_gib", "must not be negative")
        try:
            find_gpu(self.gpu, self.gpu_gib, self.gpu_tflops)
        except ConfigError as error:
            yield from error.problems
