"""metrics.jsonl after a resume, throughput formulas, console."""

import json
import logging
import sys
import types

import pytest
import torch

from topklm.model import ModelConfig, Transformer
from topklm.train import throughput
from topklm.train.metrics import Console, LoggingConfig, MetricsWriter, WandbConfig, append_line, rewind_metrics


def test_rewinding_keeps_what_the_checkpoint_has_seen_and_loses_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"global_step": s}) + "\n" for s in (1, 2, 2, 3, 4)]
    path.write_text("".join(lines) + '{"global_st')
    rewind_metrics(path, 2)
    assert path.read_text() == "".join(lines[:3])
    assert (tmp_path / "metrics.superseded.jsonl").read_text() == "".join(lines[3:]) + '{"global_st'
    rewind_metrics(tmp_path / "none.jsonl", 2)


def test_every_sink_gets_the_figures(tmp_path):
    with MetricsWriter(LoggingConfig(tensorboard=True), tmp_path, "run", {}, 0) as metrics:
        metrics.write({"global_step": 3, "loss/out": 1.5, "optim/grad_norm": float("nan")})
    (entry,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert entry["loss/out"] == 1.5
    assert entry["optim/grad_norm"] is None
    assert "created_at" in entry
    assert any((tmp_path / "tensorboard").iterdir())


def test_flops_per_token_are_the_published_formulas():
    config = ModelConfig(dim=64, n_layers=3, n_heads=4, vocab_size=100)
    total = sum(p.numel() for p in Transformer(config).parameters())
    embedding = 100 * 64
    assert throughput.flops_per_token(config, 128) == 6 * (total - embedding) + 12 * 3 * 128 * 64
    assert throughput.lingua_flops_per_token(config, 128) == 6 * (total - embedding) + 7 * 3 * 128 * 64
    assert throughput.mfu(1000.0, 2e9, 989.5e12) == pytest.approx(2e12 / 989.5e12)
    assert throughput.peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.5e12), ("NVIDIA H100 80GB HBM3", 989.5e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA L4", 121e12), ("NVIDIA L40S", 362e12), ("NVIDIA A10G", 70e12),
        ("NVIDIA A40", 149.7e12), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A1000", None), ("NVIDIA L40", None), ("Some GPU", None),
    ],
)  # fmt: skip
def test_the_peak_is_the_dense_one_of_the_device(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert throughput.peak_flops(torch.device("cuda")) == peak


def test_validation_and_saving_do_not_count_as_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    speed = throughput.Throughput(ModelConfig(dim=64, n_heads=4, vocab_size=10), 8, 2, torch.device("cpu"))
    for _ in range(4):
        now[0] += 1.0
        speed.step()
        with speed.pause():
            now[0] += 10.0
    figures = speed.figures(tokens_per_step=100)
    assert figures["speed/tokens_per_second"] == pytest.approx(100)
    assert figures["speed/wps"] == pytest.approx(50)
    assert figures["speed/step_time"] == pytest.approx(1)
    assert "speed/mfu" not in figures


def test_without_a_terminal_the_progress_is_logged_with_an_eta(caplog):
    with caplog.at_level(logging.INFO), Console(10, 0, enabled=True) as console:
        console.update(5, "loss 1.0")
    assert "step 5/10  loss 1.0  eta 0:00:0" in caplog.text


def test_a_resumed_run_goes_on_with_its_wandb_curves(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        def log(self, figures, step):
            calls.append((step, figures))

        def finish(self, exit_code):
            calls.append(exit_code)

    fake = types.SimpleNamespace(init=lambda **arguments: calls.append(arguments) or FakeRun())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        config = LoggingConfig(wandb=WandbConfig(project="p", mode="offline", job_type="train", tags=["a"]))
        with MetricsWriter(config, tmp_path, "run", {"a": 1}, 0) as metrics:
            metrics.write({"global_step": 3, "loss/out": 1.5, "note": "text"})
    first, logged, code, second, *_ = calls
    assert first["id"] == second["id"] == (tmp_path / "wandb_id").read_text()
    assert (first["project"], first["mode"], first["name"], first["config"]) == ("p", "offline", "run", {"a": 1})
    assert (first["job_type"], first["tags"], first["dir"], first["resume"]) == ("train", ["a"], str(tmp_path), "allow")
    assert not {"notes", "entity", "save_code"} & first.keys()  # null leaves it to wandb
    assert (logged, code) == ((3, {"loss/out": 1.5}), 0)


def test_the_bar_makes_room_for_another_one(monkeypatch):
    """Two live bars on one terminal would write into each other."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Console(10, 0, enabled=True) as console:
        assert console._bar.live.is_started
        with console.paused():
            assert not console._bar.live.is_started
        assert console._bar.live.is_started
    with Console(10, 0, enabled=False) as console, console.paused():
        pass


def test_lines_of_evaluations_hold_figures_by_task_too(tmp_path):
    path = tmp_path / "metrics.eval.jsonl"
    append_line(path, {"global_step": 4, "task": {"acc,none": 0.5}})
    append_line(path, {"global_step": 8, "task": {"acc,none": 0.6}})
    rewind_metrics(path, 4)
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["global_step"], line["task"]) == (4, {"acc,none": 0.5})
