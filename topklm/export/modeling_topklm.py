"""A TopK language model: a Llama whose residual stream keeps its k largest entries after the first L - n blocks.

This file is complete: it needs torch and transformers (4.48 or later) only. It travels with every exported model, so
that `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)` works without topklm. Parameters and their
names are those of `LlamaForCausalLM`: without this file the same weights load as a dense Llama, another model.

`output_hidden_states=True` gives the sparse states: entry i + 1 is the stream after block i, with at most k entries
that are not zero (at alpha = 0) for the first L - n blocks. Each sparse block has a submodule `activation`: its input
is the stream before the cut, its output the one after it, for hooks.

The method: TopK Language Models, https://arxiv.org/abs/2506.21468. Licence of this file: BSD-3-Clause.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

AUTO_MAP = {
    "AutoConfig": "modeling_topklm.TopKLlamaConfig",
    "AutoModel": "modeling_topklm.TopKLlamaModel",
    "AutoModelForCausalLM": "modeling_topklm.TopKLlamaForCausalLM",
}
ACTIVATIONS = ("topk",)


class TopKLlamaConfig(LlamaConfig):
    """`LlamaConfig` and the dictionary `topk`.

    Its keys: `activation` ("topk"), `k` (entries kept per token), `n_dense_tail` (the last n blocks stay dense),
    `anneal_form` ("blend", "identity" or "relu") and `alpha` (1 dense ... 0 TopK); `anneal_ratio` and `anneal_steps`
    tell how the model was trained and do nothing here.
    """

    model_type = "topk_llama"
    _auto_class = "AutoConfig"  # saving a model copies this file

    def __init__(self, topk: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.topk = topk
        super().__init__(**kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(*args, **kwargs)


def select(x: Tensor, k: int) -> Tensor:
    """bool [..., D]: the k largest entries of x along the last dimension, exactly k of them.

    Equal values: the lowest index wins; -0.0 equals +0.0; NaN counts as larger than everything.
    """
    x = x.detach()
    dim = x.shape[-1]
    if x.dtype == torch.float64:  # leaves no room for the index in a key
        index = torch.sort(x + 0.0, dim=-1, descending=True, stable=True).indices[..., :k]
    else:
        # Integers in the order of x with the index in their low bits: no two are equal, so torch.topk needs no rule.
        bits = (x.float() + 0.0).view(torch.int32)  # -0.0 + 0.0 is +0.0
        order = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats are ordered by falling magnitude
        order = order.masked_fill(x.isnan(), 0x7FFFFFFF).long()
        low = torch.arange(2**31 - 1, 2**31 - 1 - dim, -1, device=x.device)
        keys = torch.topk(order * 2**31 + low, k, dim=-1, sorted=False).values
        index = 2**31 - 1 - (keys & (2**31 - 1))
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, index, True)


class TopKActivation(nn.Module):
    """What a sparse block ends in: x [..., D] to A(x) [..., D]. No parameters.

    With m the selection and a = alpha, blend: a x + (1 - a) relu(x) m; identity: x (m + a (1 - m)); relu: relu(x)
    (m + a (1 - m)). An unselected entry is never multiplied by zero, so an infinite one becomes 0.
    """

    def __init__(self, k: int, form: str, alpha: float) -> None:
        super().__init__()
        self.k = k
        self.form = form
        # As fp32 sees it, which is what training multiplies with. The device is named because models are built on meta.
        self.alpha = torch.tensor(alpha, dtype=torch.float32, device="cpu").item()

    def forward(self, x: Tensor) -> Tensor:
        return self.cut(x, select(x, self.k))

    def cut(self, x: Tensor, selected: Tensor) -> Tensor:
        """A(x) for a selection, bool [..., D]."""
        if self.form == "blend" and self.alpha:
            return torch.where(selected & (x > 0), x, x * self.alpha)
        out = torch.where(selected, x, x * self.alpha if self.alpha else x.new_zeros(()))
        return out if self.form == "identity" else out.relu()

    def extra_repr(self) -> str:
        return f"k={self.k}, form={self.form}, alpha={self.alpha:g}"


class TopKLlamaDecoderLayer(LlamaDecoderLayer):
    """A Llama block with the activation on its output, the residual stream."""

    activation: TopKActivation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if isinstance(out, tuple):  # transformers before 4.56
            return (self.activation(out[0]), *out[1:])
        return self.activation(out)


class TopKLlamaModel(LlamaModel):
    """The stack of blocks: `last_hidden_state` is the normalised stream, as in `LlamaModel`."""

    config_class = TopKLlamaConfig
    _no_split_modules = ["LlamaDecoderLayer", "TopKLlamaDecoderLayer"]  # noqa: RUF012
    _auto_class = "AutoModel"

    def __init__(self, config: TopKLlamaConfig) -> None:
        topk = _checked(config)
        super().__init__(config)
        for layer in self.layers[: config.num_hidden_layers - topk["n_dense_tail"]]:
            # The block stays the object that Llama made, whatever this version of transformers did with it.
            layer.__class__ = TopKLlamaDecoderLayer
            layer.activation = TopKActivation(topk["k"], topk["anneal_form"], topk["alpha"])


class TopKLlamaForCausalLM(LlamaForCausalLM):
    """A TopK language model, used like `LlamaForCausalLM`."""

    config_class = TopKLlamaConfig
    _no_split_modules = TopKLlamaModel._no_split_modules
    _auto_class = "AutoModelForCausalLM"

    def __init__(self, config: TopKLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = TopKLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def _checked(config: TopKLlamaConfig) -> dict[str, Any]:
    """`config.topk` with its defaults; raises ValueError with everything that is wrong."""
    if not isinstance(config.topk, dict):
        raise ValueError(f"config.topk is {config.topk!r}; a TopK model needs a dictionary with k and n_dense_tail")
    topk = {"activation": "topk", "anneal_form": "blend", "alpha": 0.0, **config.topk}
    k, tail, alpha = topk.get("k"), topk.get("n_dense_tail"), topk["alpha"]
    rules = {
        f"activation {topk['activation']!r} is unknown to this file; it has: {', '.join(ACTIVATIONS)}": topk[
            "activation"
        ]
        in ACTIVATIONS,
        f"k {k!r} is not in 1 ... {config.hidden_size}": isinstance(k, int) and 1 <= k <= config.hidden_size,
        f"n_dense_tail {tail!r} is not in 0 ... {config.num_hidden_layers}": isinstance(tail, int)
        and 0 <= tail <= config.num_hidden_layers,
        f"anneal_form {topk['anneal_form']!r} is not blend, identity or relu": topk["anneal_form"]
        in ("blend", "identity", "relu"),
        f"alpha {alpha!r} is not in [0, 1]": isinstance(alpha, (int, float)) and 0 <= alpha <= 1,
    }
    wrong = [message for message, holds in rules.items() if not holds]
    if wrong:
        raise ValueError("config.topk: " + "; ".join(wrong))
    return topk
