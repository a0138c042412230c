"""Small corpora, what was prepared of them, and interruptions."""

from __future__ import annotations

import hashlib
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np

from topklm.data.prepare_item import ItemWorker
from topklm.data.shards import Manifest


def documents(n: int, seed: int = 0) -> list[str]:
    words = "the state of union is strong and congress shall pass laws for people in every year"
    rng = random.Random(seed)
    return [f"{i}. " + " ".join(rng.choices(words.split(), k=rng.randint(3, 60))) + "\n" for i in range(n)]


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def shard_documents(directory: Path, manifest: Manifest, split: str) -> list[list[int]]:
    """Token ids of each document, read with NumPy alone."""
    found = []
    for shard in manifest.shards:
        if shard.split == split:
            tokens = np.load(directory / split / f"{shard.name}.tokens.npy")
            offsets = np.load(directory / split / f"{shard.name}.offsets.npy")
            found += [tokens[a:b].tolist() for a, b in pairwise(offsets)]
    return found


def tree(directory: Path) -> dict[str, str]:
    """Every file with its hash; lock files left out."""
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Killed(BaseException):
    pass


def interrupt_after(monkeypatch, n_items: int, where: str) -> list[int]:
    """Let the n-th item fail, before it writes or in the middle; the list gets the items that are begun."""
    begun: list[int] = []
    real = getattr(ItemWorker, where)

    def failing(self, item, *args):
        begun.append(item.index)
        if len(begun) > n_items:
            if where == "_write":
                real(self, item, *args)  # everything is written, nothing renamed
            raise Killed
        return real(self, item, *args)

    monkeypatch.setattr(ItemWorker, where, failing)
    return begun
