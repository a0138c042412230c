"""A model as a directory that transformers loads: weights, configurations, code, tokenizer, card, and the parity."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from topklm.errors import ConfigError, Problem
from topklm.export.auto_classes import modeling
from topklm.export.card import model_card
from topklm.export.config import HuggingFaceConfig, ParityConfig
from topklm.export.directory import check_place, export_directory
from topklm.export.parity import Parity, compare
from topklm.export.sides import NativeSide, open_huggingface
from topklm.export.source import Source
from topklm.export.text import comparison_tokens
from topklm.export.tokenizer import check_tokenizer, write_tokenizer
from topklm.model.huggingface import config_to_hf, weights_to_hf
from topklm.optional import require
from topklm.sparsity import activation_tensors

log = logging.getLogger("topklm.export")
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARITY = "parity.json"
CARD = "README.md"


def export_huggingface(
    source: Source,
    out: Path,
    config: HuggingFaceConfig | None = None,
    parity: ParityConfig | None = None,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> Parity:
    """Write `out`, load it with transformers, and compare it with the model.

    A sparse model becomes `TopKLlamaForCausalLM` with its code beside it, a dense one a plain `LlamaForCausalLM`.
    With another dtype than fp32 both sides are compared with the rounded weights. `source.model` is used up: rounded,
    and left in the last precision. Raises `ConfigError` for a place that is taken or a model that transformers has no
    form for, `DataError` if the tokenizer's ids differ, `ParityError` if the models differ; then `out` is as it was.
    """
    config, parity = config or HuggingFaceConfig(), parity or ParityConfig()
    hf_config = huggingface_config(source, config.dtype)
    check_place(out, source.config.path, overwrite=overwrite)
    for package in ("transformers", "safetensors"):
        require(package, "topklm[hf]")
    add_bos = source.adds_bos() if config.add_bos is None else config.add_bos
    facts = source.facts("hf", dtype=config.dtype, add_bos=add_bos)
    tokens, what = comparison_tokens(source, parity.tokens, Path(parity.text) if parity.text else None)
    with export_directory(out, source.config.path, facts, overwrite=overwrite) as part:
        _write_json(part / "config.json", hf_config)
        _write_json(part / "generation_config.json", _generation_config(source))
        if source.is_sparse:
            shutil.copy(modeling().__file__, part)
        _write_weights(source, part, config)
        n_texts = None
        if config.tokenizer and source.tokenizer is not None:
            max_length = source.config.model.max_seqlen
            write_tokenizer(source.tokenizer, part, add_bos=add_bos, max_length=max_length)
            n_texts = check_tokenizer(source.tokenizer, part, source.texts(), add_bos=add_bos)
            log.info("the tokenizer gives the same ids on %d texts", n_texts)
        else:
            log.warning("exported without a tokenizer")
        source.round_to(DTYPES[config.dtype])
        result = compare(
            NativeSide(source.model), open_huggingface(part), tokens, parity, names=(source.name, out.name), text=what,
            progress=progress,
        )  # fmt: skip
        _write_json(part / PARITY, result.to_dict())
        result.demand()
        card = model_card(source, result, facts, license=config.license, title=config.title, n_texts=n_texts)
        (part / CARD).write_text(card, encoding="utf-8")
    if source.config.model.document_mask:
        log.warning("transformers does not know document_mask: give the exported model one document per row")
    return result


def huggingface_config(source: Source, dtype: str = "fp32") -> dict[str, Any]:
    """`config.json`. Raises `ConfigError` for sizes and activations that the exported code does not have."""
    config = config_to_hf(source.config.model)
    if config["rope_scaling"] is None:  # what its absence means too, and transformers 5 warns of it
        del config["rope_scaling"]
    name = str(DTYPES[dtype]).removeprefix("torch.")
    tokenizer = source.tokenizer
    config |= {
        "dtype": name,
        "torch_dtype": name,  # read by transformers before 4.56
        "bos_token_id": tokenizer.bos_id if tokenizer is not None else None,
        "eos_token_id": tokenizer.eos_id if tokenizer is not None else None,
    }
    topk = source.config.topk
    if topk is None or not source.is_sparse:
        return config
    code = modeling()
    if topk.activation not in code.ACTIVATIONS:
        known = ", ".join(code.ACTIVATIONS)
        raise ConfigError(
            [Problem("ckpt", f"its activation {topk.activation!r} has no form for transformers; only {known} has")]
        )
    return config | {
        "model_type": code.TopKLlamaConfig.model_type,
        "architectures": [code.TopKLlamaForCausalLM.__name__],
        "auto_map": code.AUTO_MAP,
        "topk": {**dataclasses.asdict(topk), "alpha": source.config.alpha},
    }


def _generation_config(source: Source) -> dict[str, Any]:
    """BOS, EOS, and what fills up a batch. No max_length: with it transformers warns of every max_new_tokens."""
    tokenizer = source.tokenizer
    if tokenizer is None:
        return {}
    # Padding is told by the attention mask. config.json has no pad_token_id: there it would freeze that embedding.
    pad = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.bos_id
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": pad}
    return {key: value for key, value in ids.items() if value is not None}


def _write_weights(source: Source, directory: Path, config: HuggingFaceConfig) -> None:
    """safetensors, in several files with an index if they are large."""
    hub = require("huggingface_hub", "topklm[hf]")
    save_file = require("safetensors.torch", "topklm[hf]").save_file
    weights = weights_to_hf(source.model.state_dict(), source.config.model)
    dtype = DTYPES[config.dtype]
    weights = {name: weight.to(dtype).contiguous() for name, weight in weights.items()}
    # A rounded threshold would be another one.
    for name, tensor in activation_tensors(source.model).items():
        layer, of_activation = name.removeprefix("layers.").split(".", 1)
        weights[f"model.layers.{layer}.activation.{of_activation}"] = tensor.detach().float().contiguous()
    try:
        split = hub.split_torch_state_dict_into_shards(
            weights, filename_pattern="model{suffix}.safetensors", max_shard_size=config.max_shard_size
        )
    except ValueError as error:
        raise ConfigError([Problem("max_shard_size", f"{config.max_shard_size!r}: {error}")]) from error
    for file, names in split.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, directory / file, metadata={"format": "pt"})
        shutil.copymode(directory / "config.json", directory / file)  # the library leaves it to the owner alone
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(directory / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
