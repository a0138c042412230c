"""Documents to token shards, token shards to batches.

Names are imported when they are first used: preparing needs no torch, training needs no readers of documents.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Batch": "loader",
    "DataConfig": "config",
    "HeldOut": "held_out",
    "IGNORE": "loader",
    "Manifest": "shards",
    "SampleOrder": "order",
    "ShardInfo": "shards",
    "ShardWriter": "shards",
    "StepBatches": "loader",
    "TokenArray": "token_array",
    "Tokenizer": "tokenizers",
    "TrainData": "train_data",
    "TrainLoader": "loader",
    "ValidationBatch": "validation",
    "Windows": "validation",
    "load_tokenizer": "tokenizers",
    "n_batches": "validation",
    "n_micro_batches": "loader",
    "n_scored_tokens": "validation",
    "open_data": "train_data",
    "open_held_out": "held_out",
    "open_saved_tokenizer": "tokenizers",
    "read_manifest": "shards",
    "validation_batches": "validation",
    "write_manifest": "shards",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"topklm.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'topklm.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
