"""Where a block's stream enters its activation and leaves it: the class that stands in while a model is changed.

As in `topklm.sparsity.patch`, a block's `__class__` becomes a subclass that is made once per class. Parameters, hooks
and buffers stay where they are, and with the class restored nothing is left.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.sparsity.blocks import find_blocks, stream_dim
from topklm.sparsity.patch import ACTIVATION, STATE, sparse_class

PLAN = "_interventions"
"""Attribute of a block, while it is changed, that holds what is done in it; a plain object, in no state dict."""
_WRAPPERS = ("CheckpointWrapper", "OffloadWrapper", "FSDPModule", "FullyShardedDataParallel")
_EXPORTED = "TopKLlamaDecoderLayer"  # of export/modeling_topklm.py, which transformers loads as a module of its own
_FIXED = ("topk", "abstopk", "grouptopk", "normtopk")  # its activations that select a fixed number
_BY_MAGNITUDE = ("abstopk",)


@dataclass(frozen=True)
class Stack:
    """A model's blocks."""

    blocks: nn.ModuleList
    dim: int | None
    """D, None where the model does not tell."""

    def is_dense(self, layer: int) -> bool:
        return _own_activation(self.blocks[layer]) is None

    def has_places(self, layer: int) -> bool:
        """Whether a fixed number of neurons is selected, so that others can enter where some are left out."""
        return unselected(self.blocks[layer]) is not None


def stack_of(model: nn.Module) -> Stack:
    """The blocks of `model`, of a compiled one too. Raises `ConfigError` if there are none."""
    blocks = find_blocks(model)
    return Stack(blocks, stream_dim(model, blocks))


def _own_activation(block: nn.Module) -> Callable[[Tensor], Tensor] | None:
    state = block.__dict__.get(STATE)
    if state is not None:
        return functools.partial(state, block)
    if any(cls.__name__ == _EXPORTED for cls in type(block).__mro__):
        return block.get_submodule("activation")
    return None


def unselected(block: nn.Module) -> float | None:
    """What a neuron is before a cut that selects a fixed number, if it shall not be among them; None for other cuts."""
    if (own := block.__dict__.get(ACTIVATION)) is not None:
        name, fixed = own.name, own.exact and own.cuts
    else:
        name = getattr(_own_activation(block), "activation", None)
        fixed = name in _FIXED
    return None if not fixed else 0.0 if name in _BY_MAGNITUDE else -math.inf


def activate(block: nn.Module, x: Tensor) -> Tensor:
    """A(x), the block's activation; x itself in a dense block."""
    activation = _own_activation(block)
    return x if activation is None else activation(x)


def check_reachable(block: nn.Module, layer: int) -> None:
    """Raise `ConfigError` for a block whose class is not what runs."""
    names = {cls.__name__ for cls in type(block).__mro__}
    if wrapped := sorted(names & set(_WRAPPERS)):
        raise ConfigError(f"block {layer} is a {wrapped[0]}; intervene on the model before it is wrapped or sharded")
    replaced = [name for name in ("forward", "residual_seam") if name in block.__dict__]
    if replaced:
        raise ConfigError(f"block {layer} has a replaced {replaced[0]} (accelerate does that); undo it to intervene")


@functools.cache
def intervened_class(current: Any) -> Any:
    """The subclass of a block's class that runs the block's plan around the activation. One per class, always."""
    below = current.__bases__[0]
    has_activation = current.__name__ == _EXPORTED or current is sparse_class(below)
    base = below if has_activation else current

    def residual_seam(self: Any, stream: Tensor, update: Tensor) -> Tensor:
        return self.__dict__[PLAN](self, base.residual_seam(self, stream, update))

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        plan = self.__dict__[PLAN]
        plan.enter(args, kwargs)
        out = base.forward(self, *args, **kwargs)
        if has_seam:
            return out
        return (plan(self, out[0]), *out[1:]) if isinstance(out, tuple) else plan(self, out)

    has_seam = hasattr(base, "residual_seam")
    members: dict[str, Any] = {"forward": forward, "__doc__": current.__doc__, "__module__": current.__module__}
    if has_seam:
        members["residual_seam"] = residual_seam
    return type(current.__name__, (current,), members)
