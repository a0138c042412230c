"""Saving, resuming and loading."""

from topklm.checkpoint.config import CheckpointConfig, SaveEvery
from topklm.checkpoint.integrity import checkpoint_hash, defects
from topklm.checkpoint.lingua import why_not_continued
from topklm.checkpoint.load import (
    LoadedConfig,
    check_weights,
    content_hash,
    load_model,
    load_weights,
    read_activations,
    read_description,
    read_weights,
    resolve,
    stored_tokenizers,
)
from topklm.checkpoint.store import CheckpointStore, list_checkpoints, newest_good, step_of

__all__ = [
    "CheckpointConfig",
    "CheckpointStore",
    "LoadedConfig",
    "SaveEvery",
    "check_weights",
    "checkpoint_hash",
    "content_hash",
    "defects",
    "list_checkpoints",
    "load_model",
    "load_weights",
    "newest_good",
    "read_activations",
    "read_description",
    "read_weights",
    "resolve",
    "step_of",
    "stored_tokenizers",
    "why_not_continued",
]
