"""Prepared tokens against genuine Lingua's reading of the same files; skipped where no checkout is on PYTHONPATH."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.corpus import documents, shard_documents, write_jsonl
from tests.unit.data.synthetic import documents as token_documents
from tests.unit.data.synthetic import write_source
from tests.unit.data.test_tokenizers import rank_file
from topklm.data import DataConfig, open_data
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig, PrepareTokenizerConfig
from topklm.data.sources import SourceConfig
from topklm.data.train_tokenizer import TrainTokenizerConfig

TEXTS = [*documents(90), "Größe, naïve, 東京, 🙂\r\n\ttabs  and   spaces ", "</s> <|end_of_text|> is text"]


@pytest.fixture
def lingua():
    """Genuine `lingua.data`."""
    pytest.importorskip("lingua.data", reason="no Meta Lingua on PYTHONPATH", exc_type=ImportError)
    return importlib.import_module("lingua.data")


def read(lingua, root: Path, pattern: str, world_size: int, name: str, path: str | None) -> list[list[int]]:
    """Token ids of the documents that Lingua's ranks read in one pass over the files, rank by rank."""
    found = []
    for rank in range(world_size):
        state = lingua.distribute_data_to_rank(str(root), rank, world_size, pattern)
        lines = lingua.read_jsonl(**state)
        found += [list(ids) for ids, _ in lingua.tokenize(lines, True, True, name, path)]
    return found


@pytest.mark.parametrize("name", ["bytes", "sp", "tiktoken"])
def test_the_documents_and_their_ids_are_linguas(lingua, tmp_path: Path, name: str) -> None:
    root = tmp_path / "shuffled" / "web"
    root.mkdir(parents=True)
    for i in range(4):
        write_jsonl(root / f"web.chunk.{i:02d}.jsonl", TEXTS[i:80:4])
    write_jsonl(root / "web.val.jsonl", TEXTS[80:])
    path = None if name == "bytes" else str(tmp_path / "tokenizer")
    if name == "tiktoken":
        Path(str(path)).write_bytes(rank_file())
    train = TrainTokenizerConfig(vocab_size=330, character_coverage=1.0) if name == "sp" else None
    config = PrepareConfig(
        out_dir=str(tmp_path / "out"), sources={"web": SourceConfig(kind="lingua", path=str(root))}, workers=1,
        tokenizer=PrepareTokenizerConfig(name=name, path=path, train=train), item_bytes=3000,
    )  # fmt: skip
    manifest = prepare(config)["web"]
    for split, pattern, ranks in (("train", "*.chunk.*.jsonl", 4), ("val", "*.val.jsonl", 1)):
        ours = shard_documents(Path(config.out_dir) / "web", manifest, split)
        theirs = read(lingua, root, pattern, ranks, name, path)
        assert len(ours) == (80 if split == "train" else 12)
        assert sorted(ours) == sorted(theirs)
    # What the page says of Lingua: chunks beyond the world size are dropped, and ranks beyond them must be a multiple.
    assert len(read(lingua, root, "*.chunk.*.jsonl", 1, name, path)) == 20
    with pytest.raises(AssertionError):
        read(lingua, root, "*.chunk.*.jsonl", 6, name, path)


def test_weights_of_documents_give_linguas_mixture(lingua, tmp_path: Path) -> None:
    """Lingua's draws among sources of long and of short documents, and the shares of the sequences here."""
    weights = {"long": 1.0, "short": 3.0}
    write_source(tmp_path, "long", token_documents(900, length=30))
    write_source(tmp_path, "short", token_documents(900, 10_000, length=4))
    data = open_data(DataConfig(root_dir=str(tmp_path), sources=weights, seq_len=8, weights_of="documents"))

    def endless(name: str):
        texts = shard_documents(tmp_path / name, data.manifests[name], "train")
        while True:
            yield from (((name, len(ids)), None) for ids in texts)

    drawn = lingua.choose_source(
        {name: endless(name) for name in weights}, dict.fromkeys(weights), "", weights,
        np.random.default_rng(0).bit_generator.state,
    )  # fmt: skip
    tokens = dict.fromkeys(weights, 0)
    for _ in range(20_000):
        (name, n), _ = next(drawn)
        tokens[name] += n
    assert data.shares["long"] == pytest.approx(tokens["long"] / sum(tokens.values()), abs=0.01)
