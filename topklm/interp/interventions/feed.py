"""Which positions a forward pass feeds: absolute ones, of every row, and where each row's prompt ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topklm.errors import ConfigError
from topklm.model.cache import LayerCache


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What one block is given in one pass."""

    positions: Tensor | None
    """int64 [B or 1, T], from 0; None: 0 ... T - 1."""
    prompt_lengths: Tensor | None
    """int64 [B] tokens of each row's prompt; None: not known."""

    @staticmethod
    def of(args: Sequence[Any], kwargs: Mapping[str, Any], prompt_lengths: Tensor | None) -> Feed:
        """From the arguments of a block: our own cache, or the `position_ids` of transformers."""
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, LayerCache)), None)
        if cache is None:
            return Feed(positions=kwargs.get("position_ids"), prompt_lengths=prompt_lengths)
        known = cache.prompt_lengths if prompt_lengths is None else prompt_lengths
        return Feed(positions=cache.positions, prompt_lengths=known)

    def mask(self, which: str | Tensor, x: Tensor) -> Tensor | None:
        """bool [B or 1, T] of the positions that are changed of x [B, T, D]; None: all of them.

        Raises `ConfigError` where prompts must be known and are not, and where a mask has other rows.
        """
        if isinstance(which, str) and which == "all":
            return None
        rows, length = x.shape[:2]
        positions = torch.arange(length, device=x.device)[None] if self.positions is None else self.positions
        if isinstance(which, Tensor):
            return _looked_up(which.to(x.device), positions, rows)
        if self.prompt_lengths is None:
            if which == "last":
                return torch.arange(length, device=x.device)[None] == length - 1
            raise ConfigError(
                f"positions {which!r}: this forward pass does not tell where prompts end (topklm.generate does); "
                "give intervene(..., prompt_lengths=[...]), one number or one per row"
            )
        ends = self.prompt_lengths.to(x.device)
        if len(ends) not in (1, rows):
            raise ConfigError(f"there are {len(ends)} prompt lengths, and {rows} rows in a forward pass")
        first = ends[:, None] - int(which == "last")  # the last of the prompt chooses the first generated token
        return positions < first if which == "prompt" else positions >= first


def _looked_up(mask: Tensor, positions: Tensor, rows: int) -> Tensor:
    """mask [B or 1, T] at positions [B or 1, t]: bool [B, t], False beyond T."""
    if len(mask) not in (1, rows):
        raise ConfigError(
            f"the mask of positions has {len(mask)} rows, and a forward pass {rows}; in a generation rows come and go, "
            "give one row there, which counts for all"
        )
    positions = positions.expand(max(len(mask), len(positions)), -1)
    inside = positions < mask.shape[1]
    found = mask.expand(len(positions), -1).gather(1, positions.clamp(max=max(mask.shape[1] - 1, 0)))
    return found & inside
