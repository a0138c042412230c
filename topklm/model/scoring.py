"""How probable given tokens are under the model, at the positions that are asked for and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from topklm.model.cache import KVCache
from topklm.model.transformer import Transformer


@torch.no_grad()
def score_tokens(
    model: Transformer, tokens: Tensor, positions: Tensor, targets: Tensor, cache: KVCache | None = None
) -> tuple[Tensor, Tensor]:
    """(ln p(target) [N], whether the target is the most probable token [N] bool) after N of the positions of `tokens`.

    tokens: [B, T] int64, padded on the right with anything, since attention is causal. positions: [N], places in
    tokens.flatten(); targets: [N], the token that follows each. In nats, fp32 (fp64 for an fp64 model). Final norm and
    head are computed at the N positions only, `model.config.loss_chunk` of them at a time. With a cache the tokens
    continue its rows.
    """
    hidden = model.hidden(tokens, cache=cache).flatten(0, 1)  # [B * T, D]
    chunk, weight = model.config.loss_chunk, model.head_weight
    log_p, greedy = [], []
    for where, target in zip(positions.split(chunk), targets.split(chunk), strict=True):
        logits = model.norm(hidden[where]) @ weight.T  # [n, V]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # One pass for the largest logit and its place, which log_softmax would look for again.
        largest, most_probable = logits.max(-1, keepdim=True)
        total = (logits - largest).exp_().sum(-1).log_()
        log_p.append((logits.gather(-1, target[:, None]) - largest)[:, 0] - total)
        greedy.append(most_probable[:, 0] == target)
    return torch.cat(log_p), torch.cat(greedy)
