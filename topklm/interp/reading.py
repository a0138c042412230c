"""What a layer did in a batch, in the form that is counted: activations, who fired, and the selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topklm.bundles.exponent import N_CODES
from topklm.errors import Problem
from topklm.sparsity import select, topk
from topklm.sparsity.annealing import TopKActivation
from topklm.sparsity.registry import Activation


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
    """The m values of a sparse reading that are not 0, token by token."""

    flat: Tensor
    """int64 [m], ascending: indices into the flattened [n, N]."""
    token: Tensor
    """int64 [m] in 0 ... n - 1."""
    neuron: Tensor
    """int64 [m] in 0 ... N - 1."""
    values: Tensor
    """[m]"""

    @staticmethod
    def of(values: Tensor) -> Entries:
        """Of values [n, N]."""
        flat = flat_nonzero(values)
        token, neuron = split_flat(flat, values.shape[1])
        return Entries(flat=flat, token=token, neuron=neuron, values=values.view(-1)[flat])


@dataclass(frozen=True, kw_only=True)
class LayerReading:
    """n tokens of one layer."""

    values: Tensor
    """[n, N] fp32 (or fp64): the activations that are counted."""
    fired: Tensor
    """bool [n, N]: selected and > 0; > 0 where nothing is selected."""
    entries: Entries | None
    """The values that are not 0, where they are few; None in a dense reading."""
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
    if pre is None or activation is None:
        x = _rows(output)
        if cut is None:
            return LayerReading(values=x, fired=x > 0, entries=None, selection=None)
        values = topk(x, cut.k, "relu" if cut.relu else "identity")
        return _sparse(values, x, cut.k)
    x = _rows(pre)
    if site == "post" and not alpha:
        values = _rows(output)
        if isinstance(activation, TopKActivation):
            return _sparse(values, x, activation.k)
        entries = Entries.of(values)
        selection = _any_selection(x, activation.selected(pre).flatten(0, -2), activation.margin(pre).flatten())
        return LayerReading(values=values, fired=values > 0, entries=entries, selection=selection)
    selected = activation.selected(pre).flatten(0, -2)
    selection = _any_selection(x, selected, activation.margin(pre).flatten())
    values = x if site == "pre" else _rows(output)
    return LayerReading(values=values, fired=selected & (x > 0), entries=None, selection=selection)


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


def _sparse(values: Tensor, pre: Tensor, k: int) -> LayerReading:
    """A token-wise cut to k: where k values are not 0 they are the selection, which need not be made again."""
    n, width = values.shape
    entries = Entries.of(values)
    per_token = torch.bincount(entries.token, minlength=n)
    others = pre.clone()
    others.view(-1)[entries.flat] = -torch.inf
    kept = pre.view(-1)[entries.flat]
    odd = flat_nonzero(per_token != k)  # tokens in which a zero or, with ReLU, a negative value was selected
    if len(odd):
        cut = torch.full((n,), torch.inf, dtype=pre.dtype, device=pre.device)
        cut.scatter_reduce_(0, entries.token, kept, "amin")
        index = select(pre[odd], k).long()  # [m, k]
        others.view(-1)[(odd[:, None] * width + index).flatten()] = -torch.inf
        cut[odd] = pre[odd].gather(-1, index).amin(-1)
    else:
        cut = kept.view(n, k).amin(1)
    selection = Selection(cut=cut.double(), best_other=others.amax(1).double(), others=others)
    return LayerReading(values=values, fired=values > 0, entries=entries, selection=selection)


def _any_selection(pre: Tensor, selected: Tensor, margin: Tensor) -> Selection:
    """Of any activation's mask [n, N]; no cut where the activation defines no margin."""
    cut = pre.masked_fill(~selected, torch.inf).amin(1).double()
    others = pre.masked_fill(selected, -torch.inf)
    defined = selected.any(1) & (margin.isfinite() | selected.all(1))
    return Selection(cut=torch.where(defined, cut, torch.nan), best_other=others.amax(1).double(), others=others)
