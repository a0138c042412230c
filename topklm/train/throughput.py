"""Floating-point operations per token and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from topklm.model import ModelConfig

# Dense (no 2:4 sparsity) bf16 peaks in FLOP/s, by whole words of the device's name. More specific names come first.
PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989.5e12,
    "H100 NVL": 835e12,
    "H100 PCIE": 756e12,
    "GH200": 989.5e12,
    "H100": 989.5e12,
    "H800": 989.5e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak dense bf16 FLOP/s of a device, or None where it is unknown (then no MFU is printed) and on a CPU.

    MFU is against this peak also where a run computes in fp32.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper()
    if "MIG" in name.split():  # a slice of a device has a part of its peak
        return None
    words = f" {' '.join(re.split(r'[^A-Z0-9]+', name))} "
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if f" {part} " in words), None)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """6 (P without embedding, with head) + 12 L S H d: forward and backward; attention in full, not causally."""
    weights = model.n_block_params + model.vocab_size * model.dim
    return 6 * weights + 12 * model.n_layers * seq_len * model.heads * model.head_width


def lingua_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Meta Lingua's count, kept under its key `speed/FLOPS`: 6 (P - V D) + 7 L S D."""
    return 6 * (model.n_params - model.vocab_size * model.dim) + 7 * model.n_layers * seq_len * model.dim


def mfu(tokens_per_second: float, flops: float, peak: float | None) -> float | None:
    """Share of the device's peak that one device's tokens/s amount to."""
    return None if peak is None else tokens_per_second * flops / peak


class Throughput:
    """Speed of training since the last reading; validation and saving do not count."""

    def __init__(self, model: ModelConfig, seq_len: int, world_size: int, device: torch.device):
        self._flops = flops_per_token(model, seq_len)
        self._lingua_flops = lingua_flops_per_token(model, seq_len)
        self._world_size, self._device, self._peak = world_size, device, peak_flops(device)
        self._steps = 0
        self._last = time.perf_counter()
        self._paused = 0.0

    def step(self) -> None:
        """One optimizer step was made."""
        self._steps += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What runs in here is no training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began

    def figures(self, tokens_per_step: int) -> dict[str, float]:
        """Meta Lingua's keys (`speed/wps`, `speed/FLOPS`: per rank) and ours; call it right after a synchronisation."""
        now = time.perf_counter()
        seconds = max(now - self._last - self._paused, 1e-9)
        per_second = self._steps * tokens_per_step / seconds
        per_rank = per_second / self._world_size
        figures = {
            "speed/wps": per_rank,
            "speed/FLOPS": per_rank * self._lingua_flops,
            "speed/tokens_per_second": per_second,
            "speed/step_time": seconds / max(1, self._steps),
            **memory_figures(self._device),
        }
        if (share := mfu(per_rank, self._flops, self._peak)) is not None:
            figures["speed/mfu"] = share
        self._steps, self._last, self._paused = 0, now, 0.0
        return figures


def memory_figures(device: torch.device) -> dict[str, float]:
    """Highest memory use so far in GiB: of the device's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return {
            "memory/max_active_gib": torch.cuda.max_memory_allocated(device) / 2**30,
            "memory/max_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return {"memory/max_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
