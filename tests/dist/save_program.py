"""Started by test_save_ranks.py under torchrun: one of two ranks cannot write its part of a checkpoint."""

import errno
import itertools
import os
import resource
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from topklm.checkpoint import CheckpointConfig, CheckpointStore, SaveEvery, defects, list_checkpoints
from topklm.errors import StorageError


@contextmanager
def small_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(name):
    return lambda: mock.patch(f"topklm.checkpoint.store.{name}", side_effect=OSError(errno.ENOSPC, "disk full"))


FAULTS = [
    *itertools.product((full("write_json"), small_files, full("digest"), full("make_durable")), (0, 1)),
    (full("os.replace"), 0),
]
"""(fault, rank that it hits): small files, weights, hashing, syncing; renaming is the first rank's."""


def save_at(store, model, optimizer, tokenizer, step):
    store.save(step, model, optimizer, {"step": step}, {}, tokenizer)
    store.finish()


def main(directory):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters())
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    step = 0
    for async_save in (False, True):
        config = CheckpointConfig(dump=SaveEvery(every=1, keep=1), async_save=async_save)
        store = CheckpointStore(directory / "checkpoints", config, rank, dist.new_group(backend="gloo"))
        save = partial(save_at, store, model, optimizer, tokenizer)
        dist.barrier()
        for fault, failing in FAULTS:
            step += 1
            save(step)
            step += 1
            told = pytest.raises(StorageError, match=f"rank {failing}: .*(disk full|File too large)")
            with fault() if rank == failing else nullcontext(), told:
                save(step)
            dist.barrier()
            left = [path.name for path in store.directory.iterdir()]
            assert left == [f"{step - 1:010d}"], left
            assert not defects(list_checkpoints(store.directory)[0])
            dist.barrier()
    print(f"rank {rank} done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
