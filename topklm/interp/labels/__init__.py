"""Names for neurons: their top tokens, WordNet's classes of words, a language model's words; see docs/labels.md."""

from topklm.interp.labels.config import CandidatesConfig, WordsConfig
from topklm.interp.labels.llm_config import LlmConfig

__all__ = ["CandidatesConfig", "LlmConfig", "WordsConfig"]
