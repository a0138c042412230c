"""torch.distributed.checkpoint, with or without a process group."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from topklm.errors import CheckpointError


def save(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> None:
    """Write a state dict to `path`; every rank of `group` calls it, or a single process with None."""
    with _quiet():
        dcp.save(state, checkpoint_id=path, process_group=group, no_dist=group is None)


def async_save(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> Any:
    """As `save`, in the background once the state is copied: a future. `group` must not be used by anything else."""
    with _quiet():
        return dcp.async_save(state, checkpoint_id=path, process_group=group, no_dist=group is None)


def load(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None = None) -> None:
    """Fill the tensors of `state` in place from `path`, written by any number of ranks.

    Raises `CheckpointError` if names or shapes of `state["model"]` are not those of the checkpoint.
    """
    _check_weights(state["model"], path)
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=path, process_group=group, no_dist=group is None)
    except (RuntimeError, ValueError, KeyError, dcp.CheckpointException) as error:
        raise CheckpointError(f"{path} does not fit this model: {error}") from error


def _check_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Loading takes what it is asked for: a shallower model would get a part of a deeper one without a word."""
    try:
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"the metadata of {path} cannot be read: {error}") from error
    shapes = {
        k.removeprefix("model."): tuple(getattr(v, "size", ())) for k, v in stored.items() if k.startswith("model.")
    }
    shapes.pop("output.tied_module.weight", None)  # Lingua repeats a tied embedding
    wanted = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if differ:
        shown = "; ".join(
            f"{name}: {shapes.get(name, 'not')} in the checkpoint, {wanted.get(name, 'not')} in the model"
            for name in differ[:4]
        )
        raise CheckpointError(f"{path} does not fit this model, {len(differ)} parameters differ: {shown}")


@contextmanager
def _quiet() -> Iterator[None]:
    """A single process goes without a process group on purpose; torch warns of it each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield
