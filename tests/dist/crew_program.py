"""Started by test_eval_ranks.py under torchrun: ranks that share work, some of which fails."""

import os
import sys

import pytest
import torch.distributed as dist

from topklm.errors import TopklmError
from topklm.evaluate.harness_ranks import Crew


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    def work(requests, settings, advance):
        if settings == rank:
            raise ValueError(f"rank {rank} cannot")
        if advance is not None:
            advance(len(requests))
        return [(request * 10, rank) for request in requests]

    for _ in range(2):  # a second crew after the first, as in training
        crew = Crew({"work": work}, rank, world)
        if rank != 0:
            crew.serve()
            continue
        for n in (0, 1, world - 1, world, 17):
            told = []
            answers = crew.share("work", range(n), None, told.append)
            assert answers == [(i * 10, i % world) for i in range(n)], answers
            assert told == [-(-n // world) * world]
        for failing in range(world):
            with pytest.raises((TopklmError, ValueError), match=f"rank {failing} cannot"):
                crew.share("work", range(5), failing)
        assert len(crew.share("work", range(3))) == 3  # and it goes on
        crew.dismiss()
    dist.destroy_process_group()
    print(f"rank {rank} done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
