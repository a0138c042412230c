"""A tiny TopK language model over bytes, and the plainest way to score a text with it."""

import random

import torch

from topklm.data.tokenizers import ByteTokenizer
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

TOKENIZER = ByteTokenizer()


def tiny_model(*, k=8, alpha=0.0, dtype=torch.float64, dim=32, layers=3, seed=1):
    """Random weights; `k` None: dense. Few heads and grouped, so that nothing is square by accident."""
    config = ModelConfig(
        dim=dim, n_layers=layers, n_heads=4, n_kv_heads=2, ffn_dim=40, vocab_size=TOKENIZER.vocab_size, max_seqlen=128,
        seed=seed, loss_chunk=7,
    )  # fmt: skip
    model = build_model(config, None if k is None else TopKConfig(k=k, n_dense_tail=1))
    if k is not None:
        set_alpha(model, alpha)
    return model.to(dtype).eval()


def brute_force(model, tokens, n_scored):
    """(sum of ln p of the last n tokens, whether all of them are the most probable) by one full forward pass."""
    with torch.no_grad():
        log_p = model(torch.tensor([tokens[:-1]])).double().log_softmax(-1)[0]  # [T, V]
    targets = torch.tensor(tokens[-n_scored:])
    rows = log_p[-n_scored:]
    return rows.gather(-1, targets[:, None]).sum().item(), bool((rows.argmax(-1) == targets).all())


def words(seed, n):
    """Text of n random words of a small vocabulary."""
    draw = random.Random(seed)
    return " ".join(draw.choice(["the", "people", "of", "a", "union", "state", "it", "we"]) for _ in range(n))
