"""The processes that do one job together, where the first decides for all."""

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
        made, failure = self._try(make)
        made, told = self._tell((made, failure and _portable(failure)))
        if (error := failure or told) is not None:
            raise error
        return made  # type: ignore[return-value]

    def only_first(self, make: Callable[[], T]) -> T | None:
        """What rank 0 makes, there, for what cannot travel; None on the others. What it raises is raised on all."""
        made, failure = self._try(make)
        told = self._tell(failure and _portable(failure))
        if (error := failure or told) is not None:
            raise error
        return made

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def _try(self, make: Callable[[], T]) -> tuple[T | None, Exception | None]:
        if not self.is_first:
            return None, None
        try:
            return make(), None
        except Exception as error:
            return None, error

    def _tell(self, value: T) -> T:
        """Rank 0's value, on all ranks."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def _portable(error: Exception) -> TopklmError:
    """An error that another process can raise too."""
    return error if isinstance(error, TopklmError) else TopklmError(str(error))
