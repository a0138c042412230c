"""Seeing what goes through a model's blocks: their outputs, and what entered the activation of the sparse ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.sparsity.activation import Activation
from topklm.sparsity.blocks import find_blocks
from topklm.sparsity.patch import sparse_states

See = Callable[[int, Tensor, Tensor | None, Activation | None], None]
"""see(layer, output [B, T, D], pre [B, T, D], activation): both last are None for a dense block."""


@contextmanager
def tap(model: nn.Module, layers: Collection[int], see: See) -> Iterator[Callable[..., None]]:
    """Call `see` for each of `layers` in every forward pass inside the `with`, in the order of the blocks.

    Gives a function (tokens [B, T], document_ids=None) that runs the model without gradients as far as the last of
    `layers`; what comes after it is not computed. The model must be neither compiled nor wrapped (hooks on a
    compiled block are skipped); it is as before afterwards. Raises `ConfigError` if its health is being recorded.
    """
    blocks = find_blocks(model)
    states = sparse_states(model)
    if any(state.recorder is not None for state in states):
        raise ConfigError("this model is being recorded already")
    recorder = _Recorder()
    last = max(layers)
    handles = []

    def hook_of(layer: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: Any, output: Any) -> None:
            pre, activation = recorder.taken(block)
            see(layer, output[0] if isinstance(output, tuple) else output, pre, activation)
            if layer == last:
                raise _EnoughError

        return hook

    @torch.no_grad()
    def forward(tokens: Tensor, document_ids: Tensor | None = None) -> None:
        try:
            model(tokens, document_ids=document_ids)
        except _EnoughError:
            return

    try:
        for layer in layers:
            handles.append(blocks[layer].register_forward_hook(hook_of(layer)))
        for state in states:
            state.recorder = recorder
        yield forward
    finally:
        for handle in handles:
            handle.remove()
        for state in states:
            state.recorder = None


class _Recorder:
    """Takes the place of the health recorder: keeps the pre-activation of the block that is running."""

    def __init__(self) -> None:
        self._latest: tuple[int, Tensor, Activation] | None = None

    def see(self, block: nn.Module, activation: Activation, x: Tensor) -> None:
        self._latest = id(block), x, activation

    def taken(self, block: nn.Module) -> tuple[Tensor | None, Activation | None]:
        latest, self._latest = self._latest, None
        if latest is None or latest[0] != id(block):
            return None, None
        return latest[1], latest[2]


class _EnoughError(Exception):
    """The last block of interest has run."""
