"""Real text, prepared once per test session with the program that a user runs, and runs on it."""

import shutil

import pytest

from tests.programs import run_app


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


@pytest.fixture(scope="session")
def tiny(speeches):
    """Arguments of a run of 96 k parameters on the speeches; `dump_dir` is appended by the test."""
    return [
        f"data.root_dir={speeches}", "data.sources={sotu: 1.0}", "data.seq_len=32", "data.batch_size=4",
        "data.global_batch_size=8", "data.load_async=false", "steps=24",
        "model.dim=32", "model.n_layers=4", "model.n_heads=2", "model.multiple_of=16",
        "optim.lr=0.003", "optim.warmup=4", "distributed.model_dtype=fp32", "logging.freq=1",
        "checkpoint.dump={every: 5, keep: 0}", "eval={every: 8, validation: {max_tokens: 2000}}",
        "topk={k: 8, n_dense_tail: 1, anneal_ratio: 0.5}",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def _whole(tiny, tmp_path_factory):
    dump_dir = tmp_path_factory.mktemp("whole") / "run"
    run_app("apps.train", *tiny, f"dump_dir={dump_dir}")
    return dump_dir


@pytest.fixture
def whole(_whole, tmp_path):
    """An uninterrupted run of one process; a copy that the test may change."""
    shutil.copytree(_whole, tmp_path / "whole")
    return tmp_path / "whole"
