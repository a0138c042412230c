"""The random state survives JSON."""

import json
import random

import numpy as np
import torch

from topklm.train.rng import restore_rng, rng_state, seed_everything

CPU = torch.device("cpu")


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_a_restored_state_draws_the_same():
    seed_everything(3, rank=1)
    draw()
    state = json.loads(json.dumps(rng_state(CPU)))
    expected = draw()
    seed_everything(9, rank=0)
    restore_rng(state, CPU)
    assert draw() == expected


def test_every_seed_rank_and_step_has_numbers_of_its_own():
    """Also where sums are equal: seed 3 on rank 1 is not seed 4 on rank 0."""
    drawn = set()
    for seed in (-4, 0, 3, 4):
        for rank in range(3):
            for step in (0, 1, 10):
                seed_everything(seed, rank, step)
                drawn.add(repr(draw()))
    assert len(drawn) == 4 * 3 * 3


def test_seeding_repeats():
    seed_everything(3, rank=1, step=7)
    first = draw()
    seed_everything(3, rank=1, step=7)
    assert draw() == first
