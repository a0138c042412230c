"""What a run decides once: global batch, annealing steps; what may not change within a run."""

import dataclasses

import pytest

from topklm.config import build, save_config
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


def test_open_values_are_filled_from_the_data_and_the_world(tmp_path):
    settled = settle(config(tmp_path), vocab_size=500, world_size=2)
    assert settled.data.global_batch_size == 4 * 3 * 2
    assert settled.topk.anneal_steps == 30
    assert settled.model.vocab_size == 500
    given = config(tmp_path, data={"root_dir": "d", "sources": {"s": 1.0}, "batch_size": 4, "global_batch_size": 7})
    assert settle(given, vocab_size=500, world_size=2).data.global_batch_size == 7


def test_another_world_and_a_longer_run_keep_the_first_starts_batch_and_annealing(tmp_path):
    first = settle(config(tmp_path), vocab_size=500, world_size=2)
    save_config(first, tmp_path / "config.yaml")
    again = settle(config(tmp_path, steps=1000, grad_acc_steps=1), vocab_size=500, world_size=8)
    assert again.data.global_batch_size == first.data.global_batch_size == 24
    assert again.topk.anneal_steps == 30
    assert again.steps == 1000


def test_every_contradiction_is_told(tmp_path):
    save_config(settle(config(tmp_path), vocab_size=500, world_size=2), tmp_path / "config.yaml")
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
