"""What a layer did in a batch, in the form that is counted: activations, who fired, and the selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topklm.bundles.exponent import N_CODES
from topklm.errors import Problem
from topklm.sparsity import select
from topklm.sparsity.activation import Activation
from topklm.sparsity.activations.topk import TopKActivation


@dataclass(frozen=True, kw_only=True)
class ReadTopK:
    """A cut that a dense model is read through: in the statistics only, the model runs as it is."""

    k: int
    """Entries kept per token."""
    relu: bool = True
    """Negative ones among them count as 0, as after the paper's activation."""
    n_dense_tail: int = 0
    """The last n layers are read as they are, like the dense tail of a TopK twin."""

    def problems(self) -> Iterator[Problem]:
        if self.k < 1:
            yield Problem("k", f"{self.k} is below 1")
        if self.n_dense_tail < 0:
            yield Problem("n_dense_tail", f"{self.n_dense_tail} is negative")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a batch of n tokens was cut."""

    cut: Tensor
    """float64 [n] the least selected pre-activation; NaN where there is none, or where no margin is defined."""
    best_other: Tensor
    """float64 [n] the largest pre-activation that was not selected."""
    others: Tensor
    """[n, N] the pre-activations, -inf where selected."""


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The m activations that are not 0, where they are few; token by token."""

    token: Tensor
    """int64 [m] in 0 ... n - 1, ascending."""
    neuron: Tensor
    """int64 [m] in 0 ... N - 1."""
    values: Tensor
    """[m]"""


@dataclass(frozen=True, kw_only=True)
class LayerReading:
    """n tokens of one layer."""

    values: Tensor | Entries
    """The activations that are counted, fp32 (or fp64): all of them, [n, N], or those that are not 0."""
    fired: Tensor
    """bool [n, N]: selected and > 0; > 0 where nothing is selected."""
    selection: Selection | None
    """None where nothing is selected."""


def read_layer(
    output: Tensor,
    pre: Tensor | None,
    activation: Activation | None,
    *,
    alpha: float | None,
    site: str = "post",
    cut: ReadTopK | None = None,
) -> LayerReading:
    """Read a block's `output` [B, T, N]; `pre` and `activation` are those of a sparse block at `alpha`, else None.

    `site`: post reads the output, pre what entered the activation. `cut`: read a dense block through it.
    """
    values = _rows(output)
    if pre is None or activation is None:
        if cut is not None:
            return _through(values, cut)
        return LayerReading(values=values, fired=values > 0, selection=None)
    x = _rows(pre)
    k = activation.k if isinstance(activation, TopKActivation) else None
    pure = site == "post" and not alpha
    if pure and k is not None:
        return _of_zeros(values, x, k)
    if k is not None:
        index = select(x, k).long()
        selected = torch.zeros_like(x, dtype=torch.bool).scatter_(-1, index, True)
        selection = _selection(x, index)
    else:
        selected = activation.selected(pre).flatten(0, -2)
        selection = _any_selection(x, selected, activation.margin(pre).flatten())
    if pure:
        entries, _ = _entries(values)
        return LayerReading(values=entries, fired=values > 0, selection=selection)
    return LayerReading(values=x if site == "pre" else values, fired=selected & (x > 0), selection=selection)


def flat_nonzero(x: Tensor) -> Tensor:
    """int64 [m]: flat indices of the entries that are not 0, ascending."""
    if x.device.type == "cpu":  # NumPy's is several times as fast on a CPU, if it is given booleans
        mask = x if x.dtype == torch.bool else x != 0
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return x.flatten().nonzero().squeeze(-1)


def split_flat(flat: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(row, column) of flat indices into [n, width]."""
    row = flat // width
    return row, flat - row * width


def bin_codes(x: Tensor) -> Tensor:
    """int32 of the same shape: codes of the bins as in `topklm.bundles.exponent`; -0.0 counts as 0."""
    return ((x.float() + 0.0).view(torch.int32) >> 23) & (N_CODES - 1)


def _rows(x: Tensor) -> Tensor:
    """[B, T, N] to [n, N], in fp32 at least."""
    x = x.detach().flatten(0, -2)
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _entries(values: Tensor) -> tuple[Entries, Tensor]:
    """(those of values [n, N] that are not 0, their flat indices [m])."""
    flat = flat_nonzero(values)
    token, neuron = split_flat(flat, values.shape[1])
    return Entries(token=token, neuron=neuron, values=values.view(-1)[flat]), flat


def _of_zeros(values: Tensor, pre: Tensor, k: int) -> LayerReading:
    """A token-wise cut to k, seen in its output: where k values are not 0, they are the selection."""
    n, width = values.shape
    entries, flat = _entries(values)
    odd = flat_nonzero(torch.bincount(entries.token, minlength=n) != k)  # a zero or a negative one was selected
    others = pre.clone()
    others.view(-1)[flat] = -torch.inf
    kept = pre.view(-1)[flat]
    if len(odd):
        cut = torch.full((n,), torch.inf, dtype=pre.dtype, device=pre.device)
        cut.scatter_reduce_(0, entries.token, kept, "amin")
        index = select(pre[odd], k).long()  # [m, k]
        others.view(-1)[(odd[:, None] * width + index).flatten()] = -torch.inf
        cut[odd] = pre[odd].gather(-1, index).amin(-1)
    else:
        cut = kept.view(n, k).amin(1)
    selection = Selection(cut=cut.double(), best_other=others.amax(1).double(), others=others)
    return LayerReading(values=entries, fired=values > 0, selection=selection)


def _through(x: Tensor, cut: ReadTopK) -> LayerReading:
    """What TopK would make of x [n, N]."""
    index = select(x, cut.k).long()
    kept = x.gather(-1, index)  # [n, k]
    some = flat_nonzero(kept > 0 if cut.relu else kept)
    token, neuron, values = some // cut.k, index.view(-1)[some], kept.view(-1)[some]
    positive = kept > 0
    fired = torch.zeros_like(x, dtype=torch.bool).scatter_(-1, index, positive)
    return LayerReading(
        values=Entries(token=token, neuron=neuron, values=values), fired=fired, selection=_selection(x, index)
    )


def _selection(pre: Tensor, index: Tensor) -> Selection:
    """Of the selected indices [n, k] of pre-activations [n, N]."""
    others = pre.scatter(-1, index, -torch.inf)
    cut = pre.gather(-1, index).amin(1)
    return Selection(cut=cut.double(), best_other=others.amax(1).double(), others=others)


def _any_selection(pre: Tensor, selected: Tensor, margin: Tensor) -> Selection:
    """Of any activation's mask [n, N]; no cut where the activation defines no margin."""
    cut = pre.masked_fill(~selected, torch.inf).amin(1).double()
    others = pre.masked_fill(selected, -torch.inf)
    defined = selected.any(1) & (margin.isfinite() | selected.all(1))
    return Selection(cut=torch.where(defined, cut, torch.nan), best_other=others.amax(1).double(), others=others)
