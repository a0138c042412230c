"""A small transformer-like stack, and the ways to run it that have to agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from topklm.sparsity import SAVED_OPS, ActivationSteps, TopKConfig, alpha_at, set_alpha, sparsify

VOCAB, DIM, SEQ = 31, 32, 12
CHECKPOINTING = ("none", "selective", "full")


class Mixer(nn.Module):
    """Causal attention with one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, T, D] each
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class PlainBlock(nn.Module):
    """Without the seam: the activation goes on the output of forward."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim)
        self.attention = Mixer(dim)
        self.ffn_norm = nn.RMSNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class SeamBlock(PlainBlock):
    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return self.residual_seam(h, self.feed_forward(self.ffn_norm(h)))

    def residual_seam(self, stream: Tensor, update: Tensor) -> Tensor:
        return stream + update


class TupleBlock(PlainBlock):
    """As older Hugging Face layers: the stream and something else."""

    def forward(self, hidden_states: Tensor, use_cache: bool = False) -> tuple[Tensor, ...]:
        return (super().forward(hidden_states), *([hidden_states.mean()] if use_cache else []))


class Stack(nn.Module):
    def __init__(self, block: Callable[[int], nn.Module] = SeamBlock, n_layers: int = 5, dim: int = DIM) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCAB, dim)
        self.layers = nn.ModuleList(block(dim) for _ in range(n_layers))
        self.norm = nn.RMSNorm(dim)
        self.output = nn.Linear(dim, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)  # [B, T, D]
        for block in self.layers:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.output(self.norm(x))


def make_stack(cfg: TopKConfig | None = None, block: Callable[[int], nn.Module] = SeamBlock, **sizes: Any) -> Stack:
    torch.manual_seed(0)
    model = Stack(block, **sizes)
    sparsify(model, cfg)
    return model


def make_batch(step: int, size: int = 4) -> Tensor:
    return torch.randint(VOCAB, (size, SEQ + 1), generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def checkpoint_blocks(model: Stack, mode: str) -> None:
    """`full` saves the block's input and the selection, `selective` the matrix products as well."""
    aten = torch.ops.aten
    ops = {"full": [], "selective": [aten.mm.default, aten.addmm.default]}
    if mode == "none":
        return
    context = partial(create_selective_checkpoint_contexts, [*SAVED_OPS, *ops[mode]])
    for i, block in enumerate(model.layers):
        model.layers[i] = checkpoint_wrapper(block, context_fn=context, preserve_rng_state=False)


def compile_blocks(model: Stack, how: str, **options: Any) -> None:
    """`forward`: hooks (of FSDP2) stay outside the graph; `inplace`: they are inside."""
    for block in model.layers:
        if how == "forward":
            block.forward = torch.compile(block.forward, **options)
        elif how == "inplace":
            block.compile(**options)


def train_steps(model: Stack, steps: int, anneal_steps: int, lr: float = 1e-2, micro_batches: int = 1) -> list[float]:
    """Losses of a few optimizer steps with what activations do between them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    activations = ActivationSteps(model)
    losses = []
    for step in range(steps):
        set_alpha(model, alpha_at(step, anneal_steps))
        activations.before(step)
        total = 0.0
        for part in make_batch(step % 8).to(model.norm.weight.device).chunk(micro_batches):
            loss = loss_of(model, part) / micro_batches
            loss.backward()
            activations.add()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        activations.finish()
        losses.append(total)
    return losses
