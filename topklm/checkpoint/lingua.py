"""What Meta Lingua leaves: its runs and checkpoint directories, and the tokenizer that its params.json names.

Layout and keys are ours (store.py says which), and the weights load as ours do. There are no hashes, the tokenizer is
only named, and the order of its data cannot be gone on with here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topklm.checkpoint.integrity import FILES
from topklm.data import Tokenizer, load_tokenizer
from topklm.errors import ConfigError, DataError

log = logging.getLogger("topklm.checkpoint")
TRAIN_STATE = "train_state_00000.json"


def written_by_lingua(checkpoint: Path) -> bool:
    """Whether a checkpoint directory is Meta Lingua's, and whole: it writes rank 0's train state last."""
    if (checkpoint / FILES).exists() or not (checkpoint / ".metadata").exists():
        return False
    return {"step", "acc_step", "data_loader_state", "scheduler"} <= _train_state(checkpoint).keys()


def why_not_continued(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint directory that is not of a run here; None for one that is."""
    advice = "take its weights alone, for a new dump_dir: checkpoint.init_ckpt_path, continue_training_from_init=false"
    if written_by_lingua(checkpoint):
        return (
            f"Meta Lingua wrote {checkpoint}; what it tells of its place in the data means nothing to the order of "
            f"batches here, so the run cannot be gone on with; {advice}"
        )
    if (state := _train_state(checkpoint)) and "rng" not in state:
        return f"{checkpoint} was exported: it has no optimizer state; {advice}"
    return None


def newest_of_lingua(found: list[Path]) -> Path | None:
    """The newest of a Lingua run's checkpoints (`list_checkpoints`); None if some are ours or none are whole."""
    if any((path / FILES).exists() for path in found):
        return None
    return next((path for path in reversed(found) if written_by_lingua(path)), None)


def lingua_tokenizer(run: Mapping[str, Any], vocab_size: int) -> Tokenizer | None:
    """The tokenizer that Lingua's params.json names, if its file is still there; else None, and the log says why.

    `vocab_size`: V of the model, which the tokenizer must have too.
    """
    named = (run.get("data") or {}).get("tokenizer") or {}
    name, path = named.get("name"), named.get("path")
    if not name:
        return None
    try:
        tokenizer = load_tokenizer(name, path)
    except (ConfigError, DataError) as error:
        log.warning("loaded without its tokenizer (params.json names %s, %s): %s", name, path, error)
        return None
    if tokenizer.vocab_size != vocab_size:
        log.warning(
            "loaded without a tokenizer: %s at %s has %d ids, the model has %d",
            name, path, tokenizer.vocab_size, vocab_size,
        )  # fmt: skip
        return None
    return tokenizer


def _train_state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / TRAIN_STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
