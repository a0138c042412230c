"""A model from its configuration: the transformer, and the activation on its blocks."""

from __future__ import annotations

import torch

from topklm.model.config import ModelConfig
from topklm.model.transformer import Transformer
from topklm.sparsity import TopKConfig, sparsify


def build_model(config: ModelConfig, topk: TopKConfig | None, device: torch.device | str = "cpu") -> Transformer:
    """The transformer of `config`, sparsified by `topk` unless that is None. On "meta" no memory is used."""
    with torch.device(device):
        model = Transformer(config)
    sparsify(model, topk)
    return model
