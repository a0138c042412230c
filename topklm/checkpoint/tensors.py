"""Files of tensors that torch pickled: read without running anything that they name."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from topklm.errors import CheckpointError

_NAMED = re.compile(r"GLOBAL (\S+)")
_BY_NAME = re.compile(r"WeightsUnpickler error: .*?([\w.]+\.\w+)")


def read_tensors(file: Path, what: str) -> Any:
    """What `torch.save` wrote, mapped into memory; tensors, numbers, texts and containers of them, nothing else.

    `what` it should be, for the message. Raises `CheckpointError`.
    """
    try:
        return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own words advise to load it with weights_only=False.
        if named := _NAMED.search(str(error)) or _BY_NAME.search(str(error)):
            raise CheckpointError(
                f"{file} cannot be read as {what}: it names {named[1]}, which is no tensor; nothing in it was run. "
                "Take a file that holds tensors only, best as safetensors"
            ) from error
        raise CheckpointError(f"{file} cannot be read as {what}: {_first_line(error)}; copy it again") from error
    except (RuntimeError, EOFError, ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as {what}: {_first_line(error)}; copy it again") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
