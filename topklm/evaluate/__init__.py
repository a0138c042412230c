"""How good a model is."""

from topklm.evaluate.config import EvalConfig, ValidationConfig
from topklm.evaluate.validation import validate

__all__ = ["EvalConfig", "ValidationConfig", "validate"]
