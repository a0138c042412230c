"""Token shards: the format of a prepared source, and its writer. `token_array` reads it.

A prepared source is a directory:

    manifest.json                   what is in it; written last, so its presence says that the rest is complete
    tokenizer/                      the tokenizer's file and tokenizer_meta.json
    skipped.jsonl                   documents that were left out, with the reason
    {train,val}/NAME.tokens.npy     uint16 or uint32 [n_tokens]: the documents' tokens, one after the other
    {train,val}/NAME.offsets.npy    int64 [n_documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]

The order of the shards in the manifest is the order of the tokens. Both arrays are plain NumPy files (version 1.0,
little-endian), so `numpy.load` reads them without this package.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, get_args

import numpy as np

from topklm.config import build
from topklm.errors import ConfigError, DataError, Problem

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OFFSETS_DTYPE: np.dtype = np.dtype("<i8")
_HEADER_BYTES = 128


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard, as the manifest lists it."""

    split: Split
    """train or val: the folder that the shard lies in."""
    name: str
    """File name without `.tokens.npy` and `.offsets.npy`."""
    n_tokens: int
    """Tokens in it, BOS and EOS included."""
    n_documents: int
    """Documents in it; none is divided between shards."""
    n_bytes: int
    """UTF-8 bytes of the documents' text (for bits per byte and bytes per token)."""
    sha256: str
    """Hash of the tokens file, header included."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared source holds and how it was made."""

    format_version: int = FORMAT_VERSION
    """`FORMAT_VERSION` of the program that wrote it."""
    source: str
    """Name of the source, as `data.sources` of a training configuration calls it."""
    dtype: Literal["uint16", "uint32"]
    """Type of the token ids on disk."""
    tokenizer: dict[str, Any | None]
    """name, sha256, vocab_size, bos_id, eos_id of the tokenizer in `tokenizer/`."""
    add_bos: bool
    """Each document begins with BOS."""
    add_eos: bool
    """Each document ends with EOS."""
    split: dict[str, Any | None]
    """The rule that divided the documents into train and val."""
    origin: dict[str, Any | None]
    """The configuration of the source: where the documents came from."""
    counts: dict[str, Any | None]
    """Totals: documents, tokens and bytes of each split."""
    skipped: dict[str, int]
    """Documents that were left out, by reason; `skipped.jsonl` lists them."""
    shards: list[ShardInfo]
    """All shards of both splits, in the order of the tokens."""

    def problems(self) -> Iterator[Problem]:
        for i, shard in enumerate(self.shards):
            if Path(shard.name).name != shard.name:  # it may come from elsewhere
                yield Problem(f"shards[{i}].name", f"{shard.name!r} is no name of a file in this directory")

    def fingerprint(self) -> str:
        """sha256 (hex) over what decides the batches: tokenizer, dtype and tokens; not over where they came from."""
        decides = {
            "tokenizer": self.tokenizer.get("sha256"),
            "dtype": self.dtype,
            "shards": [[s.split, s.n_tokens, s.n_documents, s.sha256] for s in self.shards],
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def n_tokens(self, split: Split) -> int:
        """Tokens in one split."""
        return sum(shard.n_tokens for shard in self.shards if shard.split == split)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `directory`, all or nothing."""
    temporary = directory / f"{MANIFEST}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1, ensure_ascii=False)
        _sync(file.fileno(), file.flush)
    os.replace(temporary, directory / MANIFEST)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a prepared source. Raises `DataError` if it is missing, broken, or of a newer format."""
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{directory} is not a prepared source ({MANIFEST} is missing, or its preparation was not finished); "
            "make it with: python -m apps.prepare config=FILE"
        )
    again = "prepare the source again: python -m apps.prepare config=FILE"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # broken JSON and broken UTF-8 alike
        raise DataError(f"{path} is damaged ({error}); {again}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version}, this program reads up to {FORMAT_VERSION}; "
            "update topklm, or prepare the source with this version"
        )
    try:
        if not isinstance(data, dict) or not isinstance(version, int):
            raise TypeError("no format_version")
        return build(Manifest, data)
    except (ConfigError, TypeError) as error:  # TypeError: fields that are not there
        why = "; ".join(map(str, error.problems)) if isinstance(error, ConfigError) else error
        raise DataError(f"{path} is not a manifest of format {FORMAT_VERSION} ({why}); {again}") from error


class ShardWriter:
    """Writes documents into shards of about `max_tokens` tokens, one after the other.

    Tokens go to disk as they come; only the offsets of the current shard are held in memory. A shard's files
    have a temporary name until they are complete. A document is never divided: a shard with a single longer
    document may exceed `max_tokens`. As a context manager it closes itself, or discards the open shard after
    an exception.

    Parameters: `directory` of the prepared source, `split`, `prefix` of the shard names
    (`{prefix}_{i:05d}`), `dtype` (`uint16` or `uint32`), `max_tokens` in a shard.
    """

    def __init__(self, directory: Path, split: str, prefix: str, dtype: str, max_tokens: int):
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        if dtype not in DTYPES:
            raise DataError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if max_tokens < 1:
            raise DataError(f"a shard needs room for at least one token, got max_tokens={max_tokens}")
        self._folder = Path(directory) / split
        self._folder.mkdir(parents=True, exist_ok=True)
        self._split: Split = "train" if split == "train" else "val"
        self._prefix, self._dtype, self._max_tokens = prefix, DTYPES[dtype], max_tokens
        self._done: list[ShardInfo] = []
        self._file: BinaryIO | None = None
        self._offsets = array("q", [0])
        self._n_bytes = 0

    def add(self, ids: Sequence[int] | np.ndarray, n_bytes: int) -> None:
        """Append one document of token `ids`, whose text has `n_bytes` UTF-8 bytes.

        Raises `DataError` for ids that the dtype cannot hold and for a document without any; nothing is written then.
        """
        values = np.asarray(ids)
        if not values.size:
            raise DataError("a document without tokens; leave it out and count it as skipped")
        if values.dtype.kind not in "iu":
            raise DataError(f"token ids must be whole numbers, got an array of {values.dtype}")
        limit = np.iinfo(self._dtype).max
        if int(values.min()) < 0 or int(values.max()) > limit:
            wrong = values[(values < 0) | (values > limit)][0]
            raise DataError(
                f"token id {wrong} does not fit into {self._dtype.name}; use uint32, or check the tokenizer"
            )
        if self._offsets[-1] and self._offsets[-1] + values.size > self._max_tokens:
            self._finish_shard()
        if self._file is None:
            self._file = open(self._temporary("tokens"), "wb")  # noqa: SIM115 (lives as long as the shard)
            self._file.write(bytes(_HEADER_BYTES))  # the header needs the length, so it is written at the end
        self._file.write(values.astype(self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + values.size)
        self._n_bytes += n_bytes

    def close(self) -> list[ShardInfo]:
        """Finish the last shard; all shards written, in order. An empty shard leaves no file."""
        if self._file is not None:
            self._finish_shard()
        return list(self._done)

    def discard(self) -> None:
        """Drop the shard that is being written; finished ones stay."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._temporary("tokens").unlink(missing_ok=True)
            self._temporary("offsets").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _name(self) -> str:
        return f"{self._prefix}_{len(self._done):05d}"

    def _temporary(self, what: str) -> Path:
        return self._folder / f"{self._name()}.{what}.npy.tmp"

    def _finish_shard(self) -> None:
        assert self._file is not None
        n_tokens, name = self._offsets[-1], self._name()
        self._file.seek(0)
        self._file.write(_npy_header(self._dtype, n_tokens))
        _sync(self._file.fileno(), self._file.flush)
        self._file.close()
        with open(self._temporary("offsets"), "wb") as file:
            file.write(_npy_header(OFFSETS_DTYPE, len(self._offsets)))
            file.write(np.asarray(self._offsets, dtype=OFFSETS_DTYPE).tobytes())
            _sync(file.fileno(), file.flush)
        info = ShardInfo(
            split=self._split,
            name=name,
            n_tokens=n_tokens,
            n_documents=len(self._offsets) - 1,
            n_bytes=self._n_bytes,
            sha256=file_sha256(self._temporary("tokens")),
        )
        for what in ("offsets", "tokens"):
            os.replace(self._temporary(what), self._folder / f"{name}.{what}.npy")
        self._done.append(info)
        self._file, self._offsets, self._n_bytes = None, array("q", [0]), 0


def shard_files(shard: ShardInfo, dtype: str) -> dict[str, int]:
    """The files of a shard, relative to the directory of the source, and their sizes in bytes."""
    stem = f"{shard.split}/{shard.name}"
    return {
        f"{stem}.tokens.npy": _HEADER_BYTES + shard.n_tokens * DTYPES[dtype].itemsize,
        f"{stem}.offsets.npy": _HEADER_BYTES + (shard.n_documents + 1) * OFFSETS_DTYPE.itemsize,
    }


def file_sha256(path: Path) -> str:
    """Hash (hex) of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _npy_header(dtype: np.dtype, length: int) -> bytes:
    """Header of a one-dimensional NumPy file, format 1.0, always `_HEADER_BYTES` long."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({length},), }}"
    size = _HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + text.ljust(size - 1).encode("latin1") + b"\n"


def _sync(descriptor: int, flush: Any) -> None:
    flush()
    os.fsync(descriptor)
