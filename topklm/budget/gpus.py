"""GPUs by name: memory and peak. The peaks are those that `speed/mfu` of a run is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from topklm.errors import ConfigError, Problem
from topklm.train.throughput import PEAK_BF16_FLOPS

# Memory in GiB as nvidia-smi shows it, which is below the number in the name; and the peak's key.
_GIB: dict[str, tuple[float, str]] = {
    "b200": (179.1, "B200"),
    "h200": (140.4, "H200"),
    "gh200": (95.6, "GH200"),
    "h100": (79.6, "H100"),
    "h100-nvl": (93.6, "H100 NVL"),
    "h100-pcie": (79.6, "H100 PCIE"),
    "h800": (79.6, "H800"),
    "a100": (79.3, "A100"),
    "a100-40": (39.5, "A100"),
    "a800": (79.3, "A800"),
    "l40s": (45.0, "L40S"),
    "a40": (45.0, "A40"),
    "a10": (22.5, "A10"),
    "a10g": (22.5, "A10G"),
    "l4": (22.5, "L4"),
}


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What a plan needs to know of one."""

    name: str
    memory: float
    """Bytes."""
    peak: float
    """Dense bf16 FLOP/s."""


def find_gpu(name: str, gib: float | None = None, tflops: float | None = None) -> GPU:
    """A GPU of the table, or with the given memory (GiB) and dense bf16 peak (TFLOP/s). Raises `ConfigError`."""
    known, key = _GIB.get(name.lower(), (None, ""))
    memory, peak = gib or known, tflops * 1e12 if tflops else PEAK_BF16_FLOPS.get(key)
    if memory is None or peak is None:
        told = f"{name!r} is not known here: {', '.join(_GIB)}; for another one give gpu_gib and gpu_tflops too"
        raise ConfigError([Problem("gpu", told)])
    return GPU(name=name, memory=memory * 2**30, peak=peak)
