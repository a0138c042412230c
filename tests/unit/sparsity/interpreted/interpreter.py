"""Triton's interpreter, taught to round and to hurry."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_NUMPY = {"fp64": np.float64, "fp32": np.float32, "fp16": np.float16}
_TORCH = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def repair() -> None:
    """Conversions between floats round to nearest even, as a GPU does; it truncates to bf16.

    The functions of the language are replaced once, and not again at each call of a function within a kernel.
    """
    original, done = interpreter._patch_lang, set()

    def patch_once(fn: Any) -> Any:
        found = {value.__name__ for value in fn.__globals__.values() if value is tl or value is tl.core}
        if not found <= done:
            original(fn)
            done.update(found)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once
    interpreter._convert_float = _convert


def _convert(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    bits = np.ascontiguousarray(data)
    if source.name == "bf16":
        numbers = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)
    else:
        numbers = torch.from_numpy(bits.view(_NUMPY[source.name]).copy())
    found = numbers.to(_TORCH[target.name])
    out = found.view(torch.int16).numpy().view(np.uint16) if target.name == "bf16" else found.numpy()
    return out.reshape(bits.shape)
