"""One file of a model's weights, in Meta Lingua's form: `consolidated.pth` beside `params.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topklm.checkpoint import load_model
from topklm.checkpoint.integrity import write_json
from topklm.checkpoint.store import ACTIVATIONS
from topklm.config import to_dict
from topklm.errors import ConfigError, ParityError, Problem
from topklm.export.directory import export_directory
from topklm.export.source import Source
from topklm.sparsity import activation_tensors, alpha_at


def export_consolidated(source: Source, out: Path | None = None, *, overwrite: bool = False) -> Path:
    """Write `consolidated.pth` ({"model": fp32 state dict, "step": int or None}), `params.json`, `tokenizer/` to `out`.

    `out` null: `consolidated/` in the checkpoint directory, as Lingua does. What was written is loaded again and
    compared bit for bit. Returns the .pth file, which `load_model` takes. Raises `ConfigError`, `ParityError`.
    """
    place = source.config.path
    if out is None and not place.is_dir():
        raise ConfigError([Problem("out", f"{place} is a file already; give a directory")])
    topk = told_topk(source)
    run = source.config.run
    params = {"model": to_dict(source.config.model)} if "huggingface" in run else run
    out = place / "consolidated" if out is None else out
    with export_directory(out, place, source.facts("consolidated"), overwrite=overwrite) as part:
        state = activation_tensors(source.model)
        write_consolidated(source.model.state_dict(), source.config.step, {**params, "topk": topk}, part, state)
        if source.tokenizer is not None:
            source.tokenizer.save(part / "tokenizer")
        check_reloads(source, part / "consolidated.pth")
    return out / "consolidated.pth"


def write_consolidated(
    weights: dict[str, Tensor],
    step: int | None,
    params: dict[str, Any],
    directory: Path,
    activations: dict[str, Tensor] | None = None,
) -> None:
    """Write `consolidated.pth` and `params.json` into `directory`; `activations`: thresholds and norms, if any."""
    directory.mkdir(exist_ok=True)
    content: dict[str, Any] = {"model": weights, "step": step}
    if activations:
        content[ACTIVATIONS] = {name: tensor.detach() for name, tensor in activations.items()}
    torch.save(content, directory / "consolidated.pth")
    write_json(directory / "params.json", params)


def told_topk(source: Source) -> dict[str, Any] | None:
    """The section `topk` from which `load_model`, with the step, finds the model's alpha again; None for a dense one.

    Raises `ConfigError` for an alpha above 0 that does not follow from step and annealing steps: it has no key.
    """
    config = source.config
    if config.topk is None or config.alpha is None:
        return None
    steps = config.topk.anneal_steps
    if config.step is not None and steps is not None and alpha_at(config.step, steps) == config.alpha:
        return to_dict(config.topk)
    if config.alpha > 0:
        raise ConfigError(
            f"the model runs with alpha = {config.alpha:g}, which is not that of its step, and a checkpoint in "
            "Lingua's form has no other place for it; export it with alpha=0 (pure TopK) or as to=hf"
        )
    return to_dict(dataclasses.replace(config.topk, anneal_steps=0))


def check_reloads(source: Source, path: Path) -> None:
    """Load what was written to `path` and compare. Raises `ParityError` unless it is the same model bit for bit."""
    model, _, config = load_model(path)
    wrong = [
        name for name, weight in source.model.state_dict().items() if not torch.equal(weight, model.state_dict()[name])
    ]
    own, read = activation_tensors(source.model), activation_tensors(model)
    wrong += [name for name in own.keys() | read.keys() if not (name in own and name in read)]
    wrong += [name for name in own.keys() & read.keys() if not torch.equal(own[name], read[name])]
    wrong += [name for name in ("alpha", "step") if getattr(config, name) != getattr(source.config, name)]
    for name in ("k", "k_per_layer", "n_dense_tail", "activation", "anneal_form", "schedule", "options"):
        if getattr(config.topk, name, None) != (getattr(source.config.topk, name) if source.is_sparse else None):
            wrong.append(f"topk.{name}")
    if wrong:
        raise ParityError(f"{path} was written and reads back as another model: {', '.join(wrong)} differ")
