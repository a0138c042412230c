"""From logits to a token: the distribution that the settings leave, and a draw from it by a given uniform number."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from topklm.generate.config import SamplingConfig


def uniforms(seed: int, prompt: int, sample: int, n: int) -> np.ndarray:
    """The first n uniform numbers in [0, 1) of one completion, float64: those of another are independent of them."""
    sequence = np.random.SeedSequence(seed, spawn_key=(prompt, sample))
    return np.random.Generator(np.random.Philox(sequence)).random(n)


def choose(logits: Tensor, uniform: Tensor | None, config: SamplingConfig, n_ids: int) -> tuple[Tensor, Tensor]:
    """(tokens [B], ln p [B]) of logits [B, V] and uniform [B] numbers (not needed if greedy).

    ln p is the token's under the model as it is: no temperature, no filter. Only the first `n_ids` tokens are chosen;
    a model may have more logits than its tokenizer has tokens.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = logits[:, :n_ids]
    tokens = known.argmax(-1) if uniform is None else draw(distribution(known, config), uniform)
    return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


def distribution(logits: Tensor, config: SamplingConfig) -> Tensor:
    """What is drawn from, up to a factor: logits [B, V] to weights [B, V], 0 where a filter leaves a token out."""
    # The highest becomes 0 before the division, which so cannot overflow however small the temperature is.
    logits = (logits - logits.amax(-1, keepdim=True)) / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        least = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    weights = logits.softmax(-1)
    if config.top_p is not None and config.top_p < 1:
        weights = _nucleus(weights, config.top_p)
    if config.min_p:
        weights = weights.masked_fill(weights < config.min_p * weights.amax(-1, keepdim=True), 0)
    return weights


def _nucleus(weights: Tensor, p: float) -> Tensor:
    """The most probable tokens until their sum reaches p; of equal ones the lowest index first (arXiv:1904.09751)."""
    ordered, index = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1, dtype=torch.float64) - ordered  # the sum of all that come before
    return torch.zeros_like(weights).scatter(-1, index, ordered.masked_fill(before >= p, 0))


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first index at which the cumulative sum of weights [B, V] exceeds uniform [B] of their total; [B] int64."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, uniform.double()[:, None] * total, right=True)
    # Rounding can make the product the total itself; the last token that adds to the sum is the answer then. Of NaNs
    # nothing is found; whoever looks at ln p of the token sees them.
    return torch.minimum(index, torch.searchsorted(cumulative, total)).clamp_max(weights.shape[1] - 1)[:, 0]
