"""The processes that collect together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

from topklm.errors import TopklmError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a job; by default the only one."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this rank's model and tables are."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all ranks once it is made. What it raises is raised on all."""
        made: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                made = make()
            except Exception as error:
                failure = error
        if self.size > 1:
            told = failure if failure is None or isinstance(failure, TopklmError) else TopklmError(str(failure))
            box = [(made, told)]
            dist.broadcast_object_list(box, src=0)
            if failure is None:
                made, failure = box[0]
        if failure is not None:
            raise failure
        return made  # type: ignore[return-value]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()
