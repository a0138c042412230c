"""The trainer on one GPU: bf16 with fp32 master weights, compiled, checkpointed; skipped without CUDA."""

import csv
import json

import pytest
import torch

from tests.poison import Poison
from tests.programs import metrics, run_app
from topklm.config import load_config
from topklm.errors import NonFiniteError
from topklm.train import TrainConfig, train

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


def test_a_profile_has_device_times_and_a_memory_snapshot(tiny, tmp_path):
    run_app("apps.train", *tiny, f"dump_dir={tmp_path / 'gpu'}", "eval=null",
            "profiling={run: true, profile_warmup: 6, profile_steps: 2, mem_warmup: 10, mem_steps: 2}")  # fmt: skip
    profiles = tmp_path / "gpu" / "profiling"
    assert (profiles / "0000000012" / "memory_00000.pickle").stat().st_size > 0
    with (profiles / "0000000008" / "parts.csv").open() as file:
        parts = {row["part"]: float(row["ms"]) for row in csv.DictReader(file)}
    assert {"optimizer", "loss", "TopK", "attention", "matrix products"} <= parts.keys()
    assert sum(parts.values()) == pytest.approx(2 * parts["step"])


def test_a_bad_step_that_the_host_sees_late_is_found(tiny, tmp_path, monkeypatch):
    """Steps that follow are computed before anyone looks; they are refused, and the step is computed again."""
    Poison("activation", {5}).install(monkeypatch.setattr)
    args = [*tiny, f"dump_dir={tmp_path / 'gpu'}", "logging.freq=10", "checkpoint.dump.every=0", "eval=null"]
    with pytest.raises(NonFiniteError, match=r"step 6 is not finite"):
        train(load_config(TrainConfig, args))
    report = json.loads((tmp_path / "gpu" / "nonfinite.json").read_text())
    assert (report["global_step"], report["found"], report["layer"]) == (6, "output", 2)
