"""The model that is read: loaded from a checkpoint, or initialised as its control."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from topklm.bundles import ModelSource
from topklm.checkpoint import list_checkpoints, load_model
from topklm.checkpoint.load import LoadedConfig, stored_tokenizers
from topklm.errors import CheckpointError, ConfigError, DataError, Problem
from topklm.interp.statistics.collect_config import CollectConfig
from topklm.model import Transformer, build_model
from topklm.sparsity import alpha_at, set_alpha

log = logging.getLogger("topklm.interp")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class Subject:
    """A model and where it comes from."""

    model: Transformer
    loaded: LoadedConfig
    source: ModelSource

    def check_tokenizer(self, sha256: str) -> None:
        """Raise `DataError` if the corpus was not made with this model's tokenizer; warn if it has none."""
        known = [tokenizer.sha256 for tokenizer in stored_tokenizers(self.loaded.path)]
        if not known:
            log.warning("%s has no tokenizer; that the corpus has the right one is not checked", self.loaded.path)
        elif sha256 not in known:
            raise DataError(
                f"the corpus was prepared with tokenizer {sha256[:12]}, {self.loaded.path} has "
                f"{', '.join(known_one[:12] for known_one in known)}; prepare the data with the model's tokenizer"
            )

    def tokens(self) -> list[str] | None:
        """Each of the V token types as readable text; None without a tokenizer."""
        for tokenizer in stored_tokenizers(self.loaded.path):
            known = min(tokenizer.vocab_size, self.source.vocab_size)  # an embedding may be padded
            return [tokenizer.piece(i) for i in range(known)] + [""] * (self.source.vocab_size - known)
        return None


def checkpoints_of(config: CollectConfig) -> list[Path]:
    """The checkpoints that a configuration names, oldest first. Raises `ConfigError`, `CheckpointError`."""
    path = Path(config.ckpt)
    if not config.several:
        return [path]
    directory = path / "checkpoints"
    found = {int(checkpoint.name): checkpoint for checkpoint in list_checkpoints(directory)}
    if not found:
        raise CheckpointError(f"{directory} holds no checkpoints; ckpts is for a run's directory")
    if isinstance(config.ckpts, str):
        return list(found.values())
    if absent := [step for step in config.ckpts if step not in found]:
        there = ", ".join(map(str, found))
        raise ConfigError([Problem("ckpts", f"{', '.join(map(str, absent))}: not in {directory}, which has {there}")])
    return [found[step] for step in sorted(set(config.ckpts))]


def load_subject(path: Path, config: CollectConfig, device: torch.device) -> Subject:
    """Load one checkpoint as configured; with `init: random` the same model with its initial weights."""
    dtype = DTYPES[config.dtype]
    random = config.init == "random"
    model, _, loaded = load_model(path, "cpu" if random else device, dtype, config.alpha)
    if random:
        model = build_model(loaded.model, loaded.topk, "cpu")
        if loaded.alpha is not None:
            set_alpha(model, loaded.alpha)
        model = model.to(device=device, dtype=dtype).eval()
        loaded = dataclasses.replace(loaded, step=0, sha256=None)
    source = ModelSource(
        run=str(loaded.run.get("name") or _run_directory(loaded.path).name),
        path=str(loaded.path),
        sha256=loaded.sha256,
        step=loaded.step,
        init=config.init,
        alpha=loaded.alpha,
        dtype=str(dtype).removeprefix("torch."),
        dim=loaded.model.dim,
        n_layers=loaded.model.n_layers,
        vocab_size=loaded.model.vocab_size,
        model=dataclasses.asdict(loaded.model),
        topk=None if loaded.topk is None else dataclasses.asdict(loaded.topk),
    )
    return Subject(model, loaded, source)


def bundle_path(config: CollectConfig, loaded: LoadedConfig) -> Path:
    """Where the bundle goes: bundles/STEP of the run, with what differs from a plain reading appended."""
    if config.out is not None and not config.several:
        return Path(config.out)
    cut = config.read_topk
    different = [
        "init" if config.init == "random" else "",
        f"alpha{config.alpha:g}" if config.alpha is not None and config.alpha != _own_alpha(loaded) else "",
        config.site if config.site != "post" else "",
        f"read_topk{cut.k}{'' if cut.relu else '_signed'}{f'_tail{cut.n_dense_tail}' * bool(cut.n_dense_tail)}"
        if cut
        else "",
        config.dtype if config.dtype != "fp32" else "",
        config.split if config.split != "val" else "",
    ]
    name = "-".join(["model" if loaded.step is None else f"{loaded.step:010d}", *filter(None, different)])
    directory = Path(config.out) if config.out is not None else _run_directory(loaded.path) / "bundles"
    return directory / name


def _own_alpha(loaded: LoadedConfig) -> float | None:
    """What the schedule has at the checkpoint's step; None if that is not known."""
    if loaded.topk is None or loaded.topk.anneal_steps is None or loaded.step is None:
        return None
    return alpha_at(loaded.step, loaded.topk.anneal_steps)


def _run_directory(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to; the directory of a model or of a file that belongs to none."""
    for directory in list(checkpoint.parents)[:3]:  # checkpoints/STEP/consolidated/consolidated.pth
        if directory.name == "checkpoints":
            return directory.parent
    return checkpoint if checkpoint.is_dir() else checkpoint.parent
