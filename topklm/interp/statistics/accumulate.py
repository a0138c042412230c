"""Adding up what one layer does, batch after batch, on the device of the model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from topklm.bundles import LayerStats, Settings, TokenTable
from topklm.bundles.exponent import N_CODES, NOT_FINITE
from topklm.errors import NonFiniteError
from topklm.interp.statistics.contexts import ContextAccumulator
from topklm.interp.statistics.cuts import FIELDS as CUT_FIELDS
from topklm.interp.statistics.cuts import CutAccumulator
from topklm.interp.statistics.reading import Entries, LayerReading, bin_codes
from topklm.interp.statistics.token_batch import TokenBatch


class LayerAccumulator:
    """The statistics of one layer so far; `stats` gives them as `LayerStats`.

    Sums are in float64 from the single token on and counts in int64, so order and batch size change sums by the
    rounding of float64 alone, and counts, extremes and contexts not at all.

    `n_types`: rows of the token tables. `selects`: its readings have a selection. `signed`: activations can be
    negative. `has_next`: it is not the model's last layer, so `add_next` will be called.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        n_types: int,
        settings: Settings,
        device: torch.device,
        *,
        selects: bool,
        signed: bool,
        has_next: bool,
    ) -> None:
        self.layer, self.width, self.signed, self.device = layer, width, signed, device
        self.n_tokens = 0
        self.tables = {"sum": self._zeros(n_types, width, dtype=torch.float64)}
        if signed and settings.positive_part:
            self.tables["positive"] = self._zeros(n_types, width, dtype=torch.float64)
        if settings.token_fired:
            self.tables["fired"] = self._zeros(n_types, width)
        self.square_sum, self.positive_sum = (self._zeros(width, dtype=torch.float64) for _ in range(2))
        self.maximum = torch.full((width,), -torch.inf, dtype=torch.float64, device=device)
        self.fired = self._zeros(width)
        self.last_fired = self._zeros(width) - 1
        self.histogram = self._zeros(N_CODES, width)  # the zeros of sparse readings are added in `stats`
        self.fired_next = self._zeros(width) if has_next else None
        self.fired_runs: Tensor | None = self._zeros(layer + 1, width)
        self.cuts = CutAccumulator(width, settings.near_miss, device) if selects else None
        self.contexts = ContextAccumulator(width, settings.top_contexts, settings.sample_contexts, device)
        self._neuron = torch.arange(width, dtype=torch.int32, device=device)

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def add(self, reading: LayerReading, batch: TokenBatch) -> None:
        """Count the tokens of a batch."""
        if isinstance(reading.values, Entries):
            self._add_entries(reading.values, batch)
        else:
            self._add_all(reading.values, reading.fired, batch)
        if self.cuts is not None and reading.selection is not None:
            self.cuts.add(reading.selection, reading.fired)
        self.n_tokens += len(batch)

    def add_next(self, fired: Tensor, fired_next: Tensor) -> None:
        """Count who fired here and in the next layer at the same tokens; bool [n, N] each."""
        if self.fired_next is not None:
            self.fired_next += _column_counts(fired & fired_next)

    def add_runs(self, reading: LayerReading, runs: Tensor) -> None:
        """Count in how many layers in a row each neuron has fired; `runs` integers [n, N], this layer being the last of
        the row, 0 where it did not fire here."""
        if self.fired_runs is None:
            return
        if isinstance(reading.values, Entries):  # nothing else has fired
            token, neuron = reading.values.token, reading.values.neuron
            cell = runs[token, neuron].int() * self.width + neuron
        else:
            cell = (runs.int() * self.width + self._neuron).view(-1)
        counts = torch.bincount(cell, minlength=(self.layer + 2) * self.width)
        self.fired_runs += counts.view(-1, self.width)[1:]

    def _add_all(self, x: Tensor, fired: Tensor, batch: TokenBatch) -> None:
        index = batch.rows[:, None].expand(-1, self.width)
        wide = x.double()
        self.tables["sum"].scatter_add_(0, index, wide)
        self.square_sum += (wide * wide).sum(0)
        positive = wide.clamp(min=0)
        self.positive_sum += positive.sum(0)
        if "positive" in self.tables:
            self.tables["positive"].scatter_add_(0, index, positive)
        if "fired" in self.tables:
            self.tables["fired"].scatter_add_(0, index, fired.long())
        self.maximum = torch.maximum(self.maximum, x.amax(0).double())
        self.fired += _column_counts(fired)
        self._set_last((fired * batch.rank[:, None]).amax(0).long(), batch)
        cell = bin_codes(x) * self.width + self._neuron
        self.histogram += torch.bincount(cell.view(-1), minlength=N_CODES * self.width).view(N_CODES, -1)
        self.contexts.offer_all(x, cell, batch)

    def _add_entries(self, entries: Entries, batch: TokenBatch) -> None:
        token, neuron, values = entries.token, entries.neuron, entries.values
        wide = values.double()
        index = batch.rows[token] * self.width + neuron
        self.tables["sum"].view(-1).index_add_(0, index, wide)
        self.square_sum += torch.bincount(neuron, wide * wide, self.width)
        self.maximum.scatter_reduce_(0, neuron, wide, "amax")
        cell = bin_codes(values).long() * self.width + neuron
        self.histogram.view(-1).index_add_(0, cell, torch.ones_like(cell))
        self.contexts.offer_entries(entries, cell, batch)
        if self.signed:
            positive = wide.clamp(min=0)
            self.positive_sum += torch.bincount(neuron, positive, self.width)
            if "positive" in self.tables:
                self.tables["positive"].view(-1).index_add_(0, index, positive)
            fired = values > 0
            token, neuron, index = token[fired], neuron[fired], index[fired]
        if "fired" in self.tables:
            self.tables["fired"].view(-1).index_add_(0, index, torch.ones_like(index))
        self.fired += torch.bincount(neuron, minlength=self.width)
        latest = torch.zeros(self.width, dtype=torch.int32, device=self.device)
        self._set_last(latest.scatter_reduce_(0, neuron, batch.rank[token], "amax").long(), batch)

    def _set_last(self, latest: Tensor, batch: TokenBatch) -> None:
        """`latest` int64 [N]: the largest rank at which each neuron fired in the batch; 0 if it did not."""
        self.last_fired = torch.maximum(self.last_fired, batch.by_rank[latest])

    def stats(self, types: np.ndarray, seen: np.ndarray) -> LayerStats:
        """Everything so far. `types` int64 [R]: the token type of each row; `seen` bool [R]: those that occurred.

        Arrays may be the accumulator's own: write them before adding more. Raises `NonFiniteError`.
        """
        histogram = self.histogram.cpu().numpy().copy()
        if bad := int(histogram[list(NOT_FINITE)].sum()):
            raise NonFiniteError(
                f"layer {self.layer}: {bad:,} of {self.n_tokens * self.width:,} activations are NaN or infinite; the "
                "checkpoint is broken, or its dtype too narrow (dtype=fp32)"
            )
        zeros = self.n_tokens - histogram.sum(0)
        histogram[0] += zeros
        maximum = self.maximum.cpu().numpy()
        tables = {
            name: TokenTable(types=types[seen], rows=rows if seen.all() else rows[seen])
            for name, rows in ((name, table.cpu().numpy()) for name, table in self.tables.items())
        }
        total = tables["sum"].rows.sum(0)
        return LayerStats(
            tables=tables,
            sum=total,
            square_sum=self.square_sum.cpu().numpy(),
            positive_sum=self.positive_sum.cpu().numpy() if self.signed else total,
            maximum=np.where(zeros > 0, np.maximum(maximum, 0.0), maximum),
            fired=self.fired.cpu().numpy(),
            last_fired=self.last_fired.cpu().numpy(),
            histogram=histogram,
            fired_next=None if self.fired_next is None else self.fired_next.cpu().numpy(),
            fired_runs=None if self.fired_runs is None else self.fired_runs.cpu().numpy(),
            **(dict.fromkeys(CUT_FIELDS) if self.cuts is None else self.cuts.stats()),
            top=self.contexts.top,
            sample=self.contexts.sample,
        )

    def load(self, stats: LayerStats, types: np.ndarray, n_tokens: int) -> None:
        """Go on from what `stats` gave after `n_tokens` tokens; the accumulator must be new."""
        for name, table in stats.tables.items():
            rows = torch.from_numpy(np.searchsorted(types, table.types)).to(self.device)
            self.tables[name][rows] = torch.from_numpy(table.rows).to(self.device)
        for name in (
            "square_sum",
            "positive_sum",
            "maximum",
            "fired",
            "last_fired",
            "histogram",
            "fired_next",
            "fired_runs",
        ):
            if (value := getattr(stats, name)) is not None:
                setattr(self, name, torch.from_numpy(np.array(value)).to(self.device))
        if stats.fired_runs is None:  # a pass that was begun before it was counted
            self.fired_runs = None
        if self.cuts is not None:
            self.cuts.load(stats)
        self.contexts.load(stats, n_tokens)
        self.n_tokens = n_tokens


def _column_counts(mask: Tensor) -> Tensor:
    """int64 [N]: how many rows of a bool [n, N] are true."""
    return mask.view(torch.uint8).sum(0, dtype=torch.int32).long()
