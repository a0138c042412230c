"""Excerpts for a neuron: those that a label is made from, and others, firing and quiet, that it is scored on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from topklm.bundles import LayerStats
from topklm.bundles.exponent import STRATA
from topklm.bundles.sketch import EMPTY
from topklm.interp.labels.corpus import BundleCorpus
from topklm.report.neurons.tokens import visible


@dataclass(frozen=True, kw_only=True)
class Span:
    """Some tokens of one window."""

    start: int
    """Position of the first."""
    stop: int
    """Position after the last."""
    token: int
    """Position of the one that it is about."""

    def overlaps(self, others: Iterable[Span]) -> bool:
        """Whether it has a token in common with any of them."""
        return any(self.start < other.stop and other.start < self.stop for other in others)


class Excerpts:
    """Finds and reads excerpts of `before` tokens, one token, and `after` tokens, inside its window."""

    def __init__(self, corpus: BundleCorpus, before: int, after: int) -> None:
        self.corpus, self.before, self.after = corpus, before, after

    def span(self, position: int) -> Span:
        """Around a position. The excerpt ends with its window: beyond, the model saw another text."""
        window = self.window_of(position)
        return Span(
            start=max(window, position - self.before),
            stop=min(window + self.corpus.context, position + self.after + 1),
            token=position,
        )

    def window_of(self, position: int) -> int:
        """Position of the first token of its window."""
        windows = self.corpus.bundle.windows
        return int(windows[np.searchsorted(windows, position, side="right") - 1])

    def strongest(self, stats: LayerStats, neuron: int, n: int) -> list[Span]:
        """The at most `n` strongest ones of a neuron that do not overlap, by falling activation."""
        found: list[Span] = []
        for position in stats.top.position[neuron]:
            if position != EMPTY and len(found) < n:
                span = self.span(int(position))
                if not span.overlaps(found):
                    found.append(span)
        return found

    def sampled(self, stats: LayerStats, neuron: int, n: int, besides: list[Span]) -> list[Span]:
        """The at most `n` of the bundle's sample that overlap neither each other nor `besides`: in turn one of each
        power of two of the activation, from the strongest down, so that weak firing counts as much as strong."""
        rows = stats.sample.position[neuron * STRATA : (neuron + 1) * STRATA]  # [STRATA, m]
        found: list[Span] = []
        for column in rows.T:
            for position in column[::-1]:
                if position != EMPTY and len(found) < n:
                    span = self.span(int(position))
                    if not span.overlaps(found) and not span.overlaps(besides):
                        found.append(span)
        return found

    def pool(self, windows: np.ndarray) -> list[Span]:
        """All excerpts of full length that fit side by side into some windows."""
        size = self.before + 1 + self.after
        return [
            Span(start=int(w) + first, stop=int(w) + first + size, token=int(w) + first + self.before)
            for w in windows
            for first in range(0, self.corpus.context - size + 1, size)
        ]

    def text(self, span: Span, marked: bool) -> str:
        """As one line; with the token between << and >> if `marked`. The text itself has neither."""
        window = self.window_of(span.start)
        ids = self.corpus.window(window)[span.start - window : span.stop - window].tolist()
        at = span.token - span.start
        parts = ["", self._decode(ids[:at]), self._decode(ids[: at + 1]), self._decode(ids)]
        if all(b.startswith(a) for a, b in pairwise(parts)):
            head, token, tail = (b[len(a) :] for a, b in pairwise(parts))
        else:  # the token is a part of a character
            pieces = [self.corpus.tokenizer.piece(i) for i in ids]
            head, token, tail = "".join(pieces[:at]), pieces[at], "".join(pieces[at + 1 :])
        if not marked:
            return " ".join((head + token + tail).split())
        core = token.strip()
        space = token[: len(token) - len(token.lstrip())] if core else ""
        head, core, tail = (
            each.replace("<<", "< <").replace(">>", "> >") for each in (head, core or visible(token), tail)
        )
        return " ".join(f"{head}{space}<<{core}>>{tail}".split())

    def _decode(self, ids: list[int]) -> str:
        return self.corpus.tokenizer.decode(ids)
