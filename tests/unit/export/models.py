"""Tiny models with their surroundings, as `open_source` would find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from topklm.checkpoint import LoadedConfig
from topklm.data import Tokenizer
from topklm.data.tokenizers import ByteTokenizer
from topklm.export.source import Source
from topklm.model import ModelConfig, build_model
from topklm.sparsity import TopKConfig, set_alpha

SIZES = {
    "dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "max_seqlen": 48, "vocab_size": 258,
}  # fmt: skip
TOPK = TopKConfig(k=6, n_dense_tail=1, anneal_steps=10)


def tiny_source(
    topk: TopKConfig | None = TOPK,
    alpha: float = 0.0,
    tokenizer: Tokenizer | None = ByteTokenizer(),  # noqa: B008 - it does not change
    run: dict[str, Any] | None = None,
    **sizes: Any,
) -> Source:
    config = ModelConfig(**{**SIZES, **sizes})
    model = build_model(config, topk).eval()
    # Initial weights are so small that the stream is the embedding; these matter in every block.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not name.endswith("norm.weight"):
                weight.mul_(2.0)
    is_sparse = topk is not None and topk.n_dense_tail < config.n_layers
    if is_sparse:
        set_alpha(model, alpha)
    loaded = LoadedConfig(
        model=config, topk=topk, alpha=alpha if is_sparse else None, step=20, path=Path("runs/tiny"), sha256="0" * 64,
        run={"name": "tiny", **(run or {})},
    )  # fmt: skip
    return Source(model=model, tokenizer=tokenizer, config=loaded)
