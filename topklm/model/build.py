"""A model from its configuration: the transformer, and the activation on its blocks."""

from __future__ import annotations

import torch

from topklm.model.config import ModelConfig
from topklm.model.lingua import LinguaTransformer
from topklm.model.transformer import Transformer
from topklm.sparsity import TopKConfig, sparsify


def build_model(config: ModelConfig, topk: TopKConfig | None, device: torch.device | str = "cpu") -> Transformer:
    """The transformer of `config`, sparsified by `topk` unless that is None. On "meta" no memory is used.

    Raises `ConfigError` where the backend is Meta Lingua's and there is none.
    """
    with torch.device(device):
        model = LinguaTransformer(config) if config.backend == "lingua" else Transformer(config)
    sparsify(model, topk)
    return model
