"""The section `topk` in the configuration of a live Hugging Face object, known by what it can do, not by its class.

A bare `save_pretrained` of a sparsified Llama writes a dense Llama's configuration, and transformers loads it as one
without a word. With this section in it, `topklm.load_model` restores the TopK and its alpha.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torch import nn

from topklm.errors import ConfigError
from topklm.sparsity.config import TopKConfig

log = logging.getLogger("topklm.sparsity")


def _config_of(model: nn.Module) -> Any:
    """The configuration that `save_pretrained` would write; None for other models."""
    return getattr(model, "config", None) if hasattr(model, "save_pretrained") else None


def refuse_own_topk(model: nn.Module) -> None:
    """Raise `ConfigError` for an exported TopK model in transformers, whose class has the activation already."""
    if getattr(_config_of(model), "model_type", None) == "topk_llama":
        raise ConfigError(
            f"{type(model).__name__} is a TopK model already; load its weights as LlamaForCausalLM to cut them anew"
        )


def write_topk(model: nn.Module, cfg: TopKConfig) -> None:
    """Write `cfg` and alpha = 0 to the configuration, and warn of `save_pretrained`."""
    config = _config_of(model)
    if config is None:
        return
    config.topk = {**dataclasses.asdict(cfg), "alpha": 0.0}
    log.warning(
        "transformers will load what save_pretrained writes of this %s as a DENSE model, without a word; "
        "topklm.load_model reads it with its TopK, and python -m apps.export makes a directory of it that keeps it",
        type(model).__name__,
    )


def write_alpha(model: nn.Module, value: float) -> None:
    """Keep alpha in the section current, where there is one."""
    section = getattr(_config_of(model), "topk", None)
    if isinstance(section, dict):
        section["alpha"] = value
