"""Configuration of a preparation: documents to token shards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from topklm.data.sources import SourceConfig
from topklm.data.tokenizers import TokenizerName
from topklm.data.train_tokenizer import TrainTokenizerConfig
from topklm.errors import Problem


@dataclass(frozen=True, kw_only=True)
class PrepareTokenizerConfig:
    """The tokenizer: an existing file, or one to be trained."""

    name: TokenizerName = "sp"
    """sp (SentencePiece), tiktoken (Llama 3's rank file), hf (tokenizer.json) or bytes."""
    path: str | None = None
    """The file that defines it; a trained model is written there. Not used for bytes."""
    train: TrainTokenizerConfig | None = None
    """If there is no file at `path`: train a SentencePiece BPE model on the training documents."""

    def problems(self) -> Iterator[Problem]:
        if self.name != "bytes" and not self.path:
            yield Problem("path", f"is missing; the tokenizer {self.name} is read from a file")
        if self.name == "bytes" and self.path:
            yield Problem("path", "has no meaning for the tokenizer bytes; remove it or change tokenizer.name")
        if self.train is not None and self.name != "sp":
            yield Problem("train", f"trains a SentencePiece model (name=sp), not {self.name}; set train=null")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Everything that decides the shards, then how to make them."""

    out_dir: str = ""
    """Each source becomes the directory `out_dir/<source>`; this is `data.root_dir` of a training configuration."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """name: {kind: hf | parquet | jsonl | lingua | text | package, ...}. By kind: hf: path, name, hf_split, revision,
    data_files; parquet, jsonl, text: path, glob; lingua: path; package: package, glob; and text_field (default: text,
    then content), id_field."""
    tokenizer: PrepareTokenizerConfig = field(default_factory=PrepareTokenizerConfig)
    """One tokenizer for all sources."""
    add_bos: bool = True
    """Begin each document with BOS."""
    add_eos: bool = True
    """End each document with EOS."""
    val_fraction: float = 0.01
    """Share of the documents that is held out, chosen by a hash of the text. Not used for sources of the kind lingua
    that have *.val.jsonl: the documents of these are held out."""
    split_salt: str = "topklm"
    """Another salt holds out other documents."""
    max_document_bytes: int = 100_000_000
    """Longer documents count as bad ones. One document per worker is held in memory."""
    item_bytes: int = 67_108_864
    """Input bytes in a work item: the unit of parallel work and of resuming. An item has shards of its own."""
    shard_tokens: int = 134_217_728
    """A shard ends before it has more tokens than this; no document is divided."""
    max_skipped: int | float = 0.01
    """How many bad documents may be skipped in each source: a number (10), or a share (0.01) of its documents."""
    workers: int = 0
    """Processes; 0 means one per CPU core. The result does not depend on it."""
    overwrite: bool = False
    """Throw away what is in `out_dir` of these sources, and a tokenizer that was trained for it, and start again."""

    def problems(self) -> Iterator[Problem]:
        if not self.out_dir:
            yield Problem("out_dir", "is missing; the directory for the token shards")
        if not self.sources:
            yield Problem(
                "sources", "is empty; give at least one, such as sources.web.kind=jsonl sources.web.path=FILE"
            )
        for name in self.sources:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.startswith("tokenizer"):
                yield Problem(
                    f"sources.{name}",
                    "cannot be the name of a source: it names a directory; use letters, digits, _ . - "
                    "and do not begin with 'tokenizer'",
                )
        if not 0 <= self.val_fraction < 1:
            yield Problem("val_fraction", f"{self.val_fraction} is not at least 0 and below 1")
        for key in ("max_document_bytes", "item_bytes", "shard_tokens"):
            if getattr(self, key) < 1:
                yield Problem(key, f"{getattr(self, key)} is not positive")
        if self.workers < 0:
            yield Problem("workers", f"{self.workers} is negative; 0 means one per CPU core")
        # Written so that NaN, which would mean no limit, is refused.
        if not 0 <= self.max_skipped <= (1 if isinstance(self.max_skipped, float) else math.inf):
            yield Problem(
                "max_skipped", f"{self.max_skipped} is neither a number of documents nor a share from 0.0 to 1.0"
            )
