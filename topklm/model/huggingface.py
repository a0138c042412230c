"""Sizes and weights of `LlamaForCausalLM` to ours and back. Plain dictionaries: needs no transformers.

The two compute the same function. What differs is names, and the rotary embedding: Hugging Face rotates row j of a
head with row j + d/2, Meta's code (and Lingua's, and ours) row 2j with row 2j + 1. So the rows of each head of the
query and key matrices change places; every other weight is taken as it is, and both ways are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from topklm.errors import CheckpointError, ConfigError, Problem
from topklm.model.config import ModelConfig
from topklm.model.rope_scaling import RopeScaling

MODEL_TYPES = ("llama", "topk_llama")
ARCHITECTURES = ("LlamaForCausalLM", "TopKLlamaForCausalLM")

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# LlamaConfig's defaults: what the absence of a key means, whatever wrote the file.
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}  # fmt: skip
_PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": (None, "silu", "swish"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1),
    "quantization_config": (None,),
}
"""Keys that must be absent or have one of these values: we have nothing else."""
_BLOCK_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
    """The sizes in a `config.json` of Llama, as transformers 4 or 5 writes it.

    Dropout and initialisation, which do not change the function of a trained model, are not looked at. Raises
    `ConfigError` with every reason why a model is none of ours.
    """
    problems = [*_architecture_problems(hf), *_size_problems(hf)]
    scaling, theta = None, 10000.0
    try:
        scaling, theta = _rope_from_hf(hf)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    sizes = {**_DEFAULTS, **{key: value for key, value in hf.items() if value is not None}}
    dim, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    head_dim, kv_heads = sizes["head_dim"], sizes["num_key_value_heads"]
    config = ModelConfig(
        dim=dim,
        n_layers=sizes["num_hidden_layers"],
        head_dim=None if head_dim is not None and head_dim * heads == dim else head_dim,
        n_heads=heads,
        n_kv_heads=None if kv_heads == heads else kv_heads,
        ffn_dim=sizes["intermediate_size"],
        norm_eps=float(sizes["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        max_seqlen=sizes["max_position_embeddings"],
        vocab_size=sizes["vocab_size"],
        weight_tying=sizes["tie_word_embeddings"],
    )
    problems = list(config.problems())
    if scaling is not None:
        problems += [problem.under("rope_scaling") for problem in scaling.problems()]
    if problems:
        raise ConfigError(problems)
    return config


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of the same model as a dense Llama, in plain JSON types.

    The rotary base and scaling stand in it twice: `rope_parameters` is read by transformers 5, `rope_theta` and
    `rope_scaling` by transformers 4, which would take 10,000 for a base that it does not find. Raises `ConfigError`
    for sizes that `LlamaConfig` refuses or that a name there does not tell.
    """
    problems = []
    if config.vocab_size < 1:
        problems.append(Problem("vocab_size", f"{config.vocab_size}: the vocabulary is not known yet"))
    if config.dim % config.heads:
        problems.append(
            Problem("n_heads", f"transformers wants hidden_size {config.dim} divisible by {config.heads} heads")
        )
    if problems:
        raise ConfigError(problems)
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope = {"rope_type": scaling.type, "factor": scaling.factor}
        if scaling.type == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_seqlen,
            }
    return {
        "model_type": MODEL_TYPES[0],
        "architectures": [ARCHITECTURES[0]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_seqlen,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "tie_word_embeddings": config.weight_tying,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Name of each of our parameters to its name in `LlamaForCausalLM`."""
    names = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    for i in range(config.n_layers):
        names |= {f"layers.{i}.{a}.weight": f"model.layers.{i}.{b}.weight" for a, b in _BLOCK_NAMES.items()}
    if not config.weight_tying:
        names["output.weight"] = "lm_head.weight"
    return names


def weights_from_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict of a Llama's. Only query and key matrices are copied, the others share their memory.

    A tied head and the frequency buffers that old files hold are passed over. Raises `CheckpointError` that names
    every tensor that is missing, not known, or of another shape.
    """
    names = hf_names(config)
    known = {*names.values(), *(("lm_head.weight",) if config.weight_tying else ())}
    wrong = [f"{name} is missing" for name in names.values() if name not in state]
    wrong += [
        f"{name} is not known" for name in state if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    for name, hf_name in names.items():
        if hf_name in state and tuple(state[hf_name].shape) != (shape := _shape(name, config)):
            wrong.append(f"{hf_name} is {list(state[hf_name].shape)} instead of {list(shape)}")
    if wrong:
        raise CheckpointError(f"{len(wrong)} tensors do not fit the model's configuration: {'; '.join(wrong)}")
    return {name: _permuted(name, state[hf_name], config, to_hf=False) for name, hf_name in names.items()}


def weights_to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of `LlamaForCausalLM`, without `lm_head.weight` where that is tied: inverts `weights_from_hf`."""
    return {hf_name: _permuted(name, state[name], config, to_hf=True) for name, hf_name in hf_names(config).items()}


def _permuted(name: str, weight: Tensor, config: ModelConfig, *, to_hf: bool) -> Tensor:
    """Rows of each head: (pair, part of the pair) here, (part, pair) there. The same for query and key heads."""
    if not name.endswith(("wq.weight", "wk.weight")):
        return weight
    order = (-1, config.head_width // 2, 2) if to_hf else (-1, 2, config.head_width // 2)
    return weight.unflatten(0, order).transpose(1, 2).flatten(0, 2)  # [H d, D]


def _shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    dim, width, inner = config.dim, config.head_width, config.ffn_width
    if name.endswith("norm.weight"):
        return (dim,)
    return {
        "wq": (config.heads * width, dim),
        "wk": (config.kv_heads * width, dim),
        "wv": (config.kv_heads * width, dim),
        "wo": (dim, config.heads * width),
        "w1": (inner, dim),
        "w3": (inner, dim),
        "w2": (dim, inner),
        "tok_embeddings": (config.vocab_size, dim),
        "output": (config.vocab_size, dim),
    }[name.split(".")[-2]]


def _architecture_problems(hf: Mapping[str, Any]) -> Iterator[Problem]:
    model_type, architectures = hf.get("model_type"), hf.get("architectures")
    if model_type not in MODEL_TYPES:
        yield Problem("model_type", f"{model_type!r} is not a Llama ({' or '.join(MODEL_TYPES)})")
    if architectures and not set(architectures) & set(ARCHITECTURES):
        yield Problem("architectures", f"{architectures} is not {' or '.join(ARCHITECTURES)}")
    for key, allowed in _PLAIN.items():
        if hf.get(key) not in allowed:
            yield Problem(
                key,
                f"{hf[key]!r} is not supported; only {' or '.join(str(a) for a in allowed if a is not None) or 'null'}",
            )


def _size_problems(hf: Mapping[str, Any]) -> Iterator[Problem]:
    for key in _SIZES:
        if hf.get(key) is None:
            yield Problem(key, "is missing")
    for key in (*_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        value = hf.get(key)
        if value is not None and (type(value) is not int or value < 1):
            yield Problem(key, f"{value!r} is not a whole number above 0")
    eps, tied = hf.get("rms_norm_eps"), hf.get("tie_word_embeddings")
    if eps is not None and (not isinstance(eps, int | float) or eps < 0):
        yield Problem("rms_norm_eps", f"{eps!r} is not a number of at least 0")
    if not isinstance(tied, bool | None):
        yield Problem("tie_word_embeddings", f"{tied!r} is not true or false")


def _rope_from_hf(hf: Mapping[str, Any]) -> tuple[RopeScaling | None, float]:
    """(scaling, base): of `rope_parameters` (transformers 5), else of `rope_theta` and `rope_scaling` (4)."""
    key = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    rope = hf.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ConfigError([Problem(key, f"{rope!r} is not a mapping")])
    theta = rope.get("rope_theta") or hf.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    problems = []
    if rope.get("partial_rotary_factor") not in (None, 1):
        problems.append(Problem(f"{key}.partial_rotary_factor", f"{rope['partial_rotary_factor']!r} is not supported"))
    if not isinstance(theta, int | float) or isinstance(theta, bool) or theta <= 0:
        problems.append(Problem("rope_theta", f"{theta!r} is not a number above 0"))
    if kind not in ("default", "linear", "llama3"):
        # A model with rotary embeddings by layer has its mappings one level deeper, and no type here.
        problems.append(Problem(f"{key}.rope_type", f"{kind!r} is not supported; only default, linear, llama3"))
    if any(isinstance(value, Mapping) for value in rope.values()):
        problems.append(Problem(key, "differs between layers, which is not supported"))
    wanted = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(str(kind), ())
    for name in wanted:
        if not isinstance(rope.get(name), int | float):
            problems.append(Problem(f"{key}.{name}", f"{rope.get(name)!r} is not a number; {kind} needs it"))
    if problems:
        raise ConfigError(problems)
    if kind == "default":
        return None, float(theta)
    numbers: dict[str, Any] = {name: float(rope[name]) for name in wanted}
    if kind == "llama3":
        original = rope.get("original_max_position_embeddings") or hf.get("max_position_embeddings") or 2048
        numbers["original_max_seqlen"] = int(original)
    return RopeScaling(type=kind, **numbers), float(theta)  # type: ignore[arg-type]
