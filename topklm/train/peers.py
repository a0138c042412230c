"""What a rank says when another one is gone: torch tells it as an error of sockets or of a collective's timeout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from topklm.checkpoint import list_checkpoints
from topklm.errors import PeerError, TopklmError

_LOST = re.compile(
    # gloo: a process that ended, one that does not answer
    r"connection (closed|reset) by peer|broken pipe|timed out waiting \d+ ?ms|application timeout|connect timeout|"
    # NCCL: the same two
    r"remote process exited|ncclRemoteError|collective operation timeout",
    re.IGNORECASE,
)
_WHERE = re.compile(r"^\[[^\]]*\]\s*")
"""File and line of torch's source, before its message."""


def lost_peer(error: BaseException) -> str | None:
    """The line in which torch says that another rank is gone or does not answer; None if `error` is something else.

    Looks at what led to `error` too, but not beyond an error of our own: whoever fails by itself loses its peers
    afterwards.
    """
    told = None
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, RuntimeError) and _tells(at):
            told = _WHERE.sub("", str(at).splitlines()[0])
        elif told is not None and isinstance(at, TopklmError):
            return None
        at = at.__cause__ or at.__context__
    return told


@contextmanager
def naming_lost_peers(checkpoints: Path, world_size: int) -> Iterator[None]:
    """Raise a `PeerError` that says how to go on, instead of what torch raises when another rank is lost."""
    try:
        yield
    except Exception as error:
        told = lost_peer(error) if world_size > 1 else None
        if told is None:
            raise
        found = list_checkpoints(checkpoints)
        again = f"resumes from step {int(found[-1].name)}" if found else "begins again, nothing was saved yet"
        raise PeerError(
            f"lost connection to another rank ({told}): its own log says why; the same command {again}"
        ) from error


def _tells(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistNetworkError | dist.DistStoreError) or bool(_LOST.search(str(error)))
