from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data.corpus import documents, write_jsonl
from topklm.data.prepare_config import PrepareConfig, PrepareTokenizerConfig
from topklm.data.sources import SourceConfig
from topklm.data.train_tokenizer import TrainTokenizerConfig


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    """200 documents, about ten work items, bytes."""
    write_jsonl(tmp_path / "docs.jsonl", documents(200))
    return PrepareConfig(
        out_dir=str(tmp_path / "out"),
        sources={"web": SourceConfig(kind="jsonl", path=str(tmp_path / "docs.jsonl"))},
        tokenizer=PrepareTokenizerConfig(name="bytes"),
        val_fraction=0.2,
        item_bytes=4000,
        max_skipped=0,
        workers=1,
    )


@pytest.fixture
def training(config: PrepareConfig, tmp_path: Path) -> PrepareConfig:
    train = TrainTokenizerConfig(vocab_size=330, character_coverage=1.0)
    path = str(tmp_path / "made" / "tokenizer.model")
    return replace(config, tokenizer=PrepareTokenizerConfig(name="sp", path=path, train=train))
