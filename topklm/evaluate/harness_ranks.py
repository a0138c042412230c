"""Ranks that share requests: rank 0 has all of them, every rank answers its part, rank 0 gets the answers.

Only rank 0 runs lm-evaluation-harness. The others wait for work: they need neither its data sets nor its package, and
whatever the number of requests is, no rank waits for one that never comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from topklm.errors import TopklmError

log = logging.getLogger("topklm.evaluate")

Work = Callable[[Sequence[Any], Any, Callable[[int], None] | None], list[Any]]
"""(requests, settings, progress) -> one answer per request."""

PATIENCE = timedelta(hours=24)
"""How long a rank waits for work: rank 0 may be loading data sets or computing standard errors. If it has died,
torchrun ends the others."""


class Crew:
    """All ranks of a job. Every rank makes one, with work of the same names; then rank 0 calls `share` any number of
    times and `dismiss` once, while the others are in `serve`.
    """

    def __init__(self, work: dict[str, Work], rank: int = 0, world_size: int = 1):
        self.work, self.rank, self.world_size = work, rank, world_size
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size > 1 else None

    def share(
        self, name: str, requests: Sequence[Any], settings: Any = None, advance: Callable[[int], None] | None = None
    ) -> list[Any]:
        """On rank 0: the answers to `requests`, in their order, by the work `name` on all ranks.

        Rank r takes requests r, r + world_size, ..., so neighbours should cost about the same. `advance` is told how
        many more are done, from this rank's progress. What a rank raises is raised here, and no rank is left waiting.
        """
        if self._group is None:
            return self.work[name](requests, settings, advance)
        self._broadcast((name, list(requests), settings))
        # The others are about as far as this one, and never tell.
        told = None if advance is None else lambda done: advance(done * self.world_size)
        answers: list[Any] = [None] * len(requests)
        for rank, part in enumerate(self._answer(name, requests, settings, told)):
            answers[rank :: self.world_size] = part
        return answers

    def serve(self) -> None:
        """On the other ranks: answer until rank 0 dismisses."""
        while (order := self._broadcast(None)) is not None:
            name, requests, settings = order
            self._answer(name, requests, settings, None)
        self._close()

    def dismiss(self) -> None:
        """On rank 0: there is no more work."""
        if self._group is not None:
            self._broadcast(None)
            self._close()

    def _close(self) -> None:
        dist.barrier(self._group)  # no rank hangs up before the last word has arrived
        dist.destroy_process_group(self._group)

    def _broadcast(self, order: Any) -> Any:
        box = [order]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _answer(
        self, name: str, requests: Sequence[Any], settings: Any, advance: Callable[[int], None] | None
    ) -> list[list[Any]]:
        """Do this rank's part. On rank 0: the parts of all ranks."""
        failure: Exception | None = None
        part: list[Any] | str
        try:
            part = self.work[name](requests[self.rank :: self.world_size], settings, advance)
        except Exception as error:
            log.exception("rank %d could not answer its part of the requests (%s)", self.rank, name)
            failure, part = error, f"{type(error).__name__}: {error}"
        parts: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(part, parts, dst=0, group=self._group)
        if parts is None:
            return []
        if failure is not None:
            raise failure
        for rank, found in enumerate(parts):
            if isinstance(found, str):
                raise TopklmError(f"rank {rank} could not answer its part of the requests: {found}")
        return parts
