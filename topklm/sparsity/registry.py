"""Activations by name: one file each, found through `TopKConfig.activation`.

An activation is made once per model from the configuration and called with every pre-activation. A new one is a
class with these members, under `@register("name")`, in a module that `topklm/sparsity/__init__.py` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor

from topklm.errors import ConfigError

if TYPE_CHECKING:
    from topklm.sparsity.config import TopKConfig


class Activation(Protocol):
    """A of the residual stream: x [..., D] to A(x) [..., D]."""

    def __init__(self, cfg: TopKConfig) -> None: ...

    def __call__(self, x: Tensor, alpha: Tensor | None) -> Tensor:
        """`alpha`: a 0-d tensor while annealing, None at alpha = 0. Must be traceable by torch.compile."""

    def selected(self, x: Tensor) -> Tensor:
        """The selection at alpha = 0 as a bool mask [..., D], for statistics."""

    def margin(self, x: Tensor) -> Tensor:
        """[...]: how far the least selected value is above the largest other one; NaN where that means nothing."""


_ACTIVATIONS: dict[str, type[Activation]] = {}
A = TypeVar("A", bound=type[Activation])


def register(name: str) -> Callable[[A], A]:
    """Class decorator; a name can be taken once."""

    def add(activation: A) -> A:
        if name in _ACTIVATIONS:
            raise ConfigError(f"the activation {name!r} is registered twice")
        _ACTIVATIONS[name] = activation
        return activation

    return add


def activation_names() -> list[str]:
    return sorted(_ACTIVATIONS)


def build_activation(cfg: TopKConfig) -> Activation:
    """The activation that `cfg` names; raises `ConfigError` with every problem of `cfg`."""
    if problems := list(cfg.problems()):
        raise ConfigError(problems)
    return _ACTIVATIONS[cfg.activation](cfg)
