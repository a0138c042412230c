"""Cross-entropy of a linear head that never holds the logits of the whole batch.

`F.cross_entropy(head(h).float(), targets)` needs N x V fp32 logits and as much for their gradient: 8 GB for 32k tokens
and 32k pieces. Here the tokens go through in chunks, and the gradients of h and of the head are made in the forward
pass, chunk by chunk, since the softmax is at hand there: the same matrix products as the plain form, no recomputation.
`scripts/bench_loss.py` compares with the plain form and with torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topklm.model.linear import linear, weight_gradient

IGNORE = -100
"""Target of a position that is not scored."""
_CPU_CHUNK = 256
"""A CPU takes no more tokens at a time: their logits stay in its cache, and need no fresh memory from the system."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """Sum over tokens of -ln softmax(hidden @ weight.T)[target], in nats.

    hidden [N, D], weight [V, D], targets [N] (int64; `IGNORE` is left out). Returns a scalar, fp32 (fp64 for fp64
    inputs). Logits are products in the inputs' dtype, softmax and sums are fp32; the head's gradient is summed over
    the chunks in fp32 as well.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """The loss of each token, [N] fp32 nats, 0 where the target is `IGNORE`. For evaluation: no gradient."""
    with torch.no_grad():
        parts = [
            F.cross_entropy(_logits(h, weight), t, ignore_index=IGNORE, reduction="none")
            for h, t in _chunks(chunk, hidden, targets)
        ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _chunks(chunk: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    chunk = min(chunk, _CPU_CHUNK) if tensors[0].device.type == "cpu" else chunk
    return zip(*(tensor.split(chunk) for tensor in tensors), strict=True)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    logits = linear(hidden, weight)  # [n, V]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = None
        for h, target, grad_h in _chunks(chunk, hidden, targets, grad_hidden):
            logits = _logits(h, weight)
            scored = target != IGNORE
            index = target.where(scored, 0)[:, None]
            p = logits.softmax(-1)
            # ln p of the target, also where p itself is 0: the highest logit's p is 1 / sum exp(logit - highest)
            highest = logits.amax(-1, keepdim=True)
            losses = highest - p.amax(-1, keepdim=True).log() - logits.gather(-1, index)
            total += losses[:, 0].where(scored, 0).sum()
            del logits
            if not any(ctx.needs_input_grad):
                continue
            # d loss / d logits = softmax - one_hot, and 0 for tokens that are not scored
            p.scatter_add_(-1, index, p.new_full((1, 1), -1).expand_as(index))
            grad = p.masked_fill_(~scored[:, None], 0).to(hidden.dtype)
            if ctx.needs_input_grad[0]:
                grad_h.copy_(linear(grad, weight.T))
            if ctx.needs_input_grad[1]:
                part = weight_gradient(h, grad)
                grad_weight = part.to(wide) if grad_weight is None else grad_weight.add_(part)
                del part
            del p, grad  # they would stay until the next chunk has its own
        # The head's gradient keeps the weight's dtype between forward and backward: that is what autograd returns.
        ctx.save_for_backward(
            grad_hidden if ctx.needs_input_grad[0] else None,
            None if grad_weight is None else grad_weight.to(weight.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise NotImplementedError("the chunked loss has no second derivative; take F.cross_entropy of the logits")
        (grad_output,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        # grad_output stays fp32: rounded to bf16 it would scale all gradients by up to 0.4 %.
        scaled = [None if g is None else g * grad_output for g in (grad_hidden, grad_weight)]
        return scaled[0], scaled[1], None, None
