"""Where the kernel is taken, and why not elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from topklm.errors import ConfigError

KernelChoice = Literal["auto", "triton", "torch"]
"""auto: the kernel where it can run; triton: it, or an error that says why not; torch: never."""
MAX_DIM = 8192
"""A row stays in the registers of one program, so there is a widest one."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def why_absent() -> str | None:
    """Why no kernel can run in this process, None if one can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is needed, which comes with PyTorch for CUDA: pip install triton"
    if _interpreted():
        return None
    if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
        return "Triton needs a C compiler to start kernels: install gcc, or set CC"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Triton needs Python.h to start kernels: install the package python3-dev"
    return None


@functools.cache
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Kernel:
    """What was chosen, with what this process has. Plain values, so that a compiled block is guarded by them."""

    choice: KernelChoice
    devices: tuple[str, ...]
    """Types of device that it runs on: cuda, and the CPU in Triton's interpreter."""
    absent: str | None = None
    """Why it runs on none."""

    @classmethod
    def of(cls, choice: KernelChoice) -> Kernel:
        """Raises `ConfigError` for triton where it is not installed, and for anything that is no choice."""
        if choice not in ("auto", "triton", "torch"):
            raise ConfigError(f"kernel {choice!r} is not one of auto, triton, torch")
        absent = why_absent()
        if choice == "triton" and absent:
            raise ConfigError(f"kernel triton: {absent}; or take auto")
        return cls(choice, () if absent else ("cuda", "cpu") if _interpreted() else ("cuda",), absent)

    def why_not(self, device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
        """Why it is not taken for tensors [..., `dim`]; None if it is.

        Raises `ConfigError` where it was asked for and cannot run.
        """
        if self.choice == "torch":
            return "another one was chosen"
        reason = None
        if device.type not in self.devices:
            reason = self.absent or f"it does not run on {device.type}"
        elif dtype not in _DTYPES:
            reason = f"it computes in fp32, bf16 and fp16, not in {dtype}"
        elif dim > MAX_DIM:
            reason = f"its rows have at most {MAX_DIM} entries, not {dim}"
        if reason is not None and self.choice == "triton":
            raise ConfigError(f"kernel triton: {reason}; take auto")
        return reason

    def takes(self, x: Tensor) -> bool:
        """Whether it is taken for x [..., D]. Raises as `why_not`."""
        return self.why_not(x.device, x.dtype, x.shape[-1]) is None

    def takes_sum(self, x: Tensor, y: Tensor) -> bool:
        """Whether it adds the two itself: equals only, since others are converted or spread first."""
        return self.takes(x) and (x.dtype, x.shape, x.device) == (y.dtype, y.shape, y.device)
