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


def test_ranks_draw_different_numbers():
    seed_everything(3, rank=0)
    first = draw()
    seed_everything(3, rank=1)
    assert draw() != first
