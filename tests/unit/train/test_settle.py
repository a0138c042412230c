"""What a run decides once: global batch, annealing steps; what may not change within a run."""

import dataclasses
import json

import pytest

from topklm.config import build, to_dict
from topklm.errors import ConfigError
from topklm.train import TrainConfig
from topklm.train.settle import settle


def config(tmp_path, **changes):
    base = {
        "dump_dir": str(tmp_path), "steps": 100, "grad_acc_steps": 3,
        "data": {"root_dir": "d", "sources": {"s": 1.0}, "batch_size": 4, "seq_len": 64},
        "model": {"dim": 32, "n_heads": 4}, "topk": {"k": 8, "anneal_ratio": 0.3},
    }  # fmt: skip
    return build(TrainConfig, {**base, **changes})


def store(settled, dump_dir, step=10):
    """What a checkpoint of a run holds of its configuration."""
    checkpoint = dump_dir / "checkpoints" / f"{step:010d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "params.json").write_text(json.dumps(to_dict(settled)))
    return checkpoint


def test_open_values_are_filled_from_the_data_and_the_world(tmp_path):
    settled = settle(config(tmp_path), vocab_size=500, world_size=2)
    assert settled.data.global_batch_size == 4 * 3 * 2
    assert settled.topk.anneal_steps == 30
    assert settled.model.vocab_size == 500
    given = config(tmp_path, data={"root_dir": "d", "sources": {"s": 1.0}, "batch_size": 4, "global_batch_size": 7})
    assert settle(given, vocab_size=500, world_size=2).data.global_batch_size == 7


def test_another_world_and_a_longer_run_keep_the_first_starts_batch_and_annealing(tmp_path):
    first = settle(config(tmp_path), vocab_size=500, world_size=2)
    store(first, tmp_path)
    again = settle(config(tmp_path, steps=1000, grad_acc_steps=1), vocab_size=500, world_size=8)
    assert again.data.global_batch_size == first.data.global_batch_size == 24
    assert again.topk.anneal_steps == 30
    assert again.steps == 1000


def test_every_contradiction_is_told(tmp_path):
    store(settle(config(tmp_path), vocab_size=500, world_size=2), tmp_path)
    changed = config(
        tmp_path, model={"dim": 64, "n_heads": 4, "vocab_size": 400, "loss_chunk": 9}, topk=None, seed=1,
        optim={"lr": 1.0}, distributed={"dp_shard": 3, "dp_replicate": 2},
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        settle(changed, vocab_size=500, world_size=2)
    keys = {problem.key for problem in caught.value.problems}
    assert {"model.dim", "model.vocab_size", "seed", "topk.k", "distributed.dp_shard"} <= keys
    assert not {"optim.lr", "model.loss_chunk"} & keys


@pytest.mark.parametrize(
    ("settings", "world", "shape"),
    [
        ({}, 8, (1, 8)),
        ({"dp_replicate": 2}, 8, (2, 4)),
        ({"dp_shard": 2}, 8, (4, 2)),
        ({"fsdp_type": "no_shard"}, 8, (8, 1)),
        ({"dp_replicate": 8}, 8, (1, 8)),  # as Lingua, which shards over the copies then
        ({"dp_shard": 1, "dp_replicate": 8}, 8, (1, 8)),
        ({"dp_shard": 1, "dp_replicate": 8, "fsdp_type": "no_shard"}, 8, (8, 1)),
        ({}, 1, (1, 1)),
    ],
)
def test_meshes_follow_from_what_is_given(tmp_path, settings, world, shape):
    given = config(tmp_path, distributed=settings).distributed
    assert given.mesh_shape(world) == shape


def test_settings_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(
            tmp_path,
            distributed={"tp_size": 2, "model_dtype": "fp16", "float8_recipe": "x", "dp_shard": 0,
                         "selective_activation_checkpointing": True, "activation_checkpointing": "full"},
            topk={"k": 64, "n_dense_tail": 99}, steps=0,
        )  # fmt: skip
    assert {problem.key for problem in caught.value.problems} == {
        "distributed.tp_size", "distributed.model_dtype", "distributed.float8_recipe", "distributed.dp_shard",
        "distributed.activation_checkpointing", "topk.k", "topk.n_dense_tail", "steps",
    }  # fmt: skip


def test_the_twin_of_a_config_differs_in_its_activation_alone(tmp_path):
    sparse = settle(config(tmp_path), vocab_size=500, world_size=1)
    dense = settle(config(tmp_path, topk=None), vocab_size=500, world_size=1)
    assert dataclasses.replace(sparse, topk=None) == dense


def test_before_the_first_checkpoint_nothing_is_fixed(tmp_path):
    settle(config(tmp_path), vocab_size=500, world_size=2)
    assert settle(config(tmp_path, seed=1), vocab_size=500, world_size=2).seed == 1


def test_continuing_another_run_takes_its_annealing_and_batch(tmp_path):
    first = settle(config(tmp_path / "a"), vocab_size=500, world_size=2)
    place = store(first, tmp_path / "a")
    (place / ".metadata").touch()
    init = {"init_ckpt_path": str(place), "continue_training_from_init": True}
    again = settle(config(tmp_path / "b", steps=1000, checkpoint=init), vocab_size=500, world_size=1)
    assert (again.topk.anneal_steps, again.data.global_batch_size) == (30, 24)
    with pytest.raises(ConfigError, match="was started with"):
        settle(config(tmp_path / "b", topk=None, checkpoint=init), vocab_size=500, world_size=1)
    (tmp_path / "weights.pth").touch()
    init["init_ckpt_path"] = str(tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="needs a checkpoint directory"):
        settle(config(tmp_path / "b", checkpoint=init), vocab_size=500, world_size=1)
