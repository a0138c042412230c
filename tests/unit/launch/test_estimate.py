"""Parameters and tokens exactly, memory and time roughly; and the table that shows them."""

import json

import pytest
from rich.console import Console

from topklm.launch import EstimateConfig, SlurmConfig, plan_runs
from topklm.launch.estimate import memory_estimate, size_of, speed
from topklm.launch.listing import listing
from topklm.model import build_model
from topklm.train.throughput import flops_per_token


@pytest.fixture
def run(make_sweep):
    return plan_runs(make_sweep())[0]


def test_parameters_and_tokens(run):
    size = size_of(run, ranks=1)
    model = build_model(run.config.model, None, "cpu")
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.knows_vocabulary
    assert size.tokens == 20 * 4 * 32
    assert size.flops == size.tokens * flops_per_token(run.config.model, 32)


def test_an_unknown_vocabulary_is_left_out_and_told(make_sweep):
    config = make_sweep(set={"model.vocab_size": -1})
    size = size_of(plan_runs(config)[0], ranks=1)
    assert not size.knows_vocabulary
    assert size.parameters == plan_runs(config)[0].config.model.n_block_params
    assert "without embedding and head" in listing(config)[-1]


def test_the_global_batch_follows_from_the_ranks_where_it_is_open(make_sweep):
    (run,) = plan_runs(make_sweep(set={"data.global_batch_size": None, "grad_acc_steps": 3}))
    assert size_of(run, ranks=4).tokens == 20 * (2 * 3 * 4) * 32


def test_memory_is_at_least_the_training_state_and_shrinks_with_ranks_and_checkpointing(run, make_sweep):
    n = run.config.model.n_params
    alone = memory_estimate(run.config, run.config.model, 1)
    assert alone > 16 * n
    assert memory_estimate(run.config, run.config.model, 8) < alone
    (full,) = plan_runs(make_sweep(set={"distributed.activation_checkpointing": "full"}))
    assert memory_estimate(full.config, full.config.model, 1) < alone


def test_speed_is_unknown_then_assumed_then_measured(run):
    assert speed([run], 1, EstimateConfig())[0] is None
    assumed, told = speed([run], 8, EstimateConfig(tflops_per_gpu=989.5, mfu=0.4))
    assert assumed == pytest.approx(8 * 989.5e12 * 0.4)
    assert "assuming 40%" in told
    run.dump_dir.mkdir(parents=True)
    (run.dump_dir / "config.yaml").write_text("steps: 20\nmodel: {dim: 32}\ndata: {sources: {a: 1.0}}\n")
    lines = [
        {"global_step": i, "loss/out": 1.0, "speed/tokens_per_second": v} for i, v in ((1, 1.0), (2, 90.0), (3, 110.0))
    ]
    (run.dump_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The first logged step warms up and does not count.
    measured, told = speed([run], 8, EstimateConfig(tflops_per_gpu=989.5))
    assert measured == pytest.approx(100.0 * flops_per_token(run.config.model, 32))
    assert "measured" in told


def test_the_listing(make_sweep):
    config = make_sweep(
        grid={"topk.k": [4, 8]}, twins=True, estimate=EstimateConfig(tflops_per_gpu=1e-6, mfu=1.0), max_parallel=2
    )
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*listing(config), sep="\n")
    said = console.export_text()
    for name in ("dense", "k4", "k8"):
        assert name in said
    assert "3 runs: 3 new; 7,680 tokens" in said
    assert "2 at a time" in said
    assert "0/20" in said


def test_the_time_to_go_is_at_least_that_of_the_longest_run_and_slurm_has_its_own_number_at_a_time(make_sweep):
    def said(**settings):
        one_each = {"tflops_per_gpu": seconds_of_flops / 1e12 / 100, "mfu": 1.0}
        return listing(make_sweep(grid={"topk.k": [4, 8, 16]}, estimate=EstimateConfig(**one_each), **settings))[1]

    (run,) = plan_runs(make_sweep())
    seconds_of_flops = size_of(run, ranks=1).flops  # a run takes 100 s
    assert "0:05:00 to go (h:mm:ss, 1 at a time)" in said()
    assert "0:01:40 to go (h:mm:ss, 8 at a time)" in said(max_parallel=8)
    assert "0:02:30 to go (h:mm:ss, 2 at a time)" in said(slurm=SlurmConfig(array_parallelism=2))
