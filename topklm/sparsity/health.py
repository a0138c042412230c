"""Health of the sparse blocks on demand: L0, dead neurons, margin of the selection.

    with record_health(model) as health:
        model(tokens)
    health.summary()

"Active" means selected and > 0 (`Activation.active`). Outside the `with` a block does nothing for this.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.sparsity.patch import STATE, sparse_states

if TYPE_CHECKING:
    from topklm.sparsity.activation import Activation


class _Layer:
    """Counts of one layer, on its device."""

    def __init__(self, dim: int, device: torch.device) -> None:
        # Added over tokens, and over ranks.
        self.fired = torch.zeros(dim, dtype=torch.int64, device=device)  # [D] tokens in which a neuron was active
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # tokens, sum of L0, tokens with a margin
        self.margin_sum = torch.zeros((), dtype=torch.float64, device=device)
        # Extremes; as negatives where the least is meant, so that all of them are maxima.
        self.l0_ends = torch.tensor([-dim - 1, -1], device=device)  # -min L0, max L0
        self.margin_end = torch.tensor(-torch.inf, dtype=torch.float64, device=device)  # -min

    def add(self, activation: Activation, x: Tensor, keep: Tensor | None) -> None:
        counted = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if keep is None else keep
        active = activation.active(x) & counted.unsqueeze(-1)  # [..., D]
        margin = activation.margin(x).double()
        sound = counted & margin.isfinite()
        l0 = active.sum(-1)  # [...]
        self.fired += active.flatten(0, -2).sum(0)
        self.counts += torch.stack([counted.sum(), l0.sum(), sound.sum()])
        self.margin_sum += torch.where(sound, margin, 0.0).sum()
        if l0.numel():
            ends = torch.stack([torch.where(counted, -l0, self.l0_ends[0]).max(), torch.where(counted, l0, -1).max()])
            self.l0_ends = torch.maximum(self.l0_ends, ends)
            self.margin_end = torch.maximum(self.margin_end, torch.where(sound, -margin, -torch.inf).max())


class Health:
    """Counts over all recorded batches; see `summary`."""

    def __init__(self, model: nn.Module) -> None:
        blocks = [block for block in model.modules() if STATE in block.__dict__]
        self._index = {id(block): i for i, block in enumerate(blocks)}
        self._layers: dict[int, _Layer] = {}
        self._keep: Tensor | None = None
        self._state = sparse_states(model)[0] if blocks else None

    def count_only(self, keep: Tensor | None) -> None:
        """From now on count the tokens where `keep` (bool [B, T]) is true; None: all of them."""
        self._keep = keep

    @torch.no_grad()
    def see(self, block: nn.Module, activation: Activation, x: Tensor) -> None:
        """Called by a sparse block with its pre-activation x [B, T, D]."""
        if torch._C._current_graph_task_id() != -1:
            return  # recomputed in a backward: counted before
        index = self._index[id(block)]
        if index not in self._layers:
            self._layers[index] = _Layer(x.shape[-1], x.device)
        self._layers[index].add(activation, x.detach(), self._keep)

    def fired(self) -> dict[int, Tensor]:
        """Per layer, in how many tokens each neuron was active: int64 [D], on the model's device."""
        return {index: layer.fired for index, layer in sorted(self._layers.items())}

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Replace the counts by those of all ranks; call it once, on every rank, each with a batch recorded."""
        for _, layer in sorted(self._layers.items()):
            for total in (layer.fired, layer.counts, layer.margin_sum):
                dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
            for end in (layer.l0_ends, layer.margin_end):
                dist.all_reduce(end, op=dist.ReduceOp.MAX, group=group)

    def summary(self) -> dict[str, float]:
        """The figures, over all sparse layers and for each; empty for a dense model. The only host sync.

        `topk/alpha`, `topk/tokens`; `topk/l0_min`, `topk/l0_mean`, `topk/l0_max` per token; `topk/dead`, the share
        of neurons that were active in no token; `topk/margin` (mean) and `topk/margin_min` between the k-th and the
        (k+1)-th pre-activation. The same under `topk/layer_00/`. NaN where nothing was counted.
        """
        layers: dict[int, tuple[dict[str, float], float, float, float]] = {}
        for index, layer in sorted(self._layers.items()):
            tokens, l0_sum, with_margin = layer.counts.tolist()
            least, most = layer.l0_ends.tolist()
            margin_sum, margin_end = torch.stack([layer.margin_sum, layer.margin_end]).tolist()
            figures = {
                "l0_min": float(-least) if tokens else math.nan,
                "l0_mean": l0_sum / tokens if tokens else math.nan,
                "l0_max": float(most) if tokens else math.nan,
                "dead": float((layer.fired == 0).double().mean()) if tokens else math.nan,
                "margin": margin_sum / with_margin if with_margin else math.nan,
                "margin_min": -margin_end if with_margin else math.nan,
            }
            layers[index] = (figures, tokens, margin_sum, with_margin)
        if not layers or self._state is None:
            return {}
        every = [figures for figures, *_ in layers.values()]
        n, with_margin = len(every), sum(layer[3] for layer in layers.values())
        out = {
            "topk/alpha": self._state.value,
            "topk/tokens": float(max(layer[1] for layer in layers.values())),
            "topk/l0_min": min(figures["l0_min"] for figures in every),
            "topk/l0_mean": sum(figures["l0_mean"] for figures in every) / n,
            "topk/l0_max": max(figures["l0_max"] for figures in every),
            "topk/dead": sum(figures["dead"] for figures in every) / n,
            "topk/margin": sum(layer[2] for layer in layers.values()) / with_margin if with_margin else math.nan,
            "topk/margin_min": min(
                (f["margin_min"] for f in every if f["margin_min"] == f["margin_min"]), default=math.nan
            ),
        }
        for index, (figures, *_) in layers.items():
            out |= {f"topk/layer_{index:02d}/{name}": value for name, value in figures.items()}
        return out


@contextmanager
def record_health(model: nn.Module) -> Iterator[Health]:
    """Record every forward pass inside the `with`; blocks run eagerly there, also compiled ones.

    Recording inside another recording of the same model raises `ConfigError`.
    """
    states = sparse_states(model)
    if any(state.recorder is not None for state in states):
        raise ConfigError("the health of this model is being recorded already")
    health = Health(model)
    # Nothing is compiled while dynamo is not even imported, which would cost a second here.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with eager:
        for state in states:
            state.recorder = health
        try:
            yield health
        finally:
            for state in states:
                state.recorder = None
