"""The held-out tokens of prepared sources, and the text that they stand for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from topklm.data.shards import MANIFEST, read_manifest
from topklm.data.token_array import TokenArray
from topklm.data.tokenizers import Tokenizer, open_saved_tokenizer
from topklm.errors import DataError

PREPARE = "python -m apps.prepare config=FILE"
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The held-out part of one or more sources, all of one tokenizer. `TrainData.held_out` and `open_held_out` make it.

    Bytes are those of the documents' text in UTF-8. A token's are those of its piece, so that a character that is
    divided between tokens is divided between their bytes, and a space that a tokenizer puts before a document counts
    nowhere. BOS and EOS have none: they are not text.
    """

    arrays: dict[str, TokenArray]
    """Tokens by source, in sorted order."""
    tokenizer_dir: Path
    """Directory of their tokenizer."""

    @property
    def names(self) -> list[str]:
        """The sources; their place in this list is their number in batches."""
        return list(self.arrays)

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer that the tokens were made with."""
        return str(next(iter(self.arrays.values())).manifest.tokenizer["sha256"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises `DataError` if it is not stored beside the tokens, `ConfigError` if its package is missing."""
        return open_saved_tokenizer(self.tokenizer_dir)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over what decides which tokens are scored: those of every held-out shard, and the tokenizer."""
        shards = {name: [[s.n_tokens, s.n_documents, s.sha256] for s in a.shards] for name, a in self.arrays.items()}
        return hashlib.sha256(json.dumps([self.tokenizer_sha256, shards], sort_keys=True).encode()).hexdigest()

    @cached_property
    def offsets(self) -> dict[str, np.ndarray]:
        """Where each document begins, by source: int64 [n_documents + 1]."""
        return {name: array.document_offsets() for name, array in self.arrays.items()}

    @cached_property
    def first_document(self) -> np.ndarray:
        """Number of the first document of each source where all are counted together: int64 [n_sources + 1]."""
        return np.cumsum([0, *(array.n_documents for array in self.arrays.values())])

    def documents(self, source: int, positions: np.ndarray) -> np.ndarray:
        """The document of each position in a source's tokens, counted over all sources; int64, like `positions`."""
        offsets = self.offsets[self.names[source]]
        return np.searchsorted(offsets, positions, side="right") - 1 + self.first_document[source]

    def is_text(self, tokens: np.ndarray) -> np.ndarray:
        """Which of these ids stand for text: all but BOS and EOS. bool, like `tokens`."""
        return ~np.isin(tokens, [i for i in (self.tokenizer.bos_id, self.tokenizer.eos_id) if i is not None])

    def n_bytes(self, source: int, positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Bytes of text of each token, int64 like `tokens`, which are those at `positions` of a source."""
        name = self.names[source]
        lengths = self._byte_lengths[tokens]
        if self._prefix:
            offsets = self.offsets[name]
            begins = offsets[np.searchsorted(offsets, positions, side="right") - 1]
            is_first = positions - begins == int(self.arrays[name].manifest.add_bos)
            lengths = lengths - np.where(is_first, np.minimum(self._prefix, lengths), 0)
        return lengths

    @cached_property
    def bytes_scale(self) -> dict[str, float]:
        """By source: bytes of the documents over the bytes of all their tokens. 1 where the tokenizer loses nothing.

        Other than 1 where it normalises, has unknown tokens, or cannot tell a leading space from the one that it adds.
        Reads all held-out tokens once.
        """
        scale = {}
        for source, (name, array) in enumerate(self.arrays.items()):
            total = 0
            for start in range(0, len(array), _CHUNK):
                positions = np.arange(start, min(start + _CHUNK, len(array)))
                total += int(self.n_bytes(source, positions, array.read(start, int(positions[-1]) + 1)).sum())
            scale[name] = sum(shard.n_bytes for shard in array.shards) / total if total else 1.0
        return scale

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        return self.tokenizer.byte_lengths()

    @cached_property
    def _prefix(self) -> int:
        return self.tokenizer.n_prefix_bytes()


def open_held_out(root_dir: str | Path, sources: Sequence[str] | None = None) -> HeldOut:
    """Open the held-out part of prepared sources: those named, or all that are in `root_dir`.

    Raises one `DataError` with everything that is wrong, sources of different tokenizers among it.
    """
    root = Path(root_dir)
    names = sorted(sources or (path.parent.name for path in root.glob(f"*/{MANIFEST}")))
    problems = [] if names else [f"{root} holds no prepared source"]
    arrays = {}
    for name in names:
        try:
            arrays[name] = TokenArray(root / name, read_manifest(root / name), "val")
        except DataError as error:
            problems.append(str(error))
    hashes = {name: str(array.manifest.tokenizer.get("sha256")) for name, array in arrays.items()}
    if len(set(hashes.values())) > 1:
        shown = ", ".join(f"{name} {sha[:12]}" for name, sha in hashes.items())
        problems.append(f"the sources have different tokenizers ({shown}); evaluate them one after the other")
    if arrays and not any(len(array) > 1 for array in arrays.values()):
        problems.append(f"no source in {root} has held-out tokens; prepare it with val_fraction above 0: {PREPARE}")
    if problems:
        raise DataError("held-out text:\n  - " + "\n  - ".join(problems))
    return HeldOut(arrays=arrays, tokenizer_dir=root / names[0] / "tokenizer")
