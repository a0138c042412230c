"""What generation gives: completions, and pieces of them while they grow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "eos", "length", "context"]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One continuation of a prompt."""

    prompt_ids: list[int]
    """Token ids of the prompt, BOS included."""
    ids: list[int]
    """Every token that was chosen, EOS and the tokens of a stop string included."""
    text: str
    """What `ids` add to the prompt's text, up to a stop string; empty without a tokenizer."""
    logprobs: list[float]
    """ln p of each of `ids` under the model as it is, without temperature and filters."""
    finish_reason: FinishReason
    """stop: a stop string; eos: the EOS token; length: max_tokens; context: no room for another token."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Text that was added to a completion."""

    prompt: int
    """Number of the prompt, from 0."""
    sample: int
    """Number of the sample, from 0."""
    text: str
    """The new text; no later token changes it."""
    finish_reason: FinishReason | None
    """Why the completion ends here; None if it goes on."""


Stream = Callable[[Piece], None]
"""Receives each piece of text as soon as it is certain, and a last one, perhaps without text, at the end."""
