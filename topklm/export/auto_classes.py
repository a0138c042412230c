"""TopK language models for the Auto classes of transformers, without remote code."""

from __future__ import annotations

from typing import Any

from topklm.optional import require


def modeling() -> Any:
    """The module `modeling_topklm`. Raises `ConfigError` if transformers is not installed."""
    require("transformers", "topklm[hf]")
    from topklm.export import modeling_topklm

    return modeling_topklm


def register() -> None:
    """Let `AutoModelForCausalLM.from_pretrained(path)` load our TopK exports without `trust_remote_code`.

    For `AutoConfig` and `AutoModel` too, in this process; calling it again changes nothing. Raises `ConfigError` if
    transformers is not installed.
    """
    code = modeling()
    transformers = require("transformers", "topklm[hf]")
    transformers.AutoConfig.register(code.TopKLlamaConfig.model_type, code.TopKLlamaConfig, exist_ok=True)
    transformers.AutoModel.register(code.TopKLlamaConfig, code.TopKLlamaModel, exist_ok=True)
    transformers.AutoModelForCausalLM.register(code.TopKLlamaConfig, code.TopKLlamaForCausalLM, exist_ok=True)
