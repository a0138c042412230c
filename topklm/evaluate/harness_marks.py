"""The BOS policy: which special tokens stand before a text, by default as the model was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topklm.checkpoint.trained_with import trained_with
from topklm.data import Tokenizer
from topklm.errors import ConfigError, Problem


@dataclass(frozen=True)
class Marks:
    """Special tokens of requests. Made by `marks_for`."""

    bos: bool
    """Whether every prompt begins with BOS."""
    prefix_id: int
    """What stands before a text that has no prompt: the first token of it needs something to follow."""
    words: str
    """The policy and where it comes from, for the log and the provenance."""


def marks_for(tokenizer: Tokenizer, run: dict[str, Any], bos: bool | None = None, path: Path | None = None) -> Marks:
    """The policy for a model that was trained as `run` says (`LoadedConfig.run`).

    `bos`: whether prompts begin with BOS; None: if the documents that the model was trained on did, or if its Hugging
    Face tokenizer puts one (`path`: the directory that was loaded; `tokenizer_config.json` in it). Without a prompt
    the prefix is what came before a document in training: BOS, or EOS where documents only ended with one. Raises
    `ConfigError` if the tokenizer lacks the tokens.
    """
    add_bos, add_eos = trained_with(run, path)
    source = "as trained" if add_bos is not None else "the run does not tell; the tokenizer's"
    wanted = (tokenizer.bos_id is not None if add_bos is None else add_bos) if bos is None else bos
    if wanted and tokenizer.bos_id is None:
        raise ConfigError([Problem("bos", f"the {tokenizer.name} tokenizer has no BOS token; set bos=false")])
    begins_with_bos = wanted or add_bos or not (add_eos and tokenizer.eos_id is not None)
    prefix = tokenizer.bos_id if begins_with_bos and tokenizer.bos_id is not None else tokenizer.eos_id
    if prefix is None:
        raise ConfigError(f"the {tokenizer.name} tokenizer has neither BOS nor EOS; a text without a prompt needs one")
    shown = tokenizer.piece(prefix)
    words = (
        f"{'BOS' if wanted else 'no BOS'} before prompts ({source if bos is None else 'as set'}), {shown} before texts"
    )
    return Marks(wanted, prefix, words)
