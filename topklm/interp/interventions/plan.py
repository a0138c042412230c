"""What is done in one block: x to A(x), with the interventions before and after the activation in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.interp.interventions.feed import Feed
from topklm.interp.interventions.intervention import Intervention
from topklm.interp.interventions.seams import activate, unselected


class Plan:
    """The interventions in one block. The block's class calls it (`seams.intervened_class`)."""

    def __init__(self, interventions: Sequence[tuple[Intervention, Tensor | None]]) -> None:
        """Each with the prompt lengths of its context [B], None where they are not given."""
        self.interventions = tuple(interventions)
        self._call: tuple[Sequence[Any], Mapping[str, Any]] = (), {}

    def enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The block begins, with these arguments."""
        self._call = args, kwargs

    def __call__(self, block: nn.Module, x: Tensor) -> Tensor:
        """x [B, T, D] before the activation to what leaves the block."""
        args, kwargs = self._call
        self._call = (), {}
        todo = [(one, Feed.of(args, kwargs, lengths).mask(one.positions, x)) for one, lengths in self.interventions]
        for one, mask in todo:
            if one.site == "pre":
                x = change(x, one, mask)
        for one, mask in todo:
            if one.refill:
                last = unselected(block)
                assert last is not None  # `Intervention.problems`
                x = _write(x, one, mask, torch.full_like(x[..., : len(one.neurons)], last))
        y = activate(block, x)
        for one, mask in todo:
            if one.site == "post":
                y = change(y, one, mask)
        return y


def change(x: Tensor, one: Intervention, mask: Tensor | None) -> Tensor:
    """x [B, T, D] with the neurons changed where mask [B or 1, T] says so (None: everywhere). x stays as it is."""
    index = torch.tensor(one.neurons, device=x.device)
    old = x.index_select(-1, index)  # [B, T, n]
    if one.op == "resample":
        return _write(x, one, mask, _resampled(old, one, mask))
    value = one.value.to(x) if isinstance(one.value, Tensor) else 0.0 if one.value is None else one.value
    if one.op == "add":
        new = old + value
    elif one.op == "scale":
        new = old * value
    else:  # set, mean, zero
        new = torch.zeros_like(old) + value
    return _write(x, one, mask, new)


def _write(x: Tensor, one: Intervention, mask: Tensor | None, new: Tensor) -> Tensor:
    index = torch.tensor(one.neurons, device=x.device)
    if mask is not None:
        new = torch.where(mask[..., None], new, x.index_select(-1, index))
    return x.index_copy(-1, index, new)


def _resampled(old: Tensor, one: Intervention, mask: Tensor | None) -> Tensor:
    """Values [B, T, n] of other tokens: the given ones, or those of the changed positions in another order."""
    rows, length, n = old.shape
    if isinstance(one.value, Tensor):
        if tuple(one.value.shape) != tuple(old.shape):
            raise ConfigError(f"the values to resample are {list(one.value.shape)}, the pass has {[rows, length, n]}")
        return one.value.to(old)
    flat = old.reshape(-1, n)
    places = torch.arange(rows * length) if mask is None else mask.expand(rows, length).flatten().nonzero()[:, 0].cpu()
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(one.seed))
    places, donors = places.to(old.device), places[order].to(old.device)
    return flat.index_copy(0, places, flat.index_select(0, donors)).view_as(old)
