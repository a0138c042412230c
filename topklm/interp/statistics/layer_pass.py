"""One pass of a model over windows: some of its layers, read and added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from topklm.bundles import Bundle, LayerStats, Settings
from topklm.interp.statistics.accumulate import LayerAccumulator
from topklm.interp.statistics.layer_plan import LayerPlan
from topklm.interp.statistics.reading import read_layer
from topklm.interp.statistics.tap import tap
from topklm.interp.statistics.token_batch import TokenBatch
from topklm.model import Transformer
from topklm.sparsity.activation import Activation

T = TypeVar("T")
Piece = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""A batch of windows: tokens, positions, and document ids or None, each int64 [B, T]."""


class LayerPass:
    """The statistics of a group of layers, so far.

    `plans`: how each layer of the model is read; `group`: the layers that are added up in this pass (those before and
    the one after are read too, for who fires in several in a row). `types` int64 [R], ascending: the token types that
    will occur.
    """

    def __init__(
        self,
        model: Transformer,
        plans: Sequence[LayerPlan],
        group: Sequence[int],
        types: np.ndarray,
        settings: Settings,
        *,
        alpha: float | None,
        site: str,
        device: torch.device,
    ) -> None:
        self._model, self._plans, self._alpha, self._site, self._device = model, plans, alpha, site, device
        self._types, self.counts = types, np.zeros(len(types), np.int64)
        self._row_of = np.zeros(int(types.max(initial=0)) + 1, np.int64)
        self._row_of[types] = np.arange(len(types))
        last = len(plans) - 1
        self._accumulators = {
            layer: LayerAccumulator(
                layer, model.config.dim, len(types), settings, device,
                selects=plans[layer].selects, signed=plans[layer].signed, has_next=layer < last,
            )
            for layer in group
        }  # fmt: skip
        self._watched = range(min(max(group) + 1, last) + 1)
        self._batch = TokenBatch.of(np.empty(0, np.int64), np.empty(0, np.int64))
        self._executor: Executor = _AtOnce()
        self._before: Future[tuple[Tensor, Tensor]] | None = None  # what `_count` made of the layer before

    def run(self, batches: Iterable[Piece]) -> Iterator[int]:
        """Add up batches; yields the number of windows of each when it is counted."""
        with tap(self._model, self._watched, self._see) as forward, _executor(self._device) as self._executor:
            for tokens, positions, document_ids in batches:
                rows = self._row_of[tokens]
                self._batch = TokenBatch.of(rows.ravel(), positions.ravel(), self._device)
                ids = None if document_ids is None else torch.from_numpy(document_ids).to(self._device)
                self._before = None
                forward(torch.from_numpy(tokens).to(self._device), ids)
                if self._before is not None:
                    self._before.result()  # which waits for the layers before it
                self.counts += np.bincount(rows.ravel(), minlength=len(self.counts))
                yield len(tokens)

    def _see(self, layer: int, output: Tensor, pre: Tensor | None, activation: Activation | None) -> None:
        self._before = self._executor.submit(self._count, layer, output, pre, activation, self._before)

    def _count(
        self,
        layer: int,
        output: Tensor,
        pre: Tensor | None,
        activation: Activation | None,
        before: Future[tuple[Tensor, Tensor]] | None,
    ) -> tuple[Tensor, Tensor]:
        """Add up one layer in one batch. Returns who fired, bool [n, N], and in how many layers in a row so far, int16
        [n, N]."""
        cut = self._plans[layer].cut
        reading = read_layer(output, pre, activation, alpha=self._alpha, site=self._site, cut=cut)
        if layer in self._accumulators:
            self._accumulators[layer].add(reading, self._batch)
        runs = reading.fired.to(torch.int16)
        if before is not None:
            fired_before, runs_before = before.result()
            if layer - 1 in self._accumulators:
                self._accumulators[layer - 1].add_next(fired_before, reading.fired)
            runs = (runs_before + 1) * runs
        if layer in self._accumulators:
            self._accumulators[layer].add_runs(reading, runs)
        return reading.fired, runs

    def stats(self) -> Iterator[tuple[int, LayerStats]]:
        """(layer, statistics so far), layer by layer; write each before the next one and before `run` goes on."""
        for layer, accumulator in self._accumulators.items():
            yield layer, accumulator.stats(self._types, self.counts > 0)

    def load(self, bundle: Bundle) -> None:
        """Go on from a bundle that `stats` was written to; nothing may have been added yet."""
        for layer, accumulator in self._accumulators.items():
            accumulator.load(bundle.layer(layer).whole(), self._types, bundle.n_tokens)
        self.counts = bundle.counts[self._types]

    def type_counts(self, vocab_size: int) -> np.ndarray:
        """int64 [V]: tokens of each type so far."""
        counts = np.zeros(vocab_size, np.int64)
        counts[self._types] = self.counts
        return counts


class _AtOnce(Executor):
    """Does what is submitted before it returns."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _executor(device: torch.device) -> Iterator[Executor]:
    """On a CPU with several cores layers are counted beside the forward pass, each by one thread: counting is many
    small operations, which do not divide well, but layers are independent of each other."""
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        yield _AtOnce()
        return
    try:
        with ThreadPoolExecutor(n_threads, "topklm-count", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(n_threads)  # the workers' 1 would be that of every thread made later
