"""Real text, prepared once per test session with the program that a user runs, and a way to run programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_app(*args, check=0, env=None, timeout=300):
    """Run `python -m apps...` (or torchrun) from the root; the completed process, its exit code checked."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip
    assert check is None or done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def metrics(dump_dir, key="loss/out"):
    """{step: value} of one key of metrics.jsonl."""
    lines = [json.loads(line) for line in (Path(dump_dir) / "metrics.jsonl").read_text().splitlines()]
    return {line["global_step"]: line[key] for line in lines if key in line}


@pytest.fixture(scope="session")
def speeches(tmp_path_factory):
    """Presidential addresses, a few documents, 512 SentencePiece pieces: the data.root_dir of a tiny run."""
    out = tmp_path_factory.mktemp("prepared")
    run_app(
        "apps.prepare", "config=configs/data/quickstart.yaml", f"out_dir={out}",
        "sources.sotu.glob=data/speeches/*19[0-2]*.txt", f"tokenizer.path={out}/tokenizer.model",
        "tokenizer.train.vocab_size=512", "val_fraction=0.1", "workers=1",
    )  # fmt: skip
    return out


@pytest.fixture
def tiny(speeches, tmp_path):
    """Arguments of a run of 96 k parameters on the speeches; `dump_dir` is appended by the test."""
    return [
        f"data.root_dir={speeches}", "data.sources={sotu: 1.0}", "data.seq_len=32", "data.batch_size=4",
        "data.global_batch_size=8", "data.load_async=false", "steps=24",
        "model.dim=32", "model.n_layers=4", "model.n_heads=2", "model.multiple_of=16",
        "optim.lr=0.003", "optim.warmup=4", "distributed.model_dtype=fp32", "logging.freq=1",
        "checkpoint.dump={every: 5, keep: 0}", "eval={every: 8, validation: {max_tokens: 2000}}",
        "topk={k: 8, n_dense_tail: 1, anneal_ratio: 0.5}",
    ]  # fmt: skip
