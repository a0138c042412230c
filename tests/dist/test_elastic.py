"""A run that goes on with other ranks, meshes, micro-batches and accumulation is the same run.

All chains, also the dense one in fp32: `python scripts/check_elastic.py`.
"""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts.check_elastic import (
    CHAINS,
    LEG_STEPS,
    MESHES,
    RANKS,
    Leg,
    batches_of,
    check,
    difference,
    run_ranks,
    state_of,
)
from topklm.train.rng import seed_everything

pytestmark = pytest.mark.dist
UNEVEN = (*MESHES[:2], RANKS[-1])
"""1, 2 x 2 and 1 ranks, these with micro-batches of 3 for a batch of 8: a row is padding."""


@pytest.fixture(scope="module")
def chains(tiny, tmp_path_factory):
    """A run through 1, 2, 4 and 1 ranks, and one with trained thresholds through `UNEVEN`."""
    out = tmp_path_factory.mktemp("chains")
    jumprelu = CHAINS["jumprelu"][1]
    changes = check("ranks", RANKS, tiny, out / "ranks", fp64=True)
    return out, changes + check("meshes", UNEVEN, [*tiny, *jumprelu], out / "meshes", fp64=True)


def test_the_same_batches_losses_and_states_in_every_world(chains):
    """In fp64, where rounding chooses no other entries."""
    _, changes = chains
    assert [(c.leg.ranks, c.accumulation) for c in changes] == [
        (1, 2), (2, 2), (4, 1), (1, 3), (1, 1), (4, 2), (1, 3),
    ]  # fmt: skip
    for change in changes:
        assert change.same_batches, change
        assert change.same_steps, change
        assert change.loss <= 1e-5, change
        assert change.state <= (1e-9 if change.chain == "ranks" else 1e-6), change  # thresholds are fp32


def test_the_comparison_can_fail(chains):
    out, changes = chains
    early, late = (out / "ranks" / "whole" / "checkpoints" / f"{step:010d}" for step in (10, 20))
    assert difference(early, early) == (0.0, True)
    state, same_steps = difference(early, late)
    assert state > 1e-3
    assert not same_steps
    for wrong in ({"loss": 2e-5}, {"same_batches": False}, {"state": 2e-5}, {"same_steps": False}):
        assert not replace(changes[0], **wrong).holds(1e-5)
    # Rows that two ranks have changed for each other are another batch.
    records = out / "swapped"
    records.mkdir()
    for rank, other in ((0, 1), (1, 0)):
        text = (out / "ranks" / "1.records" / f"{other}.batches.jsonl").read_text()
        (records / f"{rank}.batches.jsonl").write_text(text)
    assert batches_of(records) != batches_of(out / "ranks" / "1.records")


def test_trained_thresholds_go_along(chains):
    """Every rank of the new world begins with those of the checkpoint, and they have moved."""
    out, _ = chains
    for number, leg in ((1, UNEVEN[1]), (2, UNEVEN[2])):
        checkpoint = out / "meshes" / "chain" / "checkpoints" / f"{number * LEG_STEPS:010d}"
        for rank in range(leg.ranks):
            assert_begins_with(checkpoint, started(out / "meshes", number, rank))
    assert started(out / "meshes", 2, 0)["activations"] != started(out / "meshes", 1, 0)["activations"]


def test_ranks_go_on_with_their_own_random_numbers_and_new_ones_begin_a_stream(chains):
    out, _ = chains
    draws = {
        (n, rank): started(out / "ranks", n, rank)["draws"] for n, leg in enumerate(RANKS) for rank in range(leg.ranks)
    }
    # Nothing in training draws, so a rank stands where it stood.
    assert draws[0, 0] == draws[1, 0] == draws[2, 0] == draws[3, 0]
    assert draws[1, 1] == draws[2, 1]
    for number, rank in ((1, 1), (2, 2), (2, 3)):
        seed_everything(42, rank, number * LEG_STEPS)
        assert draws[number, rank] == [random.random(), np.random.rand(), torch.rand(()).item()]
    assert len({tuple(draws[2, rank]) for rank in range(4)}) == 4


def test_a_running_threshold_goes_along(tiny, tmp_path):
    """batchtopk selects over what a rank has in a micro-batch, so its losses are those of its division alone."""
    args = [*tiny, "topk={activation: batchtopk, k: 8, n_dense_tail: 1}", f"dump_dir={tmp_path / 'run'}", "eval=null"]
    assert run_ranks([*args, "steps=5"], 1, tmp_path / "0.records") == [0]
    leg = Leg(ranks=4, replicate=2, micro_batch=2)
    assert run_ranks([*args, *leg.settings, "steps=6"], 4, tmp_path / "1.records") == [0] * 4
    for rank in range(4):
        begun = started(tmp_path, 1, rank)
        assert begun["step"] == 5
        assert_begins_with(tmp_path / "run" / "checkpoints" / "0000000005", begun)
    thresholds = [value for name, value in begun["activations"].items() if name.endswith("threshold")]
    assert any(threshold > 0 for threshold in thresholds)


def started(out, leg, rank):
    """What a rank began a leg with."""
    return json.loads((out / f"{leg}.records" / f"{rank}.start.json").read_text())


def assert_begins_with(checkpoint, begun):
    """A rank's activations have the state of a checkpoint."""
    stored = state_of(checkpoint)
    assert begun["activations"]
    for name, values in begun["activations"].items():
        assert torch.equal(torch.tensor(values).float(), stored[f"activation.{name}"].float()), name
