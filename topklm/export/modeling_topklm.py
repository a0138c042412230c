"""A TopK language model: a Llama whose residual stream keeps only some entries after the first L - n blocks.

This file is complete: it needs torch and transformers (4.48 or later) only. It travels with every exported model, so
that `AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)` works without topklm. Parameters and their
names are those of `LlamaForCausalLM`: without this file the same weights load as a dense Llama, another model. Some
activations have thresholds or norms beside them, as buffers `activation.<name>` of their blocks.

`output_hidden_states=True` gives the sparse states: entry i + 1 is the stream after block i, in which the activation
of the first L - n blocks has made zeros, at alpha = 0 (TopK: of all but the k largest entries). Each sparse block has a
submodule `activation`: its input is the stream before the cut, its output the one after it, for hooks.

The method: TopK Language Models, https://arxiv.org/abs/2506.21468. Licence of this file: BSD-3-Clause.
"""

from __future__ import annotations

import math
import statistics
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
ACTIVATIONS = {
    "topk": ("blend", "identity", "relu"),
    "abstopk": ("identity",),
    "grouptopk": ("blend", "identity", "relu"),
    "normtopk": ("blend", "identity", "relu"),
    "stat_topk": ("blend", "identity", "relu"),
    "batchtopk": ("blend", "identity", "relu"),
    "jumprelu": ("blend",),
    "relu": ("blend", "relu"),
    "identity": ("identity",),
}
"""Names of activations and the values of `anneal_form` that each has."""


class TopKLlamaConfig(LlamaConfig):
    """`LlamaConfig` and the dictionary `topk`.

    Its keys: `activation` (see `TopKActivation`), `k` (entries kept per token) or `k_per_layer`, `options` (of this
    activation), `n_dense_tail` (the last n blocks stay dense), `anneal_form` ("blend", "identity" or "relu"),
    `schedule` and `alpha` (1 dense ... 0 TopK). The others tell how the model was trained and do nothing here.
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


def above(x: Tensor, threshold: Tensor) -> Tensor:
    """bool [..., D]: x > threshold, compared in fp32 at least; NaN on either side is selected."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return ~(x.detach().to(wide) <= threshold.to(wide))


class TopKActivation(nn.Module):
    """What a sparse block ends in: x [..., D] to A(x) [..., D]. No parameters.

    With m the selection and a = alpha, blend: a x + (1 - a) relu(x) m; identity: x (m + a (1 - m)); relu: relu(x)
    (m + a (1 - m)). An unselected entry is never multiplied by zero, so an infinite one becomes 0. m is 1 for

    - topk, abstopk: the k largest entries, by value or by magnitude; grouptopk: those of each of `groups` neighbours;
    - normtopk: the k largest x w, with w the norm of the weights that read an entry (buffer `reader_norm`);
    - stat_topk: x > mean + z std of the token's entries, z given or the normal distribution's for k of D;
    - batchtopk: x > theta, one for the layer (buffer `threshold`);
    - jumprelu: x > s theta, one theta for each entry (buffer `threshold`) and one s for the layer (buffer `scale`);
    - relu: x > 0; identity: everything.

    `schedule` k: instead of a, the number of entries goes from D to k, and a = 0 in the formulas.
    """

    reader_norm: Tensor
    threshold: Tensor
    scale: Tensor

    def __init__(
        self,
        k: int,
        form: str,
        alpha: float,
        activation: str = "topk",
        dim: int = 0,
        options: dict[str, Any] | None = None,
        schedule: str = "mask",
    ) -> None:
        super().__init__()
        self.activation, self.form, options = activation, form, options or {}
        self.groups = options.get("groups", 8) if activation == "grouptopk" else 1
        # As fp32 sees it, which is what training multiplies with. The device is named because models are built on meta.
        self.alpha = torch.tensor(alpha, dtype=torch.float32, device="cpu").item()
        self.k = k
        if schedule == "k":
            self.k, self.alpha = k + round(alpha * (dim // self.groups - k)), 0.0
        if activation == "stat_topk":
            z = options.get("z")
            normal = statistics.NormalDist().inv_cdf(1 - k / dim) if k < dim else -math.inf
            self.z = normal if z is None else z
        if activation == "normtopk":
            self.register_buffer("reader_norm", torch.ones(dim, dtype=torch.float32))
        if activation in ("batchtopk", "jumprelu"):
            shape = (dim,) if activation == "jumprelu" else ()
            self.register_buffer("threshold", torch.zeros(shape, dtype=torch.float32))
            if activation == "jumprelu":
                self.register_buffer("scale", torch.ones((), dtype=torch.float32))
            # training steps in which threshold or scale was measured, for topklm
            self.register_buffer("measured", torch.zeros((), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.cut(x, self.selected(x))

    def selected(self, x: Tensor) -> Tensor:
        """The selection, bool [..., D]."""
        x = x.detach()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.activation == "topk":
            return select(x, self.k)
        if self.activation == "abstopk":
            return select(x.abs(), self.k)
        if self.activation == "grouptopk":
            return select(x.unflatten(-1, (self.groups, -1)), self.k).flatten(-2)
        if self.activation == "normtopk":
            return select(wide * self.reader_norm.to(wide.dtype), self.k)
        if self.activation == "stat_topk":
            mean = wide.mean(-1, keepdim=True)
            return above(x, mean + (wide - mean).square().mean(-1, keepdim=True).sqrt() * self.z)
        if self.activation in ("batchtopk", "jumprelu"):
            return above(x, self.threshold * self.scale if self.activation == "jumprelu" else self.threshold)
        return ~(x <= 0) if self.activation == "relu" else torch.ones_like(x, dtype=torch.bool)

    def cut(self, x: Tensor, selected: Tensor) -> Tensor:
        """A(x) for a selection, bool [..., D]."""
        if self.form == "blend" and self.alpha:
            return torch.where(selected & (x > 0), x, x * self.alpha)
        out = torch.where(selected, x, x * self.alpha if self.alpha else x.new_zeros(()))
        return out if self.form == "identity" else out.relu()

    def extra_repr(self) -> str:
        return f"{self.activation}, k={self.k}, form={self.form}, alpha={self.alpha:g}"


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
        for i, layer in enumerate(self.layers[: config.num_hidden_layers - topk["n_dense_tail"]]):
            # The block stays the object that Llama made, whatever this version of transformers did with it.
            layer.__class__ = TopKLlamaDecoderLayer
            layer.activation = TopKActivation(
                topk["k_per_layer"][i] if topk["k_per_layer"] else topk["k"],
                topk["anneal_form"],
                topk["alpha"],
                topk["activation"],
                config.hidden_size,
                topk["options"],
                topk["schedule"],
            )


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
    topk = {
        "activation": "topk", "anneal_form": "blend", "alpha": 0.0, "k_per_layer": None, "options": {},
        "schedule": "mask", **config.topk,
    }  # fmt: skip
    name, k, tail, alpha = topk["activation"], topk.get("k"), topk.get("n_dense_tail"), topk["alpha"]
    if name not in ACTIVATIONS:
        raise ValueError(f"config.topk: activation {name!r} is unknown to this file; it has: {', '.join(ACTIVATIONS)}")
    groups = topk["options"].get("groups", 8) if name == "grouptopk" else 1
    most = config.hidden_size if name not in ("relu", "identity") else math.inf
    ks = topk["k_per_layer"] or [k]
    fits = all(isinstance(each, int) and 1 <= each * groups <= most for each in ks)
    rules = {
        f"k {topk['k_per_layer'] or k!r} is not in 1 ... {most // groups}": fits,
        f"{groups} groups do not divide {config.hidden_size}": config.hidden_size % groups == 0,
        f"n_dense_tail {tail!r} is not in 0 ... {config.num_hidden_layers}": isinstance(tail, int)
        and 0 <= tail <= config.num_hidden_layers,
        f"anneal_form {topk['anneal_form']!r} is not {', '.join(ACTIVATIONS[name])}": topk["anneal_form"]
        in ACTIVATIONS[name],
        f"schedule {topk['schedule']!r} is not mask, k or none": topk["schedule"] in ("mask", "k", "none"),
        f"alpha {alpha!r} is not in [0, 1]": isinstance(alpha, (int, float)) and 0 <= alpha <= 1,
    }
    if topk["k_per_layer"] and isinstance(tail, int):
        n = config.num_hidden_layers - tail
        rules[f"k_per_layer has {len(ks)} numbers for {n} sparse blocks"] = len(ks) == n
    wrong = [message for message, holds in rules.items() if not holds]
    if wrong:
        raise ValueError("config.topk: " + "; ".join(wrong))
    return topk
