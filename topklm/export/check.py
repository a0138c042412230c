"""Comparing two forms of a model that lie on disk."""

from __future__ import annotations

from pathlib import Path

from topklm.checkpoint import load_model
from topklm.export.config import ParityConfig
from topklm.export.parity import Parity, compare
from topklm.export.sides import HuggingFaceSide, NativeSide, is_huggingface, open_huggingface
from topklm.export.source import open_source
from topklm.export.text import comparison_tokens


def check_parity(
    a: str | Path,
    b: str | Path,
    config: ParityConfig | None = None,
    *,
    alpha: float | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
) -> Parity:
    """Compare a, run by topklm, with b: run by transformers if it is a Hugging Face directory, else by topklm too.

    Both are whatever `load_model` takes; so `check_parity(x, x)` of a Hugging Face directory checks the import. Where b
    stores its weights in another precision than fp32, those of a are rounded to it first. `alpha`: of a. Raises
    `ConfigError`, `CheckpointError`; what differs is in the result.
    """
    config = config or ParityConfig()
    path = Path(b)
    other: HuggingFaceSide | NativeSide
    if is_huggingface(path):
        other = open_huggingface(path, trust_remote_code=trust_remote_code)
    else:
        other = NativeSide(load_model(path)[0])
    source = open_source(a, alpha)
    if isinstance(other, HuggingFaceSide):
        source.round_to(other.stored_dtype)
    tokens, what = comparison_tokens(source, config.tokens, Path(config.text) if config.text else None)
    return compare(
        NativeSide(source.model), other, tokens, config, names=(source.name, path.name), text=what, progress=progress
    )
