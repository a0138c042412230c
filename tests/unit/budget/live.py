"""Bytes of all tensors that are alive, now and at most: counted at each operation, freed with the storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside `with`, of tensors that are made there and of those given at the start."""

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}
        for tensor in given:
            self.see(tensor)

    def __enter__(self) -> LiveBytes:
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: Any, size: int) -> Any:  # FSDP2 frees and fills gathered weights so, without an operation
            result = self._resize(storage, size)
            self._count(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*args)

    def see(self, tensor: Tensor) -> None:
        self._count((tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage())

    def size(self, tensor: Tensor) -> int:
        """Bytes of a tensor, of a sharded one those of this rank."""
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        return local.numel() * local.element_size()

    def take_peak(self) -> int:
        """The most so far, from now on counted anew."""
        peak, self.peak = self.peak, self.now
        return peak

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            weakref.finalize(storage, self._gone, key)
        self.now += size - self._known.get(key, 0)
        self._known[key] = size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return out
