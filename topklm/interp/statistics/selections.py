"""How often a TopK layer selects otherwise when nothing but the arithmetic changed: batch shape, dtype, device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topklm.interp.statistics.tap import tap
from topklm.model import Transformer
from topklm.sparsity.activation import Activation
from topklm.sparsity.patch import STATE


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What two runs over the same tokens selected differently, over all layers that select."""

    tokens: int
    """(token, layer) pairs that were compared."""
    tokens_differ: float
    """Share of them whose selected set differs."""
    entries_differ: float
    """Share of the selected entries that the other run did not select."""


def selected_masks(
    model: Transformer, tokens: Tensor, document_ids: Tensor | None = None, batch_size: int | None = None
) -> list[Tensor]:
    """bool [B, T, N] on the CPU, of each layer that selects; `tokens` [B, T], `batch_size` rows at a time.

    Each layer sees what the ones before it made of the tokens in this run, so an early difference has later ones.
    """
    layers = [i for i, block in enumerate(model.layers) if STATE in block.__dict__]
    rows: list[list[Tensor]] = [[] for _ in layers]

    def see(layer: int, output: Tensor, pre: Tensor | None, activation: Activation | None) -> None:
        if pre is not None and activation is not None:
            rows[layers.index(layer)].append(activation.selected(pre).cpu())

    if layers:
        with tap(model, layers, see) as forward:
            size = batch_size or len(tokens)
            for start in range(0, len(tokens), size):
                ids = None if document_ids is None else document_ids[start : start + size]
                forward(tokens[start : start + size], ids)
    return [torch.cat(layer) for layer in rows]


def differences(a: list[Tensor], b: list[Tensor]) -> Differences:
    """Compare two results of `selected_masks`, of one model or of two with the same layers."""
    n = sum(mask[..., 0].numel() for mask in a)
    differ = sum(int((x != y).any(-1).sum()) for x, y in zip(a, b, strict=True))
    lost = sum(int((x & ~y).sum()) for x, y in zip(a, b, strict=True))
    selected = sum(int(x.sum()) for x in a)
    return Differences(tokens=n, tokens_differ=differ / max(n, 1), entries_differ=lost / max(selected, 1))
