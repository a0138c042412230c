"""Continuing texts: prompts to completions with a key-value cache."""

from topklm.generate.completion import Completion, FinishReason, Piece, Stream
from topklm.generate.config import SamplingConfig
from topklm.generate.loop import generate

__all__ = ["Completion", "FinishReason", "Piece", "SamplingConfig", "Stream", "generate"]
