"""Batches for validation: every held-out token but the first of its text is scored once, or a spread of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topklm.data.held_out import HeldOut
from topklm.data.loader import IGNORE, Batch
from topklm.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How held-out tokens are divided into windows. Raises `ConfigError` for sizes that make no sense."""

    context: int
    """Inputs in a window, at most."""
    stride: int | None = None
    """Tokens that a window scores after the first window of its text, which scores all of its own. So every token is
    predicted from at least context - stride + 1 inputs, or from all that come before it. None: context, windows that
    do not overlap."""
    documents: bool = False
    """Each document is windowed by itself: nothing is predicted from another document, and a document's first token,
    which has nothing before it, is not scored. False: the documents of a source are one text, as in training."""
    max_tokens: int | None = None
    """Score about so many tokens, in windows spaced evenly over each source (at least one); None: all."""

    def __post_init__(self) -> None:
        if self.context < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ConfigError(f"context {self.context} and max_tokens {self.max_tokens} must be at least 1")
        if not 1 <= self.step <= self.context:
            raise ConfigError(f"stride {self.stride} is not between 1 and the context, {self.context}")

    @property
    def step(self) -> int:
        """The stride in tokens."""
        return self.context if self.stride is None else self.stride

    @property
    def view(self) -> str:
        """Its name in the names of figures, val/ppl@VIEW: 256, 256-stride64, 256-documents."""
        stride = f"-stride{self.step}" if self.step < self.context else ""
        return f"{self.context}{stride}{'-documents' if self.documents else ''}"


@dataclass(frozen=True, kw_only=True)
class ValidationBatch(Batch):
    """A batch that knows where its rows come from."""

    source: Tensor
    """[b] int64: number of each row's source in `HeldOut.names`; -1 for padding. Stays on the CPU."""
    start: Tensor
    """[b] int64: place of each row's first input among the held-out tokens of its source. Stays on the CPU."""

    def to(self, device: torch.device | str) -> ValidationBatch:
        moved = super().to(device)
        return ValidationBatch(
            tokens=moved.tokens, targets=moved.targets, document_ids=moved.document_ids,
            source=self.source, start=self.start,
        )  # fmt: skip


def n_scored_tokens(held_out: HeldOut, windows: Windows) -> dict[str, int]:
    """How many held-out tokens of each source are scored.

    All but the first of each text (source or document), or with `max_tokens` as many windows as make up about the
    source's share of that (its share of all held-out tokens). Raises `DataError` if there is nothing to score.
    """
    return {
        name: int((plan[:, 2] - plan[:, 1]).sum())
        for name, plan in zip(held_out.names, _plans(held_out, windows), strict=True)
    }


def n_batches(held_out: HeldOut, windows: Windows, *, batch_size: int, world_size: int = 1) -> int:
    """How many batches `validation_batches` yields on each rank."""
    per_rank = -(-sum(map(len, _plans(held_out, windows))) // world_size)
    return -(-per_rank // min(batch_size, per_rank))


def validation_batches(
    held_out: HeldOut,
    windows: Windows,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    with_document_ids: bool = False,
) -> Iterator[ValidationBatch]:
    """This rank's batches over the held-out tokens.

    Windows are taken in order, window i by rank i % world_size; what a window does not score has the target `IGNORE`,
    and so has the padding at its end. The scored tokens are the same for any world size and batch size, and every
    rank yields equally many batches of the same shape [b, context], b <= `batch_size`.

    Raises `DataError` if there are no held-out tokens, at the call, not at the first batch.
    """
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError("batch_size must be at least 1, and the rank in its world")
    plans = _plans(held_out, windows)
    return _batches(held_out, plans, windows.context, batch_size, rank, world_size, with_document_ids)


def _plans(held_out: HeldOut, windows: Windows) -> list[np.ndarray]:
    """Per source one row a window, int64 [n, 3]: its first input, its first scored one, and the end of its inputs."""
    texts = [
        held_out.offsets[name] if windows.documents else np.array([0, len(array)])
        for name, array in held_out.arrays.items()
    ]
    targets = [np.maximum(np.diff(bounds) - 1, 0) for bounds in texts]
    total = int(sum(n.sum() for n in targets))
    if not total:
        raise DataError("no source has held-out tokens to score; prepare the sources with val_fraction above 0")
    plans = []
    for bounds, n in zip(texts, targets, strict=True):
        plan = _windows(bounds[:-1], n, windows)
        if windows.max_tokens is not None and windows.max_tokens < total:
            plan = plan[_spread(plan, int(n.sum()), total, windows)]
        plans.append(plan)
    return plans


def _windows(begins: np.ndarray, n: np.ndarray, windows: Windows) -> np.ndarray:
    """The windows of texts that begin at `begins` and have `n` targets each."""
    context, step = windows.context, windows.step
    count = np.where(n > 0, 1 + np.maximum(0, -(-(n - context) // step)), 0)
    text = np.repeat(np.arange(len(n)), count)
    number = np.arange(len(text)) - np.repeat(np.cumsum(count) - count, count)  # of the window in its text
    end = np.minimum(n[text], context + number * step)
    scored = np.where(number == 0, 0, context + (number - 1) * step)
    return np.stack((number * step, scored, end), 1) + begins[text][:, None]


def _spread(plan: np.ndarray, n: int, total: int, windows: Windows) -> np.ndarray:
    """The windows of a source that make up its share of the budget, evenly spaced: a few speak for all documents."""
    assert windows.max_tokens is not None
    share = n * windows.max_tokens // total
    if windows.documents:
        available = len(plan)  # of any length
        used = available * share // n if n else 0
    else:
        # Whole windows: all but a last one that is not full, and that one if it is all there is.
        available = len(plan) - int(len(plan) > 1 and (n - windows.context) % windows.step != 0)
        used = 1 + max(0, share - windows.context) // windows.step
    used = min(available, max(1, used))
    return np.arange(used) * available // max(1, used)


def _batches(
    held_out: HeldOut,
    plans: list[np.ndarray],
    context: int,
    batch_size: int,
    rank: int,
    world_size: int,
    with_ids: bool,
) -> Iterator[ValidationBatch]:
    arrays = list(held_out.arrays.values())
    every = np.concatenate(plans)
    sources = np.repeat(np.arange(len(plans)), [len(plan) for plan in plans])
    per_rank = -(-len(every) // world_size)
    rows = min(batch_size, per_rank)
    for first in range(0, per_rank, rows):
        tokens = np.zeros((rows, context), np.int64)
        targets = np.full((rows, context), IGNORE, np.int64)
        ids = np.zeros((rows, context), np.int64)
        source = np.full(rows, -1, np.int64)
        starts = np.zeros(rows, np.int64)
        for row in range(rows):
            window = rank + (first + row) * world_size
            # Rows beyond a rank's share stay padding, also where the last batch is not full.
            if first + row >= per_rank or window >= len(every):
                continue
            s, (start, scored, end) = int(sources[window]), every[window].tolist()
            n = end - start
            both = arrays[s].read(start, end + 1)  # [n + 1]
            tokens[row, :n], source[row], starts[row] = both[:-1], s, start
            targets[row, scored - start : n] = both[1 + scored - start :]
            if with_ids:
                ids[row, :n] = arrays[s].document_ids(start, end)
                ids[row, n:] = ids[row, n - 1]
        yield ValidationBatch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            document_ids=torch.from_numpy(ids) if with_ids else None,
            source=torch.from_numpy(source),
            start=torch.from_numpy(starts),
        )
