"""The Llama transformer: Meta Lingua's parameter names, sizes and numerics. Knows nothing of parallelism or TopK.

Pre-norm blocks, RMSNorm in fp32, rotary embeddings on interleaved pairs, grouped-query attention, SwiGLU, no biases.
There are no buffers: what is not a parameter is computed, so nothing can be lost on the way through the meta device
or rounded by `.to(dtype)`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topklm.errors import ConfigError
from topklm.model.cache import KVCache, LayerCache
from topklm.model.config import ModelConfig
from topklm.model.init import init_weights
from topklm.model.lean import rms_norm, swiglu
from topklm.model.linear import Linear, linear
from topklm.model.loss import linear_cross_entropy, token_losses
from topklm.model.rope_scaling import RopeScaling


class Transformer(nn.Module):
    """A decoder-only language model.

    `model(tokens)` gives logits [B, T, V]; `model(tokens, targets)` the mean loss in nats over the targets that are
    not `IGNORE` (reduction "sum": their sum; "none": one value per token, [B, T], without gradient).
    Weights are initialised from `config.seed`, unless the module is built on the meta device.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(self.new_block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.weight_tying:
            self.output = Linear(config.dim, config.vocab_size)
        if not self.tok_embeddings.weight.is_meta:
            init_weights(self, config)

    def new_block(self, config: ModelConfig) -> nn.Module:
        """One block of the stack: the seam for another backend's."""
        return TransformerBlock(config)

    @property
    def head_weight(self) -> Tensor:
        """The unembedding matrix [V, D]."""
        return self.tok_embeddings.weight if self.config.weight_tying else self.output.weight

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        document_ids: Tensor | None = None,
        reduction: str = "mean",
        cache: KVCache | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """tokens, targets, document_ids: [B, T] int64. With document_ids, attention stays inside a document.

        With a cache the tokens continue its rows, each at its own length, and are added to it. With `at` [B, n],
        columns of tokens, logits [B, n, V] are made there only.
        """
        h = self.hidden(tokens, document_ids, cache)
        if at is not None:
            h = h[torch.arange(len(at), device=at.device)[:, None], at]  # [B, n, D]
        h = self.norm(h)  # [B, T, D]
        if targets is None:
            return linear(h, self.head_weight)  # [B, T, V]
        flat, chunk = (h.flatten(0, 1), self.head_weight, targets.flatten()), self.config.loss_chunk
        if reduction == "none":
            return token_losses(*flat, chunk).view_as(targets)
        total = linear_cross_entropy(*flat, chunk)
        return total if reduction == "sum" else total / (targets >= 0).sum()

    def hidden(self, tokens: Tensor, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """The residual stream after the last block, [B, T, D], before the final norm."""
        h = self.tok_embeddings(tokens)
        if cache is not None:
            if document_ids is not None:
                raise ConfigError("a cache has one document a row; document_ids are for packed sequences without one")
            return self._continued(h, cache)
        rope = self._rope(tokens.shape[1], h)
        mask = None if document_ids is None else same_document_mask(document_ids)
        for layer in self.layers:
            h = layer(h, rope, mask)
        return h

    def _rope(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        return rotary_table(length, config.head_width, config.rope_theta, config.rope_scaling, like)

    def _continued(self, h: Tensor, cache: KVCache) -> Tensor:
        """The blocks on the next T tokens of the cache's rows; h: [B, T, D]."""
        if cache.rope is None:
            cache.rope = self._rope(cache.capacity, h)
        positions, mask = cache.begin(*h.shape[:2])
        cos, sin = (table[positions] for table in cache.rope)  # [B, T, d / 2]
        for layer, kept in zip(self.layers, cache.layers, strict=True):
            h = layer(h, (cos, sin), mask, kept)
        cache.commit(h.shape[1])
        return h

    def load_state_dict(self, state_dict, *args, **kwargs):  # type: ignore[no-untyped-def]
        """As in torch; Lingua's tied models repeat the embedding as `output.tied_module.weight`, which is accepted."""
        kept = {k: v for k, v in state_dict.items() if k != "output.tied_module.weight"}
        return super().load_state_dict(kept, *args, **kwargs)


class TransformerBlock(nn.Module):
    """h = x + Attn(norm(x)); returns residual_seam(h, FFN(norm(h))). x: [B, T, D]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config.dim, config.ffn_width)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        h = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return self.residual_seam(h, self.feed_forward(self.ffn_norm(h)))

    def residual_seam(self, stream: Tensor, update: Tensor) -> Tensor:
        """The block's last addition to the residual stream: the seam where an activation, or a fused kernel, enters."""
        return stream + update


class Attention(nn.Module):
    """Causal attention with grouped key/value heads through SDPA."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_width = config.head_width
        self.grouped = config.kv_heads != config.heads
        self.wq = Linear(config.dim, config.heads * config.head_width)
        self.wk = Linear(config.dim, config.kv_heads * config.head_width)
        self.wv = Linear(config.dim, config.kv_heads * config.head_width)
        self.wo = Linear(config.heads * config.head_width, config.dim)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        q, k, v = (t.unflatten(-1, (-1, self.head_width)) for t in self.project(x))  # [B, T, H, d]
        q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, H, T, d]
        if cache is not None:
            k, v = cache.append(k, v)  # [B, H_kv, S, d]
        if q.shape[2] == k.shape[2]:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=self.grouped
            )
        else:
            out = continued_attention(q, k, v, mask)
        return self.wo(out.transpose(1, 2).flatten(2))  # [B, T, D]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H d], keys and values [B, T, H_kv d] of x [B, T, D]: the seam for who knows more of x."""
        return self.wq(x), self.wk(x), self.wv(x)


def continued_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of T new positions to S slots: q [B, H, T, d], k and v [B, H_kv, S, d], mask [1 or B, 1, T, S].

    The query heads that share a key head become rows of it: no kernel has to repeat the cache for them.
    """
    rows = q.reshape(len(q), k.shape[1], -1, q.shape[3])  # [B, H_kv, H / H_kv * T, d]
    if mask is not None and q.shape[2] > 1:
        mask = mask.repeat(1, 1, q.shape[1] // k.shape[1], 1)
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).view(q.shape)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.w1 = Linear(dim, ffn_dim)
        self.w3 = Linear(dim, ffn_dim)
        self.w2 = Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w1(x), self.w3(x)
        if self.training and not torch.is_autocast_enabled(x.device.type):
            return swiglu(gate, up, self.w2.weight)
        return self.w2(F.silu(gate) * up)  # where hooks on w2 see its input


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32 (fp64 for fp64), cast back."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere torch's own is one kernel
            return rms_norm(x, self.weight, self.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps).type_as(x)


def rotary_table(
    length: int, head_width: int, theta: float, scaling: RopeScaling | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, each [T, head_width / 2]; fp32, or fp64 if `like` is.

    The frequencies are theta^(-2j / head_width), scaled if the model says so.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    pairs = torch.arange(0, head_width, 2, device=like.device, dtype=wide)
    frequencies = 1.0 / theta ** (pairs / head_width)  # rounded as in Lingua and transformers
    if scaling is not None:
        frequencies = scaling.apply(frequencies)
    angles = torch.outer(torch.arange(length, device=like.device, dtype=wide), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding on interleaved pairs (x[2j], x[2j+1]). x: [B, T, H, d]; cos, sin: [(B,) T, d / 2]."""
    pairs = x.to(cos.dtype).unflatten(-1, (-1, 2))  # [B, T, H, d/2, 2]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # [..., T, 1, d/2]
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # The same products and sums as one complex product: a tenth of the time there, where strides of 2 are slow.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    else:
        even, odd = pairs.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return turned.flatten(-2).type_as(x)


def same_document_mask(document_ids: Tensor) -> Tensor:
    """[B, 1, T, T] bool: position i may attend to j <= i of its own document. document_ids: [B, T]."""
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return same.tril()[:, None]
