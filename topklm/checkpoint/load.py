"""`load_model`: from a run, a checkpoint or a consolidated file to a model that computes what it did in training."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from topklm.checkpoint import dcp
from topklm.checkpoint.huggingface import (
    find_huggingface,
    hf_sha256,
    hf_tokenizers,
    read_hf,
    read_hf_activations,
    read_hf_weights,
)
from topklm.checkpoint.integrity import FILES, checkpoint_hash, defects, read_object
from topklm.checkpoint.lingua import TRAIN_STATE, lingua_tokenizer, newest_of_lingua
from topklm.checkpoint.store import ACTIVATIONS, list_checkpoints, newest_good
from topklm.checkpoint.tensors import read_tensors
from topklm.config import build
from topklm.data import Tokenizer, open_saved_tokenizer
from topklm.errors import CheckpointError, ConfigError
from topklm.model import ModelConfig, Transformer, build_model
from topklm.sparsity import TopKConfig, activation_tensors, alpha_at, get_alpha, set_alpha

log = logging.getLogger("topklm.checkpoint")
CONSOLIDATED = Path("consolidated") / "consolidated.pth"


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """What a loaded model is, and where it comes from."""

    model: ModelConfig
    """Sizes of the transformer."""
    topk: TopKConfig | None
    """The activation; None for a dense model."""
    alpha: float | None
    """The alpha that the model runs with: 1 dense ... 0 TopK; None for a dense model."""
    step: int | None
    """Optimizer steps that the weights have seen; None if the file does not tell."""
    path: Path
    """The checkpoint directory or file that was read."""
    sha256: str | None
    """Hash of the checkpoint's contents (provenance); None for a file without `files.json`."""
    run: dict[str, Any]
    """The whole configuration of the run, as in params.json; of a Hugging Face model {"huggingface": config.json}."""


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    alpha: float | None = None,
) -> tuple[Transformer, Tokenizer | None, LoadedConfig]:
    """Load a model for evaluation, generation or analysis.

    `path`: a run's dump_dir (its newest good checkpoint), a checkpoint directory, a consolidated .pth file (with
    `params.json` beside it or one directory above), all of ours or Meta Lingua's; a directory of a Hugging Face Llama,
    or a GGUF file of one. A model that was trained with Lingua's blocks is loaded as the native one.
    `alpha`: None takes the checkpoint's own, from its step. Weights become `dtype` whatever they are stored in.
    Returns (model in eval mode, tokenizer or None where none is stored, LoadedConfig). Raises `CheckpointError`.
    """
    checkpoint = resolve(Path(path))
    config, topk, run = read_description(checkpoint)
    model = build_model(config, topk, "meta").to_empty(device="cpu")
    weights, step = read_weights(checkpoint, model)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint} does not fit its own params.json: {error}") from error
    read_activations(checkpoint, model)
    own_alpha = _own_alpha(checkpoint, topk, step, run) if get_alpha(model) is not None else None
    if own_alpha is not None:
        set_alpha(model, own_alpha if alpha is None else alpha)
    elif alpha is not None:
        raise ConfigError(f"{checkpoint} is a dense model; it has no alpha to set to {alpha}; leave alpha out")
    loaded = LoadedConfig(
        model=config,
        topk=topk,
        alpha=get_alpha(model),
        step=step,
        path=checkpoint,
        sha256=content_hash(checkpoint),
        run=run,
    )
    return model.to(device=device, dtype=dtype).eval(), next(iter(stored_tokenizers(checkpoint)), None), loaded


def read_description(checkpoint: Path) -> tuple[ModelConfig, TopKConfig | None, dict[str, Any]]:
    """(sizes, activation, whole configuration) of what `resolve` gave; no weights. Raises `CheckpointError`."""
    if find_huggingface(checkpoint):
        hf = read_hf(checkpoint)
        return hf.model, hf.topk, {"huggingface": hf.raw}
    run = read_object(_beside(checkpoint, "params.json"), "copy it again")
    try:
        config = dataclasses.replace(build(ModelConfig, run.get("model") or {}), backend="native")
        topk = build(TopKConfig, run["topk"]) if run.get("topk") else None
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint}: params.json describes no model of this project: {error}") from error
    if config.vocab_size == -1:
        raise CheckpointError(
            f"{checkpoint}: params.json leaves model.vocab_size open; write the rows of tok_embeddings.weight there"
        )
    return config, topk, run


def stored_tokenizers(checkpoint: Path) -> list[Tokenizer]:
    """The tokenizers that `checkpoint` brings, the one to use first; a Hugging Face directory may hold two kinds."""
    if find_huggingface(checkpoint):
        return hf_tokenizers(checkpoint)
    try:
        return [open_saved_tokenizer(_beside(checkpoint, "tokenizer"))]
    except CheckpointError:
        config, _, run = read_description(checkpoint)
        named = lingua_tokenizer(run, config.vocab_size)
        return [] if named is None else [named]


def content_hash(checkpoint: Path) -> str | None:
    """SHA-256 of what `resolve` gave, for provenance; None for a file without `files.json`."""
    if find_huggingface(checkpoint):
        return hf_sha256(checkpoint)
    return checkpoint_hash(checkpoint) if (checkpoint / FILES).exists() else None


def resolve(path: Path) -> Path:
    """The checkpoint directory or consolidated file that `path` stands for. Raises `CheckpointError`."""
    if path.is_file():
        return path
    if (path / ".metadata").exists():
        return path
    for directory in (path / "checkpoints", path):
        newest = newest_of_lingua(list_checkpoints(directory)) or newest_good(directory)
        if newest is not None:
            return newest
    for file in (path / CONSOLIDATED, path / CONSOLIDATED.name):
        if file.is_file():
            return file
    if (found := find_huggingface(path)) is not None:
        return found
    raise CheckpointError(
        f"{path} is no run (checkpoints/), no checkpoint directory (.metadata), no consolidated file, and no model of "
        "Hugging Face (config.json or .gguf); "
        + ("give one of these" if path.exists() else "it does not exist, correct the path")
    )


def read_weights(checkpoint: Path, like: Transformer) -> tuple[dict[str, Tensor], int | None]:
    """(full state dict on the CPU, step if known) of what `resolve` gave.

    `like` tells names and shapes; its own values are not touched. Any of Lingua's forms is read:
    `{"model": ...}` or a bare state dict. fp32, but the weights of a Hugging Face model are as they are stored.
    """
    if find_huggingface(checkpoint):
        return read_hf_weights(checkpoint, like.config), None
    if checkpoint.is_file():
        weights, step = _read_file(checkpoint)
        if "output.tied_module.weight" not in like.state_dict():
            weights.pop("output.tied_module.weight", None)  # Lingua repeats a tied embedding
        return weights, step
    if (checkpoint / FILES).exists() and (wrong := defects(checkpoint)):
        raise CheckpointError(f"{checkpoint} is broken: {'; '.join(wrong)}; restore it, or take another")
    weights = {name: torch.empty(t.shape, dtype=torch.float32) for name, t in like.state_dict().items()}
    dcp.load_weights(weights, checkpoint)
    return weights, _stored_step(checkpoint)


def check_weights(checkpoint: Path, config: ModelConfig) -> None:
    """Raise `CheckpointError` unless what `resolve` gave has the names and shapes of a model of these sizes.

    Of a checkpoint directory only the metadata are read, other forms whole.
    """
    like = build_model(config, None, "meta").state_dict()
    if checkpoint.is_dir() and not find_huggingface(checkpoint):
        dcp.check_weights(
            like, dcp.stored_shapes(checkpoint, "model.") or dcp.stored_shapes(checkpoint, ""), checkpoint
        )
        return
    weights, _ = read_weights(checkpoint, build_model(config, None, "meta"))
    dcp.check_weights(like, {name: tuple(tensor.shape) for name, tensor in weights.items()}, checkpoint)


def read_activations(checkpoint: Path, model: torch.nn.Module, *, required: bool = True) -> None:
    """Fill thresholds and norms of the model's activations in place from what `resolve` gave.

    They stand beside the weights, under `activation`, because a dense model has no place for them. Those of another
    activation, or for a model without, are passed over and told. Raises `CheckpointError` if they are missing, unless
    they are not `required`: then the model's own stay, which is told too.
    """
    wanted = activation_tensors(model)
    stored, has_some = _stored_activations(checkpoint, wanted)
    if not wanted:
        if has_some:
            log.info("%s holds thresholds or norms of activations, which this model does not have: unused", checkpoint)
        return
    wrong = [name for name, t in wanted.items() if name not in stored or stored[name].shape != t.shape]
    if wrong and required:
        raise CheckpointError(
            f"{checkpoint} lacks the state of its activations ({', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)}), or "
            "has it in another shape: it was written by a program that knows the weights only, such as save_pretrained "
            "of a live object; take the run's own checkpoint, or an export of python -m apps.export"
        )
    if wrong:
        log.info("%s holds no state for these activations; they begin anew", checkpoint)
        return
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


def _stored_activations(checkpoint: Path, wanted: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """(those of `wanted` that are there, whether there are any at all)."""
    if find_huggingface(checkpoint):
        found = read_hf_activations(checkpoint)
        return found, bool(found)
    if checkpoint.is_file():
        content = read_tensors(checkpoint, "a consolidated checkpoint")
        found = (content.get(ACTIVATIONS) if isinstance(content, dict) else None) or {}
        return {name: t for name, t in found.items() if isinstance(t, Tensor)}, bool(found)
    shapes = dcp.stored_shapes(checkpoint, f"{ACTIVATIONS}.")
    tensors = {name: torch.empty_like(t) for name, t in wanted.items() if shapes.get(name) == tuple(t.shape)}
    dcp.load_beside(tensors, checkpoint, ACTIVATIONS)
    return tensors, bool(shapes)


def _read_file(file: Path) -> tuple[dict[str, Tensor], int | None]:
    content = read_tensors(file, "a consolidated checkpoint")
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise CheckpointError(
            f"{file} holds no state dict; give a file of named tensors, as torch.save(model.state_dict()) writes"
        )
    step = content.get("step") if weights is not content else None
    return {name: t.float() for name, t in weights.items()}, _stored_step(file) if step is None else step


def _stored_step(checkpoint: Path) -> int | None:
    """What rank 0's train state says, which lies above a file that Lingua consolidated."""
    try:
        return read_object(_beside(checkpoint, TRAIN_STATE), "copy it again").get("step")
    except CheckpointError:
        return None


def load_weights(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    """Copy a full state dict, held by every rank, into a model that may be sharded. Raises `CheckpointError`."""
    try:
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"the weights do not fit this model: {error}") from error


def _own_alpha(checkpoint: Path, topk: TopKConfig | None, step: int | None, run: dict[str, Any]) -> float:
    if "huggingface" in run:
        return float(run["huggingface"]["topk"]["alpha"])
    if topk is None or topk.anneal_steps == 0 or (topk.anneal_steps is None and topk.anneal_ratio == 0):
        return 0.0
    if step is None or topk.anneal_steps is None:
        log.warning("%s does not tell its step or annealing steps; running with alpha = 0 (pure TopK)", checkpoint)
        return 0.0
    return alpha_at(step, topk.anneal_steps)


def _beside(checkpoint: Path, name: str) -> Path:
    places = [checkpoint / name] if checkpoint.is_dir() else [p / name for p in list(checkpoint.parents)[:2]]
    for place in places:
        if place.exists():
            return place
    there = " or ".join(str(place.parent) for place in places)
    raise CheckpointError(
        f"{checkpoint}: there is no {name} in {there}; copy it there from where the model was trained"
    )
