"""The language model: a Llama transformer with Meta Lingua's parameter names."""

from topklm.model.build import build_model
from topklm.model.cache import KVCache
from topklm.model.config import ModelConfig
from topklm.model.init import init_weights
from topklm.model.loss import IGNORE, linear_cross_entropy
from topklm.model.rope_scaling import RopeScaling
from topklm.model.transformer import Transformer

__all__ = [
    "IGNORE",
    "KVCache",
    "ModelConfig",
    "RopeScaling",
    "Transformer",
    "build_model",
    "init_weights",
    "linear_cross_entropy",
]
