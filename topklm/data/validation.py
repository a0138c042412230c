"""Batches for validation: every held-out token but the first of its source is scored once, or a spread of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topklm.data.loader import IGNORE, Batch
from topklm.data.train_data import TrainData
from topklm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ValidationBatch(Batch):
    """A batch that knows where its rows come from."""

    source: Tensor
    """[b] int64: number of each row's source in `TrainData.names`; -1 for padding. Stays on the CPU."""

    def to(self, device: torch.device | str) -> ValidationBatch:
        moved = super().to(device)
        return ValidationBatch(
            tokens=moved.tokens, targets=moved.targets, document_ids=moved.document_ids, source=self.source
        )


def n_scored_tokens(data: TrainData, context: int, max_tokens: int | None = None) -> dict[str, int]:
    """How many held-out tokens of each source are scored in windows of `context` tokens.

    All but the first of each source, or with `max_tokens` as many whole windows as make up its share of that (a
    source's share is that of its held-out tokens; at least one window). Raises `DataError` if no source has two
    held-out tokens.
    """
    return {
        name: int(sum(min(context, n - start) for start in starts))
        for name, (starts, n) in _windows(data, context, max_tokens).items()
    }


def _windows(data: TrainData, context: int, max_tokens: int | None) -> dict[str, tuple[np.ndarray, int]]:
    """Per source: the first token of each window that is scored, and the number of targets there are."""
    targets = {name: max(0, len(tokens) - 1) for name, tokens in data.val.items()}
    total = sum(targets.values())
    if not total:
        raise DataError("no source has held-out tokens; prepare the sources with val_fraction above 0")
    windows = {}
    for name, n in targets.items():
        if max_tokens is None or max_tokens >= total:
            starts = np.arange(0, n, context)
        else:
            # Evenly spaced over the source, so that a few windows speak for all of its documents.
            whole = max(1, n // context) if n else 0
            used = min(whole, max(1, n * max_tokens // total // context))
            starts = np.arange(used) * whole // used * context if whole else np.arange(0)
        windows[name] = (starts, n)
    return windows


def validation_batches(
    data: TrainData,
    *,
    context: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    max_tokens: int | None = None,
    with_document_ids: bool = False,
) -> Iterator[ValidationBatch]:
    """This rank's validation batches over the held-out tokens `data.val`.

    The held-out tokens of each source are cut into windows of `context` inputs that do not overlap, in order; the
    last one is padded with targets `IGNORE`. Window i goes to rank i % world_size. The scored tokens are the same
    for any world size and batch size, and every rank yields equally many batches of the same shape [b, context],
    b <= `batch_size`. With `max_tokens` some of the windows are scored, evenly spaced (`n_scored_tokens`).

    Raises `DataError` if there are no held-out tokens, at the call, not at the first batch.
    """
    if context < 1 or batch_size < 1 or not 0 <= rank < world_size or (max_tokens is not None and max_tokens < 1):
        raise ValueError("context, batch_size and max_tokens must be at least 1, and the rank in its world")
    windows = _windows(data, context, max_tokens)
    return _batches(data, list(windows.values()), context, batch_size, rank, world_size, with_document_ids)


def _batches(
    data: TrainData,
    windows: list[tuple[np.ndarray, int]],
    context: int,
    batch_size: int,
    rank: int,
    world_size: int,
    with_ids: bool,
) -> Iterator[ValidationBatch]:
    arrays = list(data.val.values())
    every = [(s, int(start)) for s, (starts, _) in enumerate(windows) for start in starts]
    per_rank = -(-len(every) // world_size)
    rows = min(batch_size, per_rank)
    for first in range(0, per_rank, rows):
        tokens = np.zeros((rows, context), np.int64)
        targets = np.full((rows, context), IGNORE, np.int64)
        ids = np.zeros((rows, context), np.int64)
        source = np.full(rows, -1, np.int64)
        for row in range(rows):
            window = rank + (first + row) * world_size
            # Rows beyond a rank's share stay padding, also where the last batch is not full.
            if first + row >= per_rank or window >= len(every):
                continue
            s, start = every[window]
            n = min(context, windows[s][1] - start)
            both = arrays[s].read(start, start + n + 1)  # [n + 1]
            tokens[row, :n], targets[row, :n], source[row] = both[:-1], both[1:], s
            if with_ids:
                ids[row, :n] = arrays[s].document_ids(start, start + n)
                ids[row, n:] = ids[row, n - 1]
        yield ValidationBatch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            document_ids=torch.from_numpy(ids) if with_ids else None,
            source=torch.from_numpy(source),
        )
