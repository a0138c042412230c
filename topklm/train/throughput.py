"""Floating-point operations per token and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import torch

from topklm.model import ModelConfig

# Dense (no 2:4 sparsity) bf16 peaks in FLOP/s, by a part of the device's name. More specific names come first.
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
    """Peak bf16 FLOP/s of a device, or None where it is unknown (then no MFU is printed). None on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).upper()
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """6 (P without embedding, with head) + 12 L S H d: forward and backward; attention counted in full, not causally."""
    weights = model.n_block_params + model.vocab_size * model.dim
    return 6 * weights + 12 * model.n_layers * seq_len * model.heads * model.head_width


def lingua_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Meta Lingua's count, kept under its key `speed/FLOPS`: 6 (P - V D) + 7 L S D."""
    return 6 * (model.n_params - model.vocab_size * model.dim) + 7 * model.n_layers * seq_len * model.dim


def mfu(tokens_per_second: float, flops: float, peak: float | None) -> float | None:
    """Share of the device's peak that one device's tokens/s amount to."""
    return None if peak is None else tokens_per_second * flops / peak
