"""torch.distributed.checkpoint, with or without a process group."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from topklm.checkpoint.trusted import Planner, Reader, read_metadata
from topklm.errors import CheckpointError, StorageError


def save(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> None:
    """Write a state dict to `path`; every rank of `group` calls it, or a single process with None.

    Raises `StorageError` on all ranks if one cannot write.
    """
    with _quiet(), _failures_told():
        dcp.save(state, storage_writer=_Writer(path), process_group=group, no_dist=group is None)


def async_save(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> Callable[[], None]:
    """As `save`, in the background once the state is copied; what is returned waits for it and raises what `save`
    does. `group` must not be used by anything else."""
    with _quiet():
        future: Any = dcp.async_save(state, storage_writer=_Writer(path), process_group=group, no_dist=group is None)

    def wait() -> None:
        with _failures_told():
            future.result()

    return wait


def load(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None = None) -> None:
    """Fill the tensors of `state` in place from `path`, written by any number of ranks.

    Raises `CheckpointError` if names or shapes of `state["model"]` are not those of the checkpoint.
    """
    check_weights(state["model"], stored_shapes(path, "model."), path)
    _load(state, path, group)


def load_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Fill a model's `weights` in place from `path`, whose keys are `model.<parameter>` or bare (`<parameter>`).

    Raises `CheckpointError` as `load` does.
    """
    bare = stored_shapes(path, "")
    if weights.keys() & bare.keys():
        check_weights(weights, bare, path)
        _load(weights, path, None)
    else:
        load({"model": weights}, path)


def load_beside(tensors: dict[str, torch.Tensor], path: Path, key: str) -> None:
    """Fill `tensors`, which stand under `key` beside the model, in place. Raises `CheckpointError`."""
    if tensors:
        _load({key: tensors}, path, None)


def _load(state: dict[str, Any], path: Path, group: dist.ProcessGroup | None) -> None:
    try:
        with _quiet():
            dcp.load(state, storage_reader=Reader(path), planner=Planner(), process_group=group, no_dist=group is None)
    except dcp.CheckpointException as error:
        raise CheckpointError(f"{path} cannot be loaded: {_reasons(error)}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this model: {error}") from error


def stored_shapes(path: Path, prefix: str) -> dict[str, tuple[Any, ...]]:
    """Name without `prefix` and shape of everything in a checkpoint whose key begins with it."""
    found = read_metadata(path).state_dict_metadata.items()
    # By type: bytes may have a forged size.
    return {
        key.removeprefix(prefix): tuple(v.size) if type(v) is TensorStorageMetadata else ("no tensor",)
        for key, v in found
        if key.startswith(prefix)
    }


def check_weights(weights: dict[str, torch.Tensor], shapes: dict[str, tuple[Any, ...]], path: Path) -> None:
    """Loading takes what it is asked for: a shallower model would get a part of a deeper one without a word."""
    wanted = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if "output.tied_module.weight" not in wanted:
        shapes = {name: shape for name, shape in shapes.items() if name != "output.tied_module.weight"}
    differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if differ:
        shown = "; ".join(
            f"{name}: {shapes.get(name, 'not')} in the checkpoint, {wanted.get(name, 'not')} in the model"
            for name in differ[:4]
        )
        raise CheckpointError(f"{path} does not fit this model, {len(differ)} parameters differ: {shown}")


class _Writer(dcp.FileSystemWriter):
    """Tells why a file could not be written: of a full disk torch says "unexpected pos 704 vs 598"."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            beneath: BaseException | None = error
            while beneath is not None and not isinstance(beneath, OSError):
                beneath = beneath.__cause__ or beneath.__context__
            raise (beneath or error) from None


@contextmanager
def _failures_told() -> Iterator[None]:
    """What torch raises on all ranks when one fails, without its tracebacks."""
    try:
        yield
    except dcp.CheckpointException as error:
        of_files = all(isinstance(failure, OSError) for failure, _ in error.failures.values())
        raise (StorageError if of_files else CheckpointError)(_reasons(error)) from error


def _reasons(error: dcp.CheckpointException) -> str:
    return "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in sorted(error.failures.items())[:4])


@contextmanager
def _quiet() -> Iterator[None]:
    """A single process goes without a process group on purpose; torch warns of it each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield
