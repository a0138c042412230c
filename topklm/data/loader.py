"""Batches for training: what each rank gets at each step.

The global batch of a step is given by `order`; rank r of `world_size` takes every world_size-th of its sequences,
beginning with the r-th. All ranks run the same number of micro-batches of the same shape: where sequences are
missing, rows of padding without targets stand in. So neither the world size nor the micro-batch size nor
prefetching changes which sequences a step trains on.

Prefetching is a thread, not a process: reading a step is milliseconds of copying from mapped memory, and a thread
cannot outlive the trainer, receives no signals, needs no shared memory and no fork after CUDA is initialised.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from topklm.data.train_data import TrainData
from topklm.errors import DataError

IGNORE = -100
"""The target of a position that is not scored; the default `ignore_index` of torch's cross-entropy."""
_MAX_PREFETCH_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of one rank."""

    tokens: Tensor
    """[b, T] int64; 0 in rows of padding."""
    targets: Tensor
    """[b, T] int64: the token after each position; `IGNORE` in rows of padding."""
    document_ids: Tensor | None = None
    """[b, T] int64: the document of each input token, numbered within its source; for document masking."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; from pinned memory without waiting for the copy."""
        ids = self.document_ids
        return Batch(
            tokens=self.tokens.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            document_ids=None if ids is None else ids.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """The micro-batches of one rank for one optimizer step; iterates over them."""

    step: int
    """Number of the step, from 0."""
    micro_batches: list[Batch]
    """All of the same shape, equally many on every rank."""
    n_targets: int
    """Target tokens of the global batch, over all ranks: what the summed loss is divided by."""

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.micro_batches)


def n_micro_batches(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-batches per step on every rank, if each holds at most `micro_batch_size` sequences."""
    return _ceil(_ceil(global_batch_size, world_size), micro_batch_size)


def micro_batch_rows(global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Rows of every micro-batch: as few as hold the global batch, so that there is little padding."""
    per_rank = _ceil(global_batch_size, world_size)
    return _ceil(per_rank, n_micro_batches(global_batch_size, micro_batch_size, world_size))


class TrainLoader:
    """Iterates endlessly over `StepBatches`, from `start_step` on.

    Parameters: `data`; `global_batch_size` in sequences over all ranks; `micro_batch_size` in sequences per rank;
    `rank` and `world_size` of the data-parallel world; `load_async` reads up to `prefetch_size` steps ahead in a
    thread; `pin_memory` puts batches into page-locked memory (ignored without CUDA); `with_document_ids` adds them.
    Call `close()` at the end. An error while reading is raised by the iteration, at its step.
    """

    def __init__(
        self,
        data: TrainData,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        load_async: bool = True,
        prefetch_size: int = 4,
        pin_memory: bool = False,
        with_document_ids: bool = False,
    ):
        if global_batch_size < 1 or micro_batch_size < 1 or prefetch_size < 1 or start_step < 0:
            raise ValueError("batch sizes and prefetch_size must be at least 1, start_step at least 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}")
        self.data, self.start_step = data, start_step
        self.n_micro_batches = n_micro_batches(global_batch_size, micro_batch_size, world_size)
        rows = micro_batch_rows(global_batch_size, micro_batch_size, world_size)
        self._reader = _Reader(data, global_batch_size, self.n_micro_batches, rows, rank, world_size)
        self._reader.with_document_ids = with_document_ids
        self._reader.pin_memory = pin_memory and torch.cuda.is_available()
        self._load_async = load_async
        self._prefetch_size = min(prefetch_size, max(1, _MAX_PREFETCH_BYTES // self._reader.step_bytes))
        self._prefetcher: _Prefetcher | None = None

    @property
    def fingerprint(self) -> str:
        """Of the data, see `TrainData.fingerprint`."""
        return self.data.fingerprint

    def __iter__(self) -> Iterator[StepBatches]:
        """Begins at `start_step` each time; an earlier iteration ends."""
        self.close()
        if not self._load_async:
            return (self._reader.read(step) for step in count(self.start_step))
        self._prefetcher = _Prefetcher(self._reader.fork().read, self.start_step, self._prefetch_size)
        return self._prefetcher

    def close(self) -> None:
        """Stop reading ahead. May be called at any time and more than once."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None

    def documents_of_step(self, step: int, micro_batch: int | None = None) -> list[str]:
        """The documents of this rank's sequences at a step, or in one of its micro-batches, for error reports.

        Each is `source/train/shard:document`, the document counted within its shard from 0.
        """
        return self._reader.documents(step, micro_batch)


class _Reader:
    """Reads one rank's part of a step."""

    with_document_ids = False
    pin_memory = False

    def __init__(self, data: TrainData, batch: int, n_micro: int, rows: int, rank: int, world_size: int):
        self.data, self.order = data, data.order()
        self.arrays = list(data.train.values())
        self.batch, self.n_micro, self.rows, self.rank, self.world_size = batch, n_micro, rows, rank, world_size

    def fork(self) -> _Reader:
        """The same reader for another thread: the caches of the order are not shared."""
        other = _Reader(self.data, self.batch, self.n_micro, self.rows, self.rank, self.world_size)
        other.with_document_ids, other.pin_memory = self.with_document_ids, self.pin_memory
        return other

    @property
    def step_bytes(self) -> int:
        return 8 * (2 + self.with_document_ids) * self.n_micro * self.rows * self.data.seq_len

    def windows(self, step: int) -> list[tuple[int, int]]:
        """(source, first token) of each of this rank's sequences."""
        source, window = self.order.samples(step * self.batch, (step + 1) * self.batch)
        mine = slice(self.rank, None, self.world_size)
        return list(zip(source[mine].tolist(), (window[mine] * self.data.seq_len).tolist(), strict=True))

    def read(self, step: int) -> StepBatches:
        windows, T = self.windows(step), self.data.seq_len
        tokens = np.empty((len(windows), T + 1), np.int64)
        # One array for everything: one page-locked allocation, of which micro-batches are contiguous slices.
        out = np.zeros((2 + self.with_document_ids, self.n_micro * self.rows, T), np.int64)
        for row, (source, start) in enumerate(windows):
            self.arrays[source].read_into(start, tokens[row])
            if self.with_document_ids:
                out[2, row] = self.arrays[source].document_ids(start, start + T)
        if tokens.size and tokens.max() >= self.data.vocab_size:
            row = int((tokens >= self.data.vocab_size).any(1).argmax())
            raise DataError(
                f"token id {tokens.max()} is beyond the vocabulary of {self.data.vocab_size}, in "
                f"{', '.join(self.describe(*windows[row]))}; the shards are damaged: check them with data.verify=true"
            )
        out[0, : len(windows)] = tokens[:, :-1]
        out[1] = IGNORE
        out[1, : len(windows)] = tokens[:, 1:]
        tensor = torch.from_numpy(out)
        if self.pin_memory:
            tensor = tensor.pin_memory()
        return StepBatches(
            step=step,
            micro_batches=[
                Batch(tokens=part[0], targets=part[1], document_ids=part[2] if self.with_document_ids else None)
                for part in tensor.split(self.rows, dim=1)
            ],
            n_targets=self.batch * T,
        )

    def documents(self, step: int, micro_batch: int | None) -> list[str]:
        windows = self.windows(step)
        if micro_batch is not None:
            windows = windows[micro_batch * self.rows : (micro_batch + 1) * self.rows]
        found = [document for window in windows for document in self.describe(*window)]
        return list(dict.fromkeys(found))

    def describe(self, source: int, start: int) -> list[str]:
        at = self.arrays[source].documents_at(start, start + self.data.seq_len + 1)
        return [f"{self.data.names[source]}/train/{shard}:{document}" for shard, document in at]


class _Prefetcher:
    """Runs `read(step)` for step = start, start + 1, ... in a thread, up to `depth` steps ahead."""

    def __init__(self, read: Callable[[int], StepBatches], start: int, depth: int):
        self._queue: queue.Queue[StepBatches | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        # The thread must not know this object, or it would never be collected.
        args = (read, start, self._queue, self._stop, device)
        self._thread = threading.Thread(target=_produce, args=args, name="topklm-prefetch", daemon=True)
        # Runs when this object is dropped and, before the interpreter is torn down, at exit.
        self.close = weakref.finalize(self, _stop_thread, self._thread, self._stop)
        self._thread.start()

    def __iter__(self) -> _Prefetcher:
        return self

    def __next__(self) -> StepBatches:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=1.0)
            except queue.Empty:
                continue  # to look at the stop flag; a slow disk is no error
            if isinstance(item, BaseException):
                self._stop.set()
                raise item
            return item
        raise StopIteration


def _produce(
    read: Callable[[int], StepBatches],
    start: int,
    results: queue.Queue[StepBatches | BaseException],
    stop: threading.Event,
    device: int | None,
) -> None:
    """Body of the thread. An error is handed over like a result, for the consumer to raise."""
    item: StepBatches | BaseException
    for step in count(start):
        try:
            if device is not None and step == start:
                torch.cuda.set_device(device)  # else pinning would open a context on GPU 0 in every process
            item = read(step)
        except BaseException as error:
            item = error
        while not stop.is_set():
            try:
                results.put(item, timeout=0.2)
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(item, BaseException):
            return


def _stop_thread(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    thread.join(timeout=30)  # a thread that hangs in a dead file system does not keep the program


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
