"""The trainer on one GPU: bf16 with fp32 master weights, compiled, checkpointed; skipped without CUDA."""

import pytest
import torch

from tests.programs import metrics, run_app

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


def test_bf16_compiled_run_learns_and_reports_memory(tiny, tmp_path):
    run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'gpu'}", "distributed.model_dtype=bf16",
            "distributed.compile=true", "distributed.activation_checkpointing=selective",
            "data.load_async=true", "checkpoint.async_save=true")  # fmt: skip
    losses = metrics(tmp_path / "gpu")
    assert losses[24] < losses[1] - 0.3
    assert metrics(tmp_path / "gpu", "memory/max_active_gib")[24] > 0
    assert metrics(tmp_path / "gpu", "topk/l0_max")[24] <= 8


def test_fp32_losses_are_those_of_the_cpu(tiny, whole, tmp_path):
    run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'gpu'}")
    gpu, cpu = metrics(tmp_path / "gpu"), metrics(whole)
    for step in range(1, 6):  # the first weights come from another generator: the level, not the digits
        assert gpu[step] == pytest.approx(cpu[step], abs=0.1)


def test_interrupted_and_resumed_is_the_same_run(tiny, tmp_path):
    constant = [*tiny, "topk.anneal_steps=12", "optim.scheduler=constant"]
    run_app("apps.train", *constant, f"dump_dir={tmp_path / 'whole'}")
    run_app("apps.train", *constant, f"dump_dir={tmp_path / 'parts'}", "steps=10")
    run_app("apps.train", *constant, f"dump_dir={tmp_path / 'parts'}")
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
