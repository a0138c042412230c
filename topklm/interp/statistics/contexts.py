"""Top contexts and the sample of contexts: few tokens are offered to the sketches, the device tells which."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from topklm.bundles import LayerStats, Sketch
from topklm.bundles.exponent import N_CODES, NOT_FINITE, STRATA, STRATUM_LOW, stratum_of
from topklm.interp.statistics.reading import Entries, bin_codes, flat_nonzero, split_flat
from topklm.interp.statistics.token_batch import TokenBatch, hash32

_LEAST_KEY, _MOST_KEY = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
_LEAST_VALUE = float(np.nextafter(np.float32(0), np.float32(1)))
_WARM_TOKENS = 1 << 13


class ContextAccumulator:
    """The sketches `top` and `sample` of one layer (`LayerStats`).

    The device holds what a token must reach to be kept, so that after the first few thousand tokens hardly any is
    copied to the host.
    """

    def __init__(self, width: int, n_top: int, n_sample: int, device: torch.device) -> None:
        self.width, self.device = width, device
        self.top, self.sample = Sketch(width, n_top), Sketch(width * STRATA, n_sample)
        self._seen = 0
        self._factor = torch.from_numpy(hash32(np.arange(width)) | 1).to(device)  # [N]
        # The least value that a neuron's top contexts take, and the largest key that the sample takes in a bin.
        self._reach = torch.full((width,), _LEAST_VALUE, dtype=torch.float64, device=device)
        self._key = torch.full((N_CODES, width), _LEAST_KEY, dtype=torch.int32, device=device)
        self._refresh_keys(np.arange(width * STRATA))

    def load(self, stats: LayerStats, n_tokens: int) -> None:
        """Go on from the sketches of `n_tokens` tokens."""
        self.top, self.sample, self._seen = stats.top.copy(), stats.sample.copy(), n_tokens
        self._refresh_reach(np.arange(self.width))
        self._refresh_keys(np.arange(self.width * STRATA))

    def offer_all(self, x: Tensor, cell: Tensor, batch: TokenBatch) -> None:
        """Offer every activation of x [n, N]; `cell` int32 [n, N] is bin * N + neuron."""
        for piece in self._pieces(len(x)):
            first = piece.start * self.width
            reaches = x[piece] >= self._reach.to(x.dtype)
            flat = flat_nonzero(reaches) + first
            token, neuron = split_flat(flat, self.width)
            self._offer_top(token, neuron, x.view(-1)[flat], batch)
            limit = self._key.view(-1).index_select(0, cell[piece].reshape(-1)).view(-1, self.width)
            flat = flat_nonzero(batch.hashes[piece, None] * self._factor <= limit) + first
            token, neuron = split_flat(flat, self.width)
            self._offer_sample(token, neuron, x.view(-1)[flat], batch)

    def offer_entries(self, entries: Entries, cell: Tensor, batch: TokenBatch) -> None:
        """Offer some activations; `cell` int64 [m] is bin * N + neuron of each."""
        borders = torch.tensor([piece.stop for piece in self._pieces(len(batch))], device=cell.device)
        start = 0
        for stop in torch.searchsorted(entries.token, borders).tolist():
            token, neuron, values = (x[start:stop] for x in (entries.token, entries.neuron, entries.values))
            some = flat_nonzero(values >= self._reach.to(values.dtype)[neuron])
            self._offer_top(token[some], neuron[some], values[some], batch)
            keys = batch.hashes[token] * self._factor[neuron]
            some = flat_nonzero(keys <= self._key.view(-1)[cell[start:stop]])
            self._offer_sample(token[some], neuron[some], values[some], batch)
            start = stop

    def _pieces(self, n: int) -> Iterator[slice]:
        """The rows of a batch in one piece, but in growing ones at the beginning, when almost all are kept."""
        start = 0
        while start < n:
            stop = n if self._seen >= _WARM_TOKENS else min(n, start + max(64, self._seen))
            yield slice(start, stop)
            self._seen += stop - start
            start = stop

    def _offer_top(self, token: Tensor, neuron: Tensor, values: Tensor, batch: TokenBatch) -> None:
        if not len(token):
            return
        value = values.double().cpu().numpy()
        cell, position = neuron.cpu().numpy(), batch.positions[token].cpu().numpy()
        self._refresh_reach(self.top.offer(cell, -value, position, value))

    def _offer_sample(self, token: Tensor, neuron: Tensor, values: Tensor, batch: TokenBatch) -> None:
        if not len(token):
            return
        code = bin_codes(values).cpu().numpy()
        ordinary = (code > 0) & (code < NOT_FINITE[0])
        cell = neuron.cpu().numpy() * STRATA + stratum_of(code)
        key = (batch.hashes[token] * self._factor[neuron]).cpu().numpy().astype(np.float64)
        entries = (cell, key, batch.positions[token].cpu().numpy(), values.double().cpu().numpy())
        self._refresh_keys(self.sample.offer(*(entry[ordinary] for entry in entries)))

    def _refresh_reach(self, neurons: np.ndarray) -> None:
        worst = self.top.worst[neurons]
        reach = np.where(np.isinf(worst), _LEAST_VALUE, -worst)
        self._reach[torch.from_numpy(neurons).to(self.device)] = torch.from_numpy(reach).to(self.device)

    def _refresh_keys(self, cells: np.ndarray) -> None:
        key = np.minimum(self.sample.worst[cells], _MOST_KEY).astype(np.int32)
        neuron, stratum = np.divmod(cells, STRATA)
        self._set_keys(STRATUM_LOW + stratum, neuron, key)
        # The strata at both ends hold many bins.
        for end, codes in ((0, range(1, STRATUM_LOW)), (STRATA - 1, range(STRATUM_LOW + STRATA, NOT_FINITE[0]))):
            at = stratum == end
            self._set_keys(np.array(codes)[:, None], neuron[at], key[at])

    def _set_keys(self, code: np.ndarray, neuron: np.ndarray, key: np.ndarray) -> None:
        if len(neuron):
            where = (torch.from_numpy(code).to(self.device), torch.from_numpy(neuron).to(self.device))
            self._key[where] = torch.from_numpy(key).to(self.device)
