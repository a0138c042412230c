"""The held-out split: a rule that looks at a document's text and at nothing else, or the files of the source."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

BY_FILES: dict[str, Any] = {"rule": "val if the document is in a file *.val.jsonl"}
"""What the manifest records where Meta Lingua's files say which documents are held out."""


def split_of(text: str, val_fraction: float, salt: str) -> Literal["train", "val"]:
    """The split of a document: val if the hash of its text falls into the lowest `val_fraction` of all hashes.

    Equal texts are in the same split wherever they come from, and a document keeps its split when others are
    added. A larger `val_fraction` only moves documents from train to val.
    """
    digest = hashlib.sha256(f"{salt}\0{text}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < int(val_fraction * 2**64) else "train"


def split_rule(val_fraction: float, salt: str) -> dict[str, Any]:
    """The rule as the manifest records it."""
    return {
        "rule": "val if the first 8 bytes (big-endian) of sha256(salt, NUL, text) < val_fraction * 2**64",
        "val_fraction": val_fraction,
        "salt": salt,
    }
