"""How probable given tokens are under the model, at the positions that are asked for and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from topklm.model.cache import KVCache
from topklm.model.transformer import Transformer

CPU_CHUNK = 256
"""Logits of more positions do not fit the caches of a CPU: 1,024 at a time took 1.1 to 1.3 times as long."""


@torch.no_grad()
def score_tokens(
    model: Transformer,
    tokens: Tensor,
    positions: Tensor,
    counts: Sequence[int],
    targets: Tensor,
    cache: KVCache | None = None,
) -> tuple[Tensor, Tensor]:
    """(ln p(target) [N], whether the target is the most probable token [N] bool) after some positions of `tokens`.

    tokens: [B, T] int64, padded on the right with anything, since attention is causal. positions: [P], places in
    tokens.flatten(). counts: how many of the targets [N] are asked for after each position, one after the other. In
    nats, fp32 (fp64 for an fp64 model). Final norm and head are computed at the P positions only,
    `model.config.loss_chunk` of them at a time, on a CPU `CPU_CHUNK`. With a cache the tokens continue its rows.
    """
    hidden = model.hidden(tokens, cache=cache).flatten(0, 1)  # [B * T, D]
    chunk, weight = model.config.loss_chunk, model.head_weight
    if hidden.device.type == "cpu":
        chunk = min(chunk, CPU_CHUNK)
    ends = [0, *itertools.accumulate(counts)]  # of each position's targets
    log_p, greedy = [], []
    for start in range(0, len(counts), chunk):
        stop = min(start + chunk, len(counts))
        here, there = ends[start], ends[stop]
        logits = model.norm(hidden[positions[start:stop]]) @ weight.T  # [p, V]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        every = logits.log_softmax(-1)
        row = torch.repeat_interleave(torch.tensor(counts[start:stop])).to(every.device)  # [n] position of a target
        target = targets[here:there]
        log_p.append(every[row, target])
        greedy.append(every.argmax(-1)[row] == target)
    return torch.cat(log_p), torch.cat(greedy)
