"""Spans of text to log-likelihoods: in batches of like length, each text once, the head only where it is needed.

Nothing here knows of lm-evaluation-harness or of other ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topklm.model import Transformer
from topklm.model.scoring import score_tokens

log = logging.getLogger("topklm.evaluate")

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}
"""Tokens in a forward pass to begin with. On a CPU more is slower, since the activations leave its caches."""


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
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(device.type, 2048)

    def score(self, spans: Sequence[Span], advance: Callable[[int], None] | None = None) -> list[Score]:
        """The scores in the order of the spans. `advance` is told how many more spans are done, after each batch."""
        results: list[Score] = [(0.0, True)] * len(spans)
        # The longest first: the memory that they need is known at once, and the remaining time is never underrated.
        rows = sorted(_rows(spans), key=lambda row: len(row.inputs), reverse=True)
        first = 0
        while first < len(rows):
            width = len(rows[first].inputs)
            batch = rows[first : first + max(1, self.batch_tokens // width)]
            try:
                scores = self._forward(batch, spans)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_tokens = width * (len(batch) // 2)
                log.warning("not enough memory for %d x %d tokens; going on with half", len(batch), width)
                continue
            members = [i for row in batch for i in row.members]
            for i, score in zip(members, scores, strict=True):
                results[i] = score
            first += len(batch)
            if advance is not None:
                advance(len(members))
        return results

    def _forward(self, batch: Sequence[_Row], spans: Sequence[Span]) -> list[Score]:
        """Scores of the members of a batch, row by row."""
        width = len(batch[0].inputs)
        tokens = torch.tensor([[*row.inputs, *[0] * (width - len(row.inputs))] for row in batch])  # [B, T]
        positions: list[int] = []
        targets: list[int] = []
        counts: list[int] = []
        for number, row in enumerate(batch):
            end = number * width + len(row.inputs)
            for span in (spans[i] for i in row.members):
                positions += range(end - span.n_scored, end)
                targets += span.tokens[-span.n_scored :]
                counts.append(span.n_scored)
        log_p, greedy = score_tokens(self.model, self._sent(tokens), self._sent(positions), self._sent(targets))
        owner = self._sent(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)))
        each = torch.stack((log_p.double(), greedy.logical_not().double()), -1)  # [N, 2]
        sums = torch.zeros(len(counts), 2, dtype=torch.float64, device=self.device).index_add_(0, owner, each)
        return [(total, misses == 0) for total, misses in sums.tolist()]

    def _sent(self, values: Tensor | list[int]) -> Tensor:
        return torch.as_tensor(values).to(self.device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a batch: the inputs of one span, or of several that differ in their last token only."""

    inputs: tuple[int, ...]
    members: list[int]


def _rows(spans: Sequence[Span]) -> list[_Row]:
    by_inputs: dict[tuple[int, ...], list[int]] = {}
    for i, span in enumerate(spans):
        by_inputs.setdefault(span.tokens[:-1], []).append(i)
    return [_Row(inputs, members) for inputs, members in by_inputs.items()]
