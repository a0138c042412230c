"""Small prepared sources with known tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topklm.data import DataConfig, Manifest, ShardWriter, Tokenizer, TrainData, open_data, write_manifest
from topklm.data.split import split_rule
from topklm.data.tokenizers import ByteTokenizer

VOCAB = 60_000


def documents(n_tokens: int, first: int = 0, length: int = 7) -> list[np.ndarray]:
    """Documents of 1 ... 2 * length - 1 tokens that count upwards from `first`."""
    rng, made, total = np.random.default_rng(first), [], 0
    while total < n_tokens:
        n = min(int(rng.integers(1, 2 * length)), n_tokens - total)
        made.append(np.arange(first + total, first + total + n))
        total += n
    return made


def write_source(
    root: Path,
    name: str,
    train: Sequence[Sequence[int] | np.ndarray],
    val: Sequence[Sequence[int] | np.ndarray] = (),
    *,
    max_tokens: int = 50,
    dtype: str = "uint16",
    sha256: str = "t" * 64,
    split: tuple[float, str] = (0.1, "salt"),
    tokenizer: Tokenizer | None = None,
    n_bytes: Callable[[Sequence[int] | np.ndarray], int] = lambda ids: 3 * len(ids),
    add_bos: bool = False,
) -> Manifest:
    """Documents of token ids as a prepared source. Without a `tokenizer` its record is made up, and so is its hash."""
    shards = []
    for part, texts in (("train", train), ("val", val)):
        with ShardWriter(root / name, part, "part", dtype, max_tokens) as writer:
            for ids in texts:
                writer.add(ids, n_bytes=n_bytes(ids))
        shards += writer.close()
    made_up = {"name": "bytes", "sha256": sha256, "vocab_size": VOCAB, "bos_id": None, "eos_id": None}
    record: dict[str, Any] = tokenizer.meta() if tokenizer else made_up
    manifest = Manifest(
        source=name, dtype=dtype, tokenizer=record, add_bos=add_bos, add_eos=False,
        split=split_rule(*split), origin={"path": "somewhere"}, counts={}, skipped={}, shards=shards,
    )  # fmt: skip
    write_manifest(root / name, manifest)
    (tokenizer or ByteTokenizer()).save(root / name / "tokenizer")
    return manifest


def two_sources(root: Path, *, seq_len: int = 8, **config: Any) -> TrainData:
    """`a`: tokens 0 ... 699 and 7 held-out documents' worth of 20000 ...; `b`: tokens 10000 ... 10299 and 30000 ..."""
    write_source(root, "a", documents(700), documents(101, 20_000))
    write_source(root, "b", documents(300, 10_000), documents(30, 30_000))
    return open_data(
        DataConfig(root_dir=str(root), sources={"b": 1.0, "a": 3.0}, seq_len=seq_len, **{"seed": 5, **config})
    )
