"""Where the model runs: process group, mesh, activation checkpointing, compile, FSDP2, in this order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from topklm.errors import ConfigError, Problem
from topklm.model.linear import PRODUCTS
from topklm.sparsity import SAVED_OPS, activations_of, set_kernel
from topklm.sparsity.blocks import find_blocks, stream_dim
from topklm.sparsity.kernels.choice import KernelChoice

log = logging.getLogger("topklm.train")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Parallelism, precision and memory, in Meta Lingua's names."""

    unused_keys: ClassVar[dict[str, str]] = {
        "float8_filter": "there is no float8 training here",
        "spawn_method": "the loader reads ahead in a thread; no process is spawned",
    }
    only_values: ClassVar[dict[str, tuple[Any, str]]] = {
        "tp_size": (1, "there is no tensor parallelism here"),
        "float8_recipe": (None, "there is no float8 training here"),
    }

    dp_shard: int | None = None
    """Ranks that share one copy of the weights; null: all of them (full_shard) or 1 (no_shard)."""
    dp_replicate: int | None = None
    """Copies of the sharded weights (HSDP), typically one per node; null: what dp_shard leaves. full_shard with
    dp_shard 1 shards over these copies, as in Lingua."""
    fsdp_type: Literal["no_shard", "full_shard"] = "full_shard"
    """full_shard: parameters, gradients and optimizer state are spread over dp_shard ranks; no_shard: replicated."""
    model_dtype: Literal["fp32", "fp16", "bf16"] = "bf16"
    """Dtype of compute. Master weights, optimizer state and gradient reduction are fp32 whatever it is."""
    compile: bool = False
    """torch.compile each block."""
    compile_cache_size_limit: int = 16
    """Recompilations allowed per block; a TopK model needs two graphs (annealing, pure) beside the dense block's,
    each for training and for evaluation."""
    selective_activation_checkpointing: bool = False
    """Lingua's switch; the same as activation_checkpointing=selective."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """selective keeps matrix products and attention, full only the blocks' inputs; both keep the TopK selection."""
    topk_kernel: KernelChoice = "auto"
    """auto: TopK blocks run as one Triton kernel on a GPU that can; triton: so or not at all; torch: in PyTorch.
    The results are the same, so a resumed run may change it."""
    matmul_allow_tf32: bool = False
    """TF32 for fp32 matrix products on GPU."""
    detect_anomaly: bool = False
    """Autograd's anomaly detection: slow, names the operation that made a NaN."""
    timeout_minutes: float = 15.0
    """A collective that waits longer ends the job, instead of hanging when a rank has died."""

    @property
    def checkpointing(self) -> str:
        """The mode of activation checkpointing after Lingua's switch."""
        return "selective" if self.selective_activation_checkpointing else self.activation_checkpointing

    def problems(self) -> Iterator[Problem]:
        for name in ("dp_shard", "dp_replicate"):
            ranks = getattr(self, name)
            if ranks is not None and ranks < 1:
                yield Problem(name, f"{ranks} is below 1; leave it null for all ranks")
        if self.model_dtype == "fp16":
            yield Problem("model_dtype", "fp16 needs loss scaling, which is not here; use bf16, which has fp32's range")
        if self.selective_activation_checkpointing and self.activation_checkpointing == "full":
            yield Problem(
                "activation_checkpointing", "full contradicts selective_activation_checkpointing: true; remove one"
            )
        if self.fsdp_type == "no_shard" and (self.dp_shard or 1) > 1:
            yield Problem("dp_shard", f"{self.dp_shard} contradicts fsdp_type: no_shard; take full_shard, or null")
        if self.timeout_minutes <= 0:
            yield Problem("timeout_minutes", f"{self.timeout_minutes} is not above 0")
        if self.compile_cache_size_limit < 1:
            yield Problem("compile_cache_size_limit", f"{self.compile_cache_size_limit} is below 1")

    def mesh_shape(self, world_size: int) -> tuple[int, int]:
        """(dp_replicate, dp_shard) for `world_size` ranks. Raises `ConfigError` if they do not multiply to it."""
        shard, replicate = self.dp_shard, self.dp_replicate
        if shard is None:
            shard = 1 if self.fsdp_type == "no_shard" else max(1, world_size // (replicate or 1))
        if replicate is None:
            replicate = max(1, world_size // shard)
        if shard * replicate != world_size:
            raise ConfigError(
                [
                    Problem(
                        "distributed.dp_shard",
                        f"dp_replicate {replicate} x dp_shard {shard} is not the world size {world_size}; "
                        "leave one of them null",
                    )
                ]
            )
        # What Lingua does: full_shard never leaves a rank with all of the weights while there are others.
        return (1, replicate) if shard == 1 and self.fsdp_type == "full_shard" else (replicate, shard)


@dataclass(frozen=True)
class World:
    """This process among the ranks that torchrun started."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None
    """A gloo group for agreements between hosts; None for a single process."""
    mesh: DeviceMesh | None = None
    """(dp_replicate, dp_shard); None where the model is not wrapped in FSDP2."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_from_env() -> World:
    """Rank, world size and device, from torchrun's environment variables. Touches no GPU and no process group."""
    try:
        rank, local_rank, size = (
            int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
        )
    except ValueError as error:
        raise ConfigError(
            f"RANK, LOCAL_RANK and WORLD_SIZE must be whole numbers, as torchrun sets them ({error})"
        ) from None
    if not 0 <= rank < size:
        raise ConfigError(
            f"RANK {rank} is not one of WORLD_SIZE {size} ranks, counted from 0; let torchrun set both, or unset both"
        )
    if absent := [name for name in ("MASTER_ADDR", "MASTER_PORT") if size > 1 and not os.environ.get(name)]:
        raise ConfigError(f"WORLD_SIZE is {size}, but {' and '.join(absent)} are not set; start it by torchrun")
    if not torch.cuda.is_available():
        return World(rank, local_rank, size, torch.device("cpu"))
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own, there are {torch.cuda.device_count()}; start no more "
            "processes per node than it has GPUs (torchrun --nproc-per-node)"
        )
    return World(rank, local_rank, size, torch.device("cuda", local_rank))


def start(world: World, config: DistributedConfig) -> World:
    """Set precision flags and open the process group and the mesh.

    A single process that computes in fp32 needs neither; in bf16 it is sharded over itself, which gives fp32 master
    weights by the same code as on many ranks.
    """
    torch.set_float32_matmul_precision("high" if config.matmul_allow_tf32 else "highest")
    torch.autograd.set_detect_anomaly(config.detect_anomaly)
    if config.compile:
        torch._dynamo.config.recompile_limit = config.compile_cache_size_limit
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if world.size == 1 and config.model_dtype == "fp32":
        return world
    shape = config.mesh_shape(world.size)
    timeout = timedelta(minutes=config.timeout_minutes)
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    if world.size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)
    mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=("dp_replicate", "dp_shard"))
    for group in mesh.get_all_groups():
        set_timeout(timeout, group)  # a mesh makes its groups with torch's own timeouts
    cpu_group = dist.new_group(backend="gloo", timeout=timeout)
    return replace(world, cpu_group=cpu_group, mesh=mesh)


def any_rank(flag: bool, world: World) -> bool:
    """Whether `flag` is true on any rank; the same answer on all."""
    if world.cpu_group is None:
        return flag
    found = torch.tensor(flag, dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX, world.cpu_group)
    return bool(found)


def new_gloo_group(world: World, config: DistributedConfig) -> dist.ProcessGroup | None:
    """One more group between the hosts, for what runs beside training; None for a single process."""
    if world.cpu_group is None:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(minutes=config.timeout_minutes))


def parallelize(model: nn.Module, world: World, config: DistributedConfig) -> None:
    """Apply activation checkpointing, compile and FSDP2 to a model (already sparsified) with `.layers`, in place.

    The names in its state dict stay. Parameters may be on the meta device.
    """
    _choose_kernel(model, world.device, config)
    layers = model.get_submodule("layers")
    if config.checkpointing != "none":
        for name, block in layers.named_children():
            layers.register_module(name, _checkpointed(block, config.checkpointing))
    if config.compile:
        for block in layers.children():
            block.compile()  # in place: no name in the state dict changes
    if world.mesh is None:
        return
    dtype = DTYPES[config.model_dtype]
    # Inputs are not cast: the rotary tables stay fp32, and the stream has the dtype of the embedding already.
    wide = torch.promote_types(dtype, torch.float32)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide, cast_forward_inputs=False)
    # One copy of the weights needs no replicate dimension, whose all-reduce over one rank would still be called.
    mesh = world.mesh["dp_shard"] if world.mesh.size(0) == 1 else world.mesh
    for block in layers.children():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _choose_kernel(model: nn.Module, device: torch.device, config: DistributedConfig) -> None:
    """How TopK blocks compute. Raises `ConfigError` where the kernel was asked for and cannot run, before any step."""
    dim = stream_dim(model, find_blocks(model)) or 1  # unknown, a row that is too wide is met in the first step
    try:
        set_kernel(model, config.topk_kernel)
        able = [activation.kernel for activation in activations_of(model) if activation.has_kernel]
        reason = able[0].why_not(device, DTYPES[config.model_dtype], dim) if able else None
    except ConfigError as error:
        raise ConfigError([Problem("distributed.topk_kernel", str(error))]) from error
    if reason is not None and config.topk_kernel == "auto" and device.type == "cuda":
        log.warning("TopK runs without its kernel, slower and with the same results: %s", reason)


def _checkpointed(block: nn.Module, mode: str) -> nn.Module:
    """Recompute a block in the backward pass, except for the operations of its mode and the TopK selection."""
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    kept = set(SAVED_OPS)
    if mode == "selective":
        kept |= {
            *PRODUCTS,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
        }

    def policy(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return checkpoint_wrapper(
        block, context_fn=lambda: create_selective_checkpoint_contexts(policy), preserve_rng_state=False
    )
