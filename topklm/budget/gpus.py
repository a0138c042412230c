"""GPUs by name: memory, links and peak. The peaks are those that `speed/mfu` of a run is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from topklm.errors import ConfigError, Problem
from topklm.train.throughput import PEAK_BF16_FLOPS

PCIE = 32
"""GB/s in each direction of PCIe 4.0 x16: what links GPUs that have no NVLink."""

# Memory in GiB as nvidia-smi shows it, which is below the number in the name; GB/s in each direction to the others of
# the node, through NVLink or PCIe (5.0 of H100 NVL, whose bridges only make pairs); the peak's key.
_GPUS: dict[str, tuple[float, float, str]] = {
    "b200": (179.1, 900, "B200"),
    "h200": (140.4, 450, "H200"),
    "gh200": (95.6, 450, "GH200"),
    "h100": (79.6, 450, "H100"),
    "h100-nvl": (93.6, 64, "H100 NVL"),
    "h100-pcie": (79.6, 64, "H100 PCIE"),
    "h800": (79.6, 200, "H800"),
    "a100": (79.3, 300, "A100"),
    "a100-40": (39.5, 300, "A100"),
    "a800": (79.3, 200, "A800"),
    "l40s": (45.0, PCIE, "L40S"),
    "a40": (45.0, PCIE, "A40"),
    "a10": (22.5, PCIE, "A10"),
    "a10g": (22.5, PCIE, "A10G"),
    "l4": (22.5, PCIE, "L4"),
}


@dataclass(frozen=True, kw_only=True)
class GPU:
    """What a plan needs to know of one."""

    name: str
    memory: float
    """Bytes."""
    peak: float
    """Dense bf16 FLOP/s."""
    link: float
    """Bytes per second and direction to the other GPUs of its node."""


def find_gpu(name: str, gib: float | None = None, tflops: float | None = None, link: float | None = None) -> GPU:
    """A GPU of the table, or with the given memory (GiB), dense bf16 peak (TFLOP/s) and link (GB/s; PCIe's if it is not
    in the table). Raises `ConfigError`."""
    known, gbps, key = _GPUS.get(name.lower(), (None, PCIE, ""))
    memory, peak = gib or known, tflops * 1e12 if tflops else PEAK_BF16_FLOPS.get(key)
    if memory is None or peak is None:
        told = f"{name!r} is not known here: {', '.join(_GPUS)}; for another one give gpu_gib and gpu_tflops too"
        raise ConfigError([Problem("gpu", told)])
    return GPU(name=name, memory=memory * 2**30, peak=peak, link=(link or gbps) * 1e9)
