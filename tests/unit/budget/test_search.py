"""What is suggested fits, and nothing larger does; nothing is suggested that was not tried."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.budget import PlanConfig
from topklm.budget.memory import needed
from topklm.budget.plan import make_plan
from topklm.budget.search import MODES, largest_micro_batch, remedies
from topklm.budget.setting import setting_of
from topklm.config import load_config
from topklm.errors import ConfigError

ARGS = ["config=configs/paper/topk_d1024_l8.yaml", "vocab_size=32000"]


def plan_of(*args):
    return make_plan(load_config(PlanConfig, [*ARGS, *args]))


@settings(max_examples=12, deadline=None)
@given(gib=st.floats(0.5, 30), mode=st.sampled_from(MODES), batch=st.sampled_from([4, 12, 16]))
def test_what_is_suggested_fits(gib, mode, batch):
    config = load_config(
        PlanConfig, [*ARGS, f"data.batch_size={batch}", f"distributed.activation_checkpointing={mode}"]
    )
    model = dataclasses.replace(config.model, vocab_size=32000)

    def fits(setting):
        return needed(setting, 0.05, 1.5 * 2**30) <= gib * 2**30

    for remedy in remedies(config.train, model, 8, 1, fits):
        arguments = [*ARGS, f"data.batch_size={batch}", f"distributed.activation_checkpointing={mode}"]
        again = make_plan(load_config(PlanConfig, [*arguments, *remedy.arguments.split(), f"gpu_gib={gib}"]))
        assert again.fits, remedy
    largest = largest_micro_batch(config.train, model, 8, fits)
    for size in (1, 2, 4, 8, 16, 32, 64):
        tried = dataclasses.replace(config.train, data=dataclasses.replace(config.data, batch_size=size))
        assert not fits(setting_of(tried, model, 8)) or (largest is not None and size <= largest)


def test_a_run_that_does_not_fit_says_what_would():
    plan = plan_of("gpu=l4")
    assert plan.fits  # the smallest of the paper's fits 22 GiB
    plan = plan_of("gpu=l4", "model.n_layers=40")
    assert not plan.fits
    assert [remedy.arguments for remedy in plan.remedies][-1].startswith("nodes=")
    assert any("data.batch_size=" in remedy.arguments for remedy in plan.remedies)
    hopeless = plan_of("gpu=l4", "model.dim=16384", "model.n_layers=4", "data.seq_len=65536", "gpus=1")
    assert not hopeless.fits
    assert hopeless.remedies == []


@pytest.mark.parametrize(("args", "told"), [
    (["distributed.fsdp_type=no_shard", "gpu_gib=5"], "distributed.fsdp_type=full_shard"),
    (["distributed.dp_shard=8"], "nodes=2 distributed.dp_shard=null"),
    (["distributed.dp_replicate=2", "gpu_gib=5"], "distributed.dp_replicate=null"),
    ([], "nodes=2"),
    (["gpus=1"], "gpus=8 nodes=2"),
    (["gpus=4", "gpu_gib=5"], "gpus=8"),
])  # fmt: skip
def test_more_gpus_are_suggested_with_the_mesh_that_takes_them(args, told):
    args = [
        "gpu_gib=3", "context_gib=0", "model.n_layers=40", "model.dim=2048", "data.batch_size=1",
        "data.global_batch_size=8", "distributed.activation_checkpointing=full", *args,
    ]  # fmt: skip
    assert [remedy.arguments for remedy in plan_of(*args).remedies] == [told]
    assert plan_of(*args, *told.split()).fits


def test_an_open_global_batch_grows_with_the_micro_batch():
    plan = plan_of("data.global_batch_size=null", "gpu_gib=20")
    assert plan.mode.largest > 16


def test_a_mesh_that_does_not_fit_the_ranks_is_told():
    with pytest.raises(ConfigError, match="dp_shard 3 is not the world size 8"):
        plan_of("distributed.dp_shard=3", "distributed.dp_replicate=2")
