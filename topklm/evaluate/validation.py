"""Loss and perplexity on the held-out shards, and the health of the sparse layers on the same windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topklm.data import TrainData, validation_batches
from topklm.sparsity import get_alpha, record_health
from topklm.sparsity.health import Health

HEALTH_TOKENS = 65_536
"""Health figures are taken over at most about so many held-out tokens, because they run uncompiled."""


@torch.no_grad()
def validate(
    model: nn.Module,
    data: TrainData,
    *,
    contexts: Sequence[int],
    batch_size: int,
    device: torch.device,
    max_tokens: int | None = None,
    document_mask: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """Figures of a model at its present alpha, the same on every rank and for any number of ranks and batch size.

    For each context C: `val/loss@C` (nats per token, mean over all scored tokens), `val/ppl@C` (its exponential),
    `val/tokens@C`; with several sources also `val/<source>/...`. For a sparse model the `topk/...` health figures in
    windows of the first context. With `max_tokens` (and for the health, `HEALTH_TOKENS`) windows are taken evenly
    over the held-out part. Raises `DataError` where nothing is held out.
    """
    run = _Pass(model, data, batch_size, device, document_mask, rank, world_size)
    was_training = model.training
    model.eval()
    figures: dict[str, float] = {}
    for context in contexts:
        figures |= _figures(run.loss_sums(context, max_tokens), data.names, context)
    if get_alpha(model) is not None:
        budget = HEALTH_TOKENS if max_tokens is None else min(max_tokens, HEALTH_TOKENS)
        with record_health(model) as health:
            run.loss_sums(contexts[0], budget, health)
        if world_size > 1:
            health.all_reduce()
        figures |= health.summary()
        # The training line of the same step has the alpha of the step that was made, this is the one after it.
        figures["val/alpha"] = figures.pop("topk/alpha")
    model.train(was_training)
    return figures


@dataclass(frozen=True)
class _Pass:
    """What all passes over the held-out windows share."""

    model: nn.Module
    data: TrainData
    batch_size: int
    device: torch.device
    document_mask: bool
    rank: int
    world_size: int

    def loss_sums(self, context: int, max_tokens: int | None, health: Health | None = None) -> Tensor:
        """Sum of the losses and number of scored tokens of each source, float64 [n_sources, 2], over all ranks."""
        sums = torch.zeros(len(self.data.names), 2, dtype=torch.float64, device=self.device)
        for batch in validation_batches(
            self.data, context=context, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size,
            max_tokens=max_tokens, with_document_ids=self.document_mask,
        ):  # fmt: skip
            batch = batch.to(self.device)
            if health is not None:
                health.count_only(batch.targets >= 0)
            losses = self.model(batch.tokens, batch.targets, document_ids=batch.document_ids, reduction="none")
            _add(sums, losses, batch.targets, batch.source.to(self.device))
        if self.world_size > 1:
            dist.all_reduce(sums)
        return sums


def _add(sums: Tensor, losses: Tensor, targets: Tensor, source: Tensor) -> None:
    """Add a batch's losses [b, T] to its sources' sums; rows of padding have source -1 and no scored target."""
    rows = torch.stack((losses.double().sum(1), (targets >= 0).double().sum(1)), 1)  # [b, 2]
    sums.index_add_(0, source.clamp(min=0), rows)


def _figures(sums: Tensor, names: Sequence[str], context: int) -> dict[str, float]:
    table = sums.tolist()
    rows = {"val": [sum(column) for column in zip(*table, strict=True)]}
    if len(names) > 1:
        rows |= {f"val/{name}": row for name, row in zip(names, table, strict=True) if row[1]}
    figures: dict[str, float] = {}
    for name, (total, tokens) in rows.items():
        loss = total / tokens
        figures[f"{name}/loss@{context}"] = loss
        figures[f"{name}/ppl@{context}"] = math.exp(min(loss, 700.0))  # exp overflows above 709
        figures[f"{name}/tokens@{context}"] = int(tokens)
    return figures
