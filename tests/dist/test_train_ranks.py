"""`torchrun ... -m apps.train` on several gloo ranks: the run that one rank makes, through kills and signals."""

import os
import signal

import pytest

from tests.programs import (
    assert_same_run,
    children,
    kill,
    metrics,
    run_app,
    start_app,
    torchrun,
    wait_for_step,
    weights,
)
from topklm.checkpoint import list_checkpoints
from topklm.errors import EXIT_PREEMPTED

pytestmark = pytest.mark.dist


def run(ranks, *args, check=0):
    return run_app(*torchrun(ranks), "apps.train", *args, check=check)


@pytest.fixture(scope="module")
def on_two(tiny, tmp_path_factory):
    """A run of two ranks, killed after its checkpoint of step 10, and the uninterrupted one."""
    killed, whole = (tmp_path_factory.mktemp("ranks") / name for name in ("killed", "whole"))
    run(2, *tiny, f"dump_dir={whole}")
    process = start_app(*torchrun(2), "apps.train", *tiny, f"dump_dir={killed}")
    wait_for_step(killed, 12, process)
    kill(process)
    return killed, whole


def test_two_ranks_train_as_one_does(on_two, whole):
    """In fp32 for as long as rounding is unlikely to choose other entries; in fp64 and further: test_elastic.py."""
    one, two = metrics(whole), metrics(on_two[1])
    for step in range(1, 6):
        assert two[step] == pytest.approx(one[step], abs=1e-5)
    assert metrics(on_two[1], "val/tokens@32") == metrics(whole, "val/tokens@32")


def test_a_killed_run_resumes_bit_for_bit(tiny, on_two, tmp_path):
    killed, whole = on_two
    assert int(list_checkpoints(killed / "checkpoints")[-1].name) == 10
    run(2, *tiny, f"dump_dir={killed}")
    assert_same_run(killed, whole)


@pytest.mark.parametrize(
    "settings",
    [
        ["distributed.dp_replicate=2", "checkpoint.async_save=true"],
        ["distributed.fsdp_type=no_shard", "distributed.activation_checkpointing=full", "data.batch_size=1"],
    ],
    ids=["hsdp 2 x 2, async saves", "replicated, full checkpointing, accumulation"],
)
def test_meshes_and_memory_savers_do_not_change_the_run(tiny, whole, tmp_path, settings):
    run(4, *tiny, f"dump_dir={tmp_path / 'four'}", "steps=12", "topk.anneal_steps=12", *settings)
    expected, found = metrics(whole), metrics(tmp_path / "four")
    # The learning rate follows `steps` after the warm-up of 4 steps.
    for step in range(1, 6):
        assert found[step] == pytest.approx(expected[step], abs=1e-5)
    assert [p.name for p in list_checkpoints(tmp_path / "four" / "checkpoints")][-1] == "0000000012"


def test_bf16_keeps_fp32_master_weights(tiny, tmp_path):
    """Compute in bf16 does not move the weights that are trained out of fp32: tiny steps are not lost."""
    run(2, *tiny, f"dump_dir={tmp_path / 'bf16'}", "distributed.model_dtype=bf16", "steps=12")
    losses = metrics(tmp_path / "bf16")
    assert losses[12] < losses[1]
    state = weights(tmp_path / "bf16")
    assert any((w != w.bfloat16().float()).any() for w in state.values())


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tiny, tmp_path):
    """Only one of the ranks gets the signal; both save the same step, and the job says that it can go on."""
    stopped = tmp_path / "stopped"
    process = start_app(*torchrun(2), "apps.train", *tiny, f"dump_dir={stopped}", "steps=400",
                        "checkpoint.dump.every=0")  # fmt: skip
    wait_for_step(stopped, 5, process)
    os.kill(children(process.pid)[0], signal.SIGUSR1)
    _, stderr = process.communicate(timeout=120)
    last = max(metrics(stopped))
    assert last < 400
    assert [int(p.name) for p in list_checkpoints(stopped / "checkpoints")] == [last]
    assert f"exitcode  : {EXIT_PREEMPTED}" in stderr.replace("exitcode:", "exitcode  :")


def test_impossible_meshes_are_refused_before_anything_starts(tiny, tmp_path):
    done = run(2, *tiny, f"dump_dir={tmp_path / 'x'}", "distributed.dp_shard=3", check=1)
    assert "is not the world size 2" in done.stderr
    assert not (tmp_path / "x").exists()
