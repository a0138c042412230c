"""Loss and perplexity on the held-out shards, and the health of the sparse layers on the same windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topklm.data import TrainData, validation_batches
from topklm.sparsity import get_alpha, record_health

HEALTH_TOKENS = 65_536
"""Health figures are taken from the first validation batches up to about so many tokens: they run uncompiled."""


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
    `val/tokens@C`; with several sources also `val/<source>/...`. For a sparse model the `topk/...` health figures of
    the first context. Raises `DataError` where nothing is held out.
    """
    was_training = model.training
    model.eval()
    figures: dict[str, float] = {}
    for i, context in enumerate(contexts):
        batches = validation_batches(
            data, context=context, batch_size=batch_size, rank=rank, world_size=world_size, max_tokens=max_tokens,
            with_document_ids=document_mask,
        )  # fmt: skip
        # Sums per source in float64: loss and tokens.
        sums = torch.zeros(len(data.names), 2, dtype=torch.float64, device=device)
        with ExitStack() as recording:
            recorder = None
            seen = 0
            if i == 0 and get_alpha(model) is not None:
                recorder = recording.enter_context(record_health(model))
            for batch in batches:
                batch = batch.to(device)
                if recorder is not None:
                    recorder.count_only(batch.targets >= 0)
                losses = model(batch.tokens, batch.targets, document_ids=batch.document_ids, reduction="none")
                _add(sums, losses, batch.targets, batch.source.to(device))
                seen += batch.tokens.numel() * world_size
                if seen >= HEALTH_TOKENS:
                    recording.close()
        if world_size > 1:
            dist.all_reduce(sums)
        if recorder is not None:
            if world_size > 1:
                recorder.all_reduce()
            figures |= recorder.summary()
        figures |= _figures(sums, data.names, context)
    model.train(was_training)
    return figures


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
