"""The random state of a rank, as JSON, so that a resumed run draws what the interrupted one would have drawn.

Nothing in training draws numbers at random today: batches and first weights have generators of their own. For what
will: a rank that was there when the checkpoint was written goes on with its own state; a rank that was not begins a
stream of its own, seeded with (seed, rank, step). No two ranks ever share one.
"""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, rank: int, step: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices). Every (seed, rank, step) has a stream of its own."""
    sequence = np.random.SeedSequence((abs(seed), int(seed < 0), rank, step))
    first, second, third, fourth = (int(word) for word in sequence.generate_state(4))
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third << 32 | fourth)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that training could use."""
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": _encode(torch.get_rng_state()),
    }
    if device.type == "cuda":
        state["cuda"] = _encode(torch.cuda.get_rng_state(device))
    return state


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_decode(state["torch"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(_decode(state["cuda"]), device)


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
