"""Keys and values of the tokens that a model has seen, so that the next token costs one position and not all of them.

Each row of a batch has its own length, and a token's slot is its position. Prompts of unequal length are padded on the
right; the padding's slots lie beyond the row's length after `rewind`, are masked, and are written over by what follows.
So positions are those of a full forward pass, and the first pass is plain causal attention without a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from topklm.errors import ConfigError
from topklm.model.config import ModelConfig


class KVCache:
    """The cache of one batch: 2 L B capacity H_kv d numbers, taken at once.

    `model(tokens, cache=cache)` appends tokens [B, T] to every row at that row's own length, and attends to what the
    row holds before and including them. `lengths` [B] int64 is how many tokens each row holds.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, *, device: torch.device | str, dtype: torch.dtype
    ):
        self.config, self.capacity = config, capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        # The lengths on the host as well: how far to attend is decided there, without waiting for the device.
        self._filled = [0] * batch
        self.rope: tuple[Tensor, Tensor] | None = None
        """cos and sin of every position, [capacity, d / 2], which the model leaves here at its first pass."""
        self.prompt_lengths: Tensor | None = None
        """int64 [B] tokens of each row's prompt, where whoever fills the cache tells; the model does not need them."""
        shape = (batch, config.kv_heads, capacity, config.head_width)
        self.layers = [LayerCache(shape, device, dtype) for _ in range(config.n_layers)]

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return len(self._filled)

    def begin(self, batch: int, length: int) -> tuple[Tensor, Tensor | None]:
        """Make room for `length` more tokens a row: their positions [B, T], and the mask [1 or B, 1, T, S] of the
        slots that each may attend to; None where that is plain causal attention, or all slots.

        Raises `ConfigError` if there is no room, or another number of rows.
        """
        if batch != self.batch:
            raise ConfigError(f"a batch of {batch} rows does not continue a cache of {self.batch}")
        longest = max(self._filled)
        if longest + length > self.capacity:
            raise ConfigError(
                f"the cache has room for {self.capacity:,} tokens a row; one holds {longest:,} and {length:,} more come"
            )
        positions = self.lengths[:, None] + torch.arange(length, device=self.lengths.device)  # [B, T]
        even = min(self._filled) == longest
        rows = torch.arange(batch, device=self.lengths.device)[:, None]
        where = (slice(None), slice(longest, longest + length)) if even else (rows, positions)
        for layer in self.layers:
            layer.open(where, longest + length, positions, self.prompt_lengths)
        if even and (longest == 0 or length == 1):
            return positions, None
        slots = torch.arange(longest + length, device=self.lengths.device)
        seen_from = positions[:1] if even else positions
        return positions, (slots <= seen_from[:, :, None])[:, None]

    def commit(self, length: int) -> None:
        """The tokens that `begin` made room for are written."""
        self.lengths += length
        self._filled = [n + length for n in self._filled]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget what each row holds beyond its length, such as padding. Raises `ValueError` if a row holds less."""
        if len(lengths) != self.batch or any(not 0 <= n <= have for n, have in zip(lengths, self._filled, strict=True)):
            raise ValueError(f"rows hold {self._filled} tokens, they cannot be cut to {list(lengths)}")
        self._filled = list(lengths)
        self.lengths = torch.tensor(self._filled, device=self.lengths.device)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row rows[i] was: for leaving rows out, and for repeating one (then memory grows).

        Only rows that change their place are copied, so a hole is best filled with the last row.
        """
        self._filled = [self._filled[row] for row in rows]
        longest = max(self._filled, default=0)
        for layer in self.layers:
            layer.select(rows, longest)
        self.lengths = torch.tensor(self._filled, dtype=torch.int64, device=self.lengths.device)
        if self.prompt_lengths is not None:
            self.prompt_lengths = self.prompt_lengths[list(rows)]


class LayerCache:
    """Keys and values of one layer: [B, H_kv, capacity, d] each, the keys with their rotation."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device | str, dtype: torch.dtype):
        # Zeros: a masked slot's weight is 0, and 0 times whatever was in the memory could be NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def open(self, where: tuple[Any, Any], end: int, positions: Tensor, prompt_lengths: Tensor | None) -> None:
        """The next tokens go to the rows and slots `where`; the longest row ends before slot `end` then.

        Their `positions` [B, T] and the rows' `prompt_lengths` [B] are kept for who changes a block by position.
        """
        self._where, self._end = where, end
        self.positions, self.prompt_lengths = positions, prompt_lengths

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, H_kv, T, d]; all keys and values up to the longest row's, [B, H_kv, S, d]."""
        for stored, new in ((self.keys, k), (self.values, v)):
            stored.transpose(1, 2)[self._where] = new.transpose(1, 2)
        return self.keys[:, :, : self._end], self.values[:, :, : self._end]

    def select(self, rows: Sequence[int], longest: int) -> None:
        self.keys, self.values = (_select(stored, rows, longest) for stored in (self.keys, self.values))


def _select(stored: Tensor, rows: Sequence[int], longest: int) -> Tensor:
    if len(rows) > len(stored):
        grown = stored.new_zeros((len(rows), *stored.shape[1:]))
        grown[:, :, :longest] = stored[list(rows), :, :longest]
        return grown
    moved = [(i, row) for i, row in enumerate(rows) if i != row]
    if moved:
        to, come = (list(part) for part in zip(*moved, strict=True))
        stored[to, :, :longest] = stored[come, :, :longest]
    return stored[: len(rows)]
