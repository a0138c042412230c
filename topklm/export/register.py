"""TopK language models for the Auto classes of transformers, without remote code."""

from __future__ import annotations

from topklm.optional import require


def register() -> None:
    """Let `AutoModelForCausalLM.from_pretrained(path)` load our TopK exports without `trust_remote_code`.

    For `AutoConfig` and `AutoModel` too, in this process; calling it again changes nothing. Raises `ConfigError` if
    transformers is not installed.
    """
    transformers = require("transformers", "topklm[hf]")
    from topklm.export.modeling_topklm import TopKLlamaConfig, TopKLlamaForCausalLM, TopKLlamaModel

    transformers.AutoConfig.register(TopKLlamaConfig.model_type, TopKLlamaConfig, exist_ok=True)
    transformers.AutoModel.register(TopKLlamaConfig, TopKLlamaModel, exist_ok=True)
    transformers.AutoModelForCausalLM.register(TopKLlamaConfig, TopKLlamaForCausalLM, exist_ok=True)
