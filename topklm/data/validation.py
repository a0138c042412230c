"""Batches for validation: every held-out token but the first of its source is scored exactly once."""

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


def n_scored_tokens(data: TrainData, max_tokens: int | None = None) -> dict[str, int]:
    """How many held-out tokens of each source are scored: all but the first, or a share of `max_tokens`.

    `max_tokens` is spread in proportion to the sources' held-out tokens, remainders to the largest fractions, and
    is the sum unless there are fewer. Raises `DataError` if no source has two held-out tokens.
    """
    available = {name: max(0, len(tokens) - 1) for name, tokens in data.val.items()}
    total = sum(available.values())
    if not total:
        raise DataError("no source has held-out tokens; prepare the sources with val_fraction above 0")
    if max_tokens is None or max_tokens >= total:
        return available
    shares = {name: divmod(n * max_tokens, total) for name, n in available.items()}
    scored = {name: whole for name, (whole, _) in shares.items()}
    largest = sorted(shares, key=lambda name: (-shares[name][1], name))
    for name in largest[: max_tokens - sum(scored.values())]:
        scored[name] += 1
    return scored


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
    b <= `batch_size`. With `max_tokens`, the first tokens of each source are scored (`n_scored_tokens`).

    Raises `DataError` if there are no held-out tokens, at the call, not at the first batch.
    """
    if context < 1 or batch_size < 1 or not 0 <= rank < world_size or (max_tokens is not None and max_tokens < 1):
        raise ValueError("context, batch_size and max_tokens must be at least 1, and the rank in its world")
    scored = np.array(list(n_scored_tokens(data, max_tokens).values()))
    return _batches(data, scored, context, batch_size, rank, world_size, with_document_ids)


def _batches(
    data: TrainData, scored: np.ndarray, context: int, batch_size: int, rank: int, world_size: int, with_ids: bool
) -> Iterator[ValidationBatch]:
    arrays = list(data.val.values())
    first_window = np.cumsum([0, *(-(-scored // context))])  # of each source, and the number of all
    per_rank = -(-int(first_window[-1]) // world_size)
    rows = min(batch_size, per_rank)
    for first in range(0, per_rank, rows):
        tokens = np.zeros((rows, context), np.int64)
        targets = np.full((rows, context), IGNORE, np.int64)
        ids = np.zeros((rows, context), np.int64)
        source = np.full(rows, -1, np.int64)
        for row in range(rows):
            window = rank + (first + row) * world_size
            # Rows beyond a rank's share stay padding, also where the last batch is not full.
            if first + row >= per_rank or window >= first_window[-1]:
                continue
            s = int(np.searchsorted(first_window, window, side="right")) - 1
            start = (window - int(first_window[s])) * context
            n = min(context, int(scored[s]) - start)
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
