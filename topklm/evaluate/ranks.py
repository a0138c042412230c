"""The processes that evaluate together, where one decides for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from topklm.errors import TopklmError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a job."""

    rank: int
    size: int
    device: torch.device
    """Where this rank's model is."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T | None:
        """What rank 0 makes, there; None on the others. What it raises is raised on all."""
        made: T | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                made = make()
            except Exception as error:
                failure = error
        told = self.tell(failure if isinstance(failure, TopklmError) else failure and TopklmError(str(failure)))
        if failure is not None:
            raise failure
        if told is not None:
            raise told
        return made

    def agree(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all ranks."""
        return self.tell(self.first(make))  # type: ignore[return-value]

    def tell(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]
