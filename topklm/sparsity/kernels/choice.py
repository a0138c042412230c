"""Where the kernel is taken, and why not elsewhere."""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
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

    @classmethod
    def of(cls, choice: KernelChoice) -> Kernel:
        """Raises `ConfigError` for triton where it is not installed, and for anything that is no choice."""
        if choice not in ("auto", "triton", "torch"):
            raise ConfigError(f"kernel {choice!r} is not one of auto, triton, torch")
        absent = why_absent()
        if choice == "triton" and absent:
            raise ConfigError(f"kernel triton: {absent}; or take auto")
        return cls(choice, () if absent else ("cuda", "cpu") if _interpreted() else ("cuda",))

    def why_not(self, x: Tensor, update: Tensor | None = None) -> str | None:
        """Why the kernel cannot take x [..., D] (and add `update` to it); None if it can."""
        if x.device.type not in self.devices:
            return f"tensors on {x.device.type} cannot be given to it" if self.devices else why_absent()
        if x.dtype not in _DTYPES:
            return f"it computes in fp32, bf16 and fp16, not in {x.dtype}"
        if x.shape[-1] > MAX_DIM:
            return f"its rows have at most {MAX_DIM} entries, not {x.shape[-1]}"
        if update is not None and (update.dtype != x.dtype or update.shape != x.shape or update.device != x.device):
            return f"it adds equals, not {update.dtype} {list(update.shape)} to {x.dtype} {list(x.shape)}"
        return None

    def takes(self, x: Tensor, update: Tensor | None = None) -> bool:
        """Whether the kernel is taken. Raises `ConfigError` where it was asked for and cannot run."""
        if self.choice == "torch":
            return False
        reason = self.why_not(x, update)
        if reason is not None and self.choice == "triton":
            raise ConfigError(f"kernel triton: {reason}; take auto")
        return reason is None
