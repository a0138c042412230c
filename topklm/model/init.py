"""Initial weights by Meta Lingua's rules, each parameter from (seed, its name).

On one kind of device (a CPU and a GPU draw other numbers) the values depend neither on the world size nor on the order
of construction, and a dense model and its TopK twin start from the same weights.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from topklm.model.config import ModelConfig


def init_weights(model: nn.Module, config: ModelConfig) -> None:
    """Set every parameter of a native model in place. Sharded parameters (DTensor) get their shard of the same values.

    Truncated normal, cut at 3 std: std dim^-0.5 for the embedding, the head, wq, wk, wv, w1, w3; for wo and w2 the
    fan-in's std divided by the depth factor (wo cut at 3 dim^-0.5). Norms are 1.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            name = name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")
            full = _initial(name, parameter.shape, config, parameter.device, parameter.dtype)
            if isinstance(parameter, DTensor):
                # Every rank made the same full tensor, so each takes its own part without communication.
                shard = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
                parameter.copy_(shard)
            else:
                parameter.copy_(full)


def _initial(name: str, shape: torch.Size, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, device=device, dtype=dtype)
    std, cut = _std(name, config)
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{name}".encode()).digest()[:8], "little") >> 1
    generator = torch.Generator(device=device).manual_seed(seed)
    full = torch.empty(shape, device=device, dtype=torch.promote_types(dtype, torch.float32))
    return nn.init.trunc_normal_(full, std=std, a=-cut, b=cut, generator=generator).to(dtype)


def _std(name: str, config: ModelConfig) -> tuple[float, float]:
    """(standard deviation, where the normal is cut) of a weight matrix."""
    if not name.startswith("layers."):  # embedding and head
        return config.dim**-0.5, 3 * config.dim**-0.5
    depth = int(name.split(".")[1])
    factor = {
        "disabled": 1.0,
        "global_depth": math.sqrt(2 * (config.n_layers + 1)),
        "current_depth": math.sqrt(2 * (depth + 1)),
        "dim_ratio": config.dim / 4096,
    }[config.init_std_factor]
    inner = config.init_base_std or config.dim**-0.5
    if name.endswith("wo.weight"):
        return inner / factor, 3 * inner
    if name.endswith("w2.weight"):
        std = (config.init_base_std or config.ffn_width**-0.5) / factor
        return std, 3 * std
    return inner, 3 * inner
