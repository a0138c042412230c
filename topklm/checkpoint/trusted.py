"""Reading torch.distributed.checkpoint without trusting it: torch unpickles its metadata, and all but its tensors.

A stranger's checkpoint must not run code, nor read files outside of its directory. Both hold for every way in, since
`dcp.load` gets the reader and the planner of this module.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from topklm.errors import CheckpointError


def read_metadata(path: Path) -> Metadata:
    """`.metadata` of a checkpoint directory. Raises `CheckpointError` if it is broken, names anything but itself, or
    files that are not in `path` or too short for what it says of them."""
    try:
        with (path / ".metadata").open("rb") as file:
            stored: Metadata = _MetadataUnpickler(file).load()
        places = [(str(info.relative_path), info.offset + info.length) for info in stored.storage_data.values()]
        stored.state_dict_metadata.items()
    except _StrangerError as error:
        raise CheckpointError(
            f"the metadata of {path} cannot be read: they name {error}, which has no place in a checkpoint; nothing in "
            "it was run. Do not use it, or ask who made it for safetensors"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"the metadata of {path} cannot be read: {error}; copy it again") from error
    ends: dict[str, int] = {}
    for name, end in places:
        ends[name] = max(end, ends.get(name, 0))
    wrong = [problem for name, end in sorted(ends.items()) if (problem := _file_problem(path, name, end))]
    if wrong:
        raise CheckpointError(f"{path} cannot be read: {'; '.join(wrong)}; copy it again, or take another")
    return stored


def _file_problem(path: Path, name: str, end: int) -> str | None:
    file = path / name
    if Path(name).name != name or not file.resolve().is_relative_to(path.resolve()):
        return f"{name!r} is not in this directory"
    if not file.is_file():
        return f"{name} is missing"
    if file.stat().st_size < end:
        return f"{name} has {file.stat().st_size} bytes instead of {end}"
    return None


class Reader(FileSystemReader):
    """Torch's reader, with `read_metadata` above."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        stored = read_metadata(Path(self.path))
        if stored.storage_meta is None:
            stored.storage_meta = StorageMeta()
        stored.storage_meta.load_id = self.load_id
        return stored


class Planner(DefaultLoadPlanner):
    """Torch's planner; what is no tensor (numbers of the optimizer's groups) is unpickled with weights_only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            plain = torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            raise CheckpointError(f"{name} holds more than plain values; nothing in it was run") from None
        again = io.BytesIO()
        torch.save(plain, again)  # in the planner's own hands it is unpickled once more
        again.seek(0)
        super().load_bytes(read_item, again)


class _StrangerError(pickle.UnpicklingError):
    """A pickle names what it must not."""


class _MetadataUnpickler(pickle.Unpickler):
    """Reads `.metadata` and nothing else: torch would run whatever code the pickle of a stranger's checkpoint names."""

    allowed: ClassVar[dict[str, tuple[str, ...]]] = {
        "torch": ("Size",),
        "torch.serialization": ("_get_layout",),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.distributed.checkpoint.metadata": (
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        ),
        "pathlib": ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"),
        "collections": ("OrderedDict",),
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in self.allowed.get(module, ()):
            return super().find_class(module, name)
        raise _StrangerError(f"{module}.{name}")
