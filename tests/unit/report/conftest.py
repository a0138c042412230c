"""Run directories with known numbers."""

import json
from pathlib import Path

import pytest
import yaml

BASE = {
    "steps": 100,
    "seed": 42,
    "data": {"root_dir": "data", "sources": {"a": 1.0}, "seq_len": 32, "global_batch_size": 4, "batch_size": 4},
    "model": {"dim": 16, "n_layers": 4, "seed": 42, "loss_chunk": 1024},
    "optim": {"lr": 1e-3},
}
PROVENANCE = {
    "data_fingerprint": "d" * 64, "tokenizer_sha256": "e" * 64, "n_parameters": 123_456_789, "device": "NVIDIA H200",
    "ranks": 8, "versions": {"topklm": "0.1.0", "torch": "2.11.0"},
}  # fmt: skip
TOPK = {"activation": "topk", "k": 3, "n_dense_tail": 1, "anneal_ratio": 0.5, "anneal_steps": 50}


class RunMaker:
    """Writes run directories: training lines at steps 5, 10 ... and validation lines at 50 and 100."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(
        self, name, *, topk=None, ppl=100.0, until=100, validate=True, config=None, provenance=None, **overrides
    ) -> Path:
        path = self.root / name
        path.mkdir()
        settings = {**BASE, "name": name, "topk": topk, **(config or {})}
        (path / "config.yaml").write_text(yaml.safe_dump(settings))
        if provenance is not None:
            (path / "provenance.json").write_text(json.dumps(provenance))
        lines = []
        for i, step in enumerate(range(5, until + 1, 5)):
            alpha = {"topk/alpha": max(0.0, 1 - (step - 1) / 50)} if topk else {}
            lines.append({
                "global_step": step, "loss/out": 8.0 - 0.01 * step, "optim/total_tokens": 128 * step,
                "speed/tokens_per_second": 1.0 if i == 0 else 1000.0 + i, **alpha,
            })  # fmt: skip
            if validate and step % 50 == 0:
                health = {"val/alpha": max(0.0, 1 - step / 50), "topk/tokens": 640.0, "topk/l0_min": 1.0,
                          "topk/l0_mean": 2.5, "topk/l0_max": 3.0, "topk/dead": 0.125}  # fmt: skip
                figures = {"val/loss@32": 4.6, "val/ppl@32": ppl * 100 / step, "val/tokens@32": 640}
                lines.append({"global_step": step, **figures, **(health if topk else {}), **overrides})
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path


@pytest.fixture
def make_run(tmp_path) -> RunMaker:
    return RunMaker(tmp_path)


@pytest.fixture
def twins(make_run) -> list[Path]:
    return [make_run("dense", ppl=80.0), make_run("sparse", topk=TOPK, ppl=100.0)]
