"""What decides the memory of a rank, taken from a run's configuration and the number of its ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from topklm.data.loader import micro_batch_rows, n_micro_batches
from topklm.model import ModelConfig
from topklm.sparsity import TopKConfig
from topklm.sparsity.kernels.choice import MAX_DIM
from topklm.sparsity.registry import activation_class
from topklm.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One rank of a run."""

    model: ModelConfig
    topk: TopKConfig | None
    sequences: int
    """In a micro-batch."""
    seq_len: int
    micro_batches: int
    """Of a step, on each rank."""
    width: int
    """Bytes of a number in compute: 2 for bf16, 4 for fp32."""
    checkpointing: str
    """none, selective or full."""
    compiled: bool
    shards: int
    """Ranks that share one copy of the weights."""
    replicas: int
    """Copies of the weights."""
    wrapped: bool
    """Whether the model is in FSDP2: all but a single process in fp32."""
    kernel: bool = False
    """Whether the TopK is one kernel, which keeps bits and no indices."""
    on_cpu: bool = False
    """Norms and rotary tables keep other things on a CPU."""

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.sequences * self.seq_len

    @property
    def sparse_blocks(self) -> int:
        return 0 if self.topk is None else self.model.n_layers - self.topk.n_dense_tail

    def with_checkpointing(self, mode: str) -> Setting:
        return replace(self, checkpointing=mode)


def global_batch(config: TrainConfig, ranks: int) -> int:
    """Sequences of a step."""
    return config.data.global_batch_size or config.data.batch_size * config.grad_acc_steps * ranks


def setting_of(config: TrainConfig, model: ModelConfig, ranks: int) -> Setting:
    """`model`: that of `config` with its vocabulary. Raises `ConfigError` where the mesh does not fit the ranks."""
    distributed = config.distributed
    replicas, shards = distributed.mesh_shape(ranks)
    batches = (global_batch(config, ranks), config.data.batch_size, ranks)
    return Setting(
        model=model,
        topk=config.topk,
        sequences=micro_batch_rows(*batches),
        seq_len=config.data.seq_len,
        micro_batches=n_micro_batches(*batches),
        width=4 if distributed.model_dtype == "fp32" else 2,
        checkpointing=distributed.checkpointing,
        compiled=distributed.compile,
        shards=shards,
        replicas=replicas,
        wrapped=ranks > 1 or distributed.model_dtype != "fp32",
        kernel=_by_kernel(config, model),
    )


def _by_kernel(config: TrainConfig, model: ModelConfig) -> bool:
    """As the blocks choose on a GPU that can run it."""
    topk = config.topk
    if topk is None or config.distributed.topk_kernel == "torch":
        return False
    return activation_class(topk.activation).has_kernel and topk.gradient == "plain" and model.dim <= MAX_DIM
