"""Spans of text to log-likelihoods: in batches of like length, nothing twice, the head only where it is needed.

Answers to one question share its forward pass: those that differ in their last token share all of it, others the keys
and values of the question. Nothing here knows of lm-evaluation-harness or of other ranks.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from topklm.errors import NonFiniteError
from topklm.model import KVCache, Transformer
from topklm.model.scoring import score_tokens

log = logging.getLogger("topklm.evaluate")

BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
"""Tokens in a forward pass to begin with. On a CPU 2,048 take 5 to 17 % longer, since activations leave its caches."""
SAVED = 0.3
"""A context is shared if that saves this part of the tokens: a second pass has its price."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of which the last `n_scored` are scored, each given all that stand before it."""

    tokens: tuple[int, ...]
    """At least one more than are scored."""
    n_scored: int
    """At least 1."""


Score = tuple[float, bool]
"""(sum of ln p over the scored tokens in nats, whether each of them is the most probable one)."""


def cut(context: Sequence[int], continuation: Sequence[int], window: int) -> list[Span]:
    """The spans that score `continuation` after `context` by a model that sees at most `window` tokens.

    Almost always one. What does not fit is cut off on the left, and the scored tokens with their targets stay where
    they are: the last window + 1 tokens, of which the very last is only a target. A continuation that alone is longer
    than the window is scored in several spans, each with as much before it as fits.
    """
    tokens, spans = [*context, *continuation], []
    n, end = len(continuation), len(tokens)
    while n > 0:
        spans.append(Span(tuple(tokens[max(0, end - window - 1) : end]), min(n, window)))
        n, end = n - window, end - window
    return spans[::-1]


class Scorer:
    """Scores spans with one model on one device."""

    def __init__(self, model: Transformer, *, device: torch.device, batch_tokens: int | None = None):
        """`batch_tokens`: tokens in a forward pass, padding included; None: by device. Halved when memory is short."""
        self.model, self.device = model, device
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(device.type, 8192)

    def score(self, spans: Sequence[Span], advance: Callable[[int], None] | None = None) -> list[Score]:
        """The scores in the order of the spans. `advance` is told how many more spans are done, after each batch.

        Raises `NonFiniteError` if the model's logits are not finite.
        """
        results: list[Score] = [(0.0, True)] * len(spans)
        for units in _plan(spans):
            # The longest first: the memory that they need is known at once, and the time left is never underrated.
            todo = sorted(units, key=lambda unit: unit.size, reverse=True)
            first = 0
            while first < len(todo):
                batch = todo[first : first + max(1, self.batch_tokens // todo[first].size)]
                try:
                    scores = self._forward(batch)
                except torch.OutOfMemoryError:
                    if len(batch) == 1:
                        raise
                    self.batch_tokens = todo[first].size * (len(batch) // 2)
                    log.warning("not enough memory for %d texts at once; going on with half", len(batch))
                    torch.cuda.empty_cache()  # blocks of the size that failed; does nothing without a GPU
                    continue
                for i, score in scores:
                    results[i] = score
                first += len(batch)
                if advance is not None:
                    advance(len(scores))
        return results

    def _forward(self, batch: Sequence[_Unit]) -> list[tuple[int, Score]]:
        """(number of the span, its score) for all spans of a batch."""
        number = {i: place for place, i in enumerate(i for unit in batch for i, _ in unit.row.asked)}
        sums = torch.zeros(len(number), 2, dtype=torch.float64, device=self.device)
        following = [(place, row) for place, unit in enumerate(batch) for row in unit.following]
        cache = None
        if following:
            capacity = max(len(u.row.inputs) for u in batch) + max(len(row.inputs) for _, row in following)
            weight = self.model.head_weight
            cache = KVCache(self.model.config, len(batch), capacity, device=self.device, dtype=weight.dtype)
        self._pass([unit.row for unit in batch], number, sums, cache)
        if cache is not None:
            cache.rewind([len(unit.row.inputs) for unit in batch])
            cache.select([place for place, _ in following])
            self._pass([row for _, row in following], number, sums, cache)
        found = [(i, (total, misses == 0)) for i, (total, misses) in zip(number, sums.tolist(), strict=True)]
        if not all(math.isfinite(total) for _, (total, _) in found):
            raise NonFiniteError("the model's logits are NaN or infinite; nothing can be said of it")
        return found

    def _pass(self, rows: Sequence[_Row], number: dict[int, int], sums: Tensor, cache: KVCache | None) -> None:
        """One forward pass; adds (ln p, 1 if it was not the most probable) of every target to its span's sums."""
        width = max(len(row.inputs) for row in rows)
        tokens = torch.tensor([[*row.inputs, *[0] * (width - len(row.inputs))] for row in rows])  # [B, T]
        positions: list[int] = []
        counts: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for at, row in enumerate(rows):
            end = at * width + len(row.inputs)
            for back in range(max(len(asked) for _, asked in row.asked), 0, -1):
                here = [(number[i], asked[-back]) for i, asked in row.asked if len(asked) >= back]
                positions.append(end - back)
                counts.append(len(here))
                owners += [owner for owner, _ in here]
                targets += [target for _, target in here]
        log_p, greedy = score_tokens(
            self.model, self._sent(tokens), self._sent(positions), counts, self._sent(targets), cache
        )
        each = torch.stack((log_p.double(), greedy.logical_not().double()), -1)  # [N, 2]
        sums.index_add_(0, self._sent(owners), each)

    def _sent(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens of one forward pass, and what is asked after the last of them."""

    inputs: tuple[int, ...]
    asked: list[tuple[int, tuple[int, ...]]]
    """(number of a span, its targets): the last target follows the last input, the one before the one before, ..."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A row, and those that continue it with its keys and values."""

    row: _Row
    following: list[_Row] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens that it costs in a forward pass; a quarter for those that are only kept as keys and values."""
        context, continued = len(self.row.inputs), sum(len(row.inputs) for row in self.following)
        return max(context + continued, (len(self.following) * context + continued) // 4)


def _plan(spans: Sequence[Span]) -> tuple[list[_Unit], list[_Unit]]:
    """(contexts that are shared by several continuations, texts in one piece)."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for i, span in enumerate(spans):
        by_context.setdefault(span.tokens[: -span.n_scored], []).append(i)
    shared: list[_Unit] = []
    alone: list[int] = []
    for context, members in by_context.items():
        if not _saves(context, (spans[i] for i in members)):
            alone += members
            continue
        first = _Row(context, [(i, (spans[i].tokens[len(context)],)) for i in members])
        longer = [(spans[i].tokens[len(context) : -1], i, spans[i].n_scored - 1) for i in members]
        shared.append(_Unit(first, _rows(((inputs, i, n) for inputs, i, n in longer if n), spans)))
    whole = _rows(((spans[i].tokens[:-1], i, spans[i].n_scored) for i in alone), spans)
    return shared, [_Unit(row) for row in whole]


def _saves(context: tuple[int, ...], spans: Iterable[Span]) -> bool:
    """Whether it pays to run the context once."""
    inputs = {span.tokens[len(context) : -1] for span in spans}
    whole = sum(len(context) + len(part) for part in inputs)
    return (len(inputs) - 1) * len(context) >= SAVED * whole and len(inputs) > 1


def _rows(wanted: Iterable[tuple[tuple[int, ...], int, int]], spans: Sequence[Span]) -> list[_Row]:
    """(inputs, number of a span, how many of its last tokens are targets): spans with equal inputs share a row."""
    by_inputs: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for inputs, i, n in wanted:
        by_inputs.setdefault(inputs, []).append((i, spans[i].tokens[-n:]))
    return list(itertools.starmap(_Row, by_inputs.items()))
