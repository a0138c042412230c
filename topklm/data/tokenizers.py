"""Tokenizers of four kinds behind one small interface: SentencePiece, tiktoken rank files, `tokenizer.json`, bytes.

The names are Meta Lingua's (`sp`, `tiktoken`, `bytes`) plus `hf` for a `tokenizer.json` of Hugging Face. Text is
always encoded as ordinary text: a document that contains "</s>" does not end there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from topklm.errors import ConfigError, DataError
from topklm.optional import require

TokenizerName = Literal["sp", "tiktoken", "hf", "bytes"]
TOKENIZER_NAMES: tuple[TokenizerName, ...] = get_args(TokenizerName)
META = "tokenizer_meta.json"
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer(ABC):
    """Text to token ids and back. Make one with `load_tokenizer` or `open_saved_tokenizer`.

    Attributes: `name` (the kind), `vocab_size` (ids are 0 ... vocab_size - 1), `bos_id` and `eos_id` (None if the
    tokenizer has none), `sha256` (hex; over the kind, the bytes of the defining file, and BOS and EOS where these are
    not in the file): equal hashes mean equal ids for every text.
    """

    name: ClassVar[TokenizerName]
    file_name: ClassVar[str | None] = None
    """Name of the defining file in a saved directory; None if there is none."""
    vocab_size: int
    bos_id: int | None
    eos_id: int | None

    def __init__(self, definition: bytes):
        self._definition = definition
        self.sha256 = hashlib.sha256(self.name.encode() + b"\0" + definition).hexdigest()

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of `text`, with BOS before and EOS after it if asked for.

        Raises `ConfigError` if BOS or EOS is asked for and the tokenizer has none.
        """
        head = [self._required(self.bos_id, "BOS", "add_bos")] if bos else []
        tail = [self._required(self.eos_id, "EOS", "add_eos")] if eos else []
        return head + self._encode(text) + tail

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; BOS, EOS and other special tokens give nothing. Raises `DataError` for an unknown id."""
        return self._decode([self._known(i) for i in ids])

    def piece(self, token_id: int) -> str:
        """Readable text of one token: " the", "<0x0A>" for a byte that is no text by itself, "<s>" for a special."""
        return self._piece(self._known(token_id))

    def save(self, directory: Path) -> None:
        """Write the defining file and `tokenizer_meta.json` into `directory`, for `open_saved_tokenizer`."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.file_name:
            (directory / self.file_name).write_bytes(self._definition)
        (directory / META).write_text(json.dumps(self.meta(), indent=1) + "\n", encoding="utf-8")

    def meta(self) -> dict[str, Any]:
        """name, sha256, vocab_size, bos_id, eos_id: what a manifest says of its tokenizer."""
        return {key: getattr(self, key) for key in ("name", "sha256", "vocab_size", "bos_id", "eos_id")}

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes that each id adds to the text, int64 [V]; 0 for BOS, EOS and other special tokens.

        A piece of several characters has the bytes of them all, a piece that is a part of a character its own bytes:
        along a text they add up to its bytes, but for a space that the tokenizer puts before it (`n_prefix_bytes`) and
        for what it loses. An unknown token counts 1.
        """
        lengths = np.array([self._n_bytes(i) for i in range(self.vocab_size)], np.int64)
        lengths[[i for i in (self.bos_id, self.eos_id) if i is not None]] = 0
        return lengths

    def n_prefix_bytes(self) -> int:
        """Bytes that the pieces of a text have more than the text: 1 where a space is put before it, else 0."""
        return min(1, max(0, sum(map(self._n_bytes, self._encode("a"))) - 1))

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _piece(self, token_id: int) -> str: ...

    @abstractmethod
    def _n_bytes(self, token_id: int) -> int: ...

    def _known(self, token_id: int) -> int:
        if not 0 <= int(token_id) < self.vocab_size:
            raise DataError(
                f"token id {token_id} is not one of this tokenizer's {self.vocab_size} ({self.name}); "
                "the tokens were made with another tokenizer"
            )
        return int(token_id)

    def _required(self, token_id: int | None, what: str, key: str) -> int:
        if token_id is None:
            raise ConfigError(f"the {self.name} tokenizer has no {what} token; set {key}=false")
        return token_id


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte, ids as in Meta Lingua: the byte itself (0-255), BOS 256, EOS 257."""

    name = "bytes"
    vocab_size = 258
    bos_id = 256
    eos_id = 257

    def __init__(self) -> None:
        super().__init__(b"")

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def _piece(self, token_id: int) -> str:
        return {256: "<s>", 257: "</s>"}.get(token_id) or _readable(bytes([token_id]))

    def _n_bytes(self, token_id: int) -> int:
        return int(token_id < 256)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file (`tokenizer.model` of Llama 1, Llama 2 and Mistral)."""

    name = "sp"
    file_name = "tokenizer.model"

    def __init__(self, definition: bytes):
        super().__init__(definition)
        sentencepiece = require("sentencepiece", "topklm")
        if not definition:  # which the library would take
            raise DataError("not a SentencePiece model; the file is empty")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=definition)
        except RuntimeError as error:
            raise DataError(f"not a SentencePiece model ({error}); is it a tiktoken file?") from error
        self.vocab_size = self._model.vocab_size()
        self.bos_id = _id_or_none(self._model.bos_id())
        self.eos_id = _id_or_none(self._model.eos_id())

    def _encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def _piece(self, token_id: int) -> str:
        return self._model.id_to_piece(token_id).replace("\u2581", " ")  # its mark for a space

    def _n_bytes(self, token_id: int) -> int:
        model = self._model
        if model.is_control(token_id) or model.is_unused(token_id):
            return 0
        return 1 if model.is_byte(token_id) or model.is_unknown(token_id) else len(self._piece(token_id).encode())


class TiktokenTokenizer(Tokenizer):
    """A rank file of Llama 3: lines of base64 bytes and rank.

    The file holds neither the split pattern nor the special tokens. Both are Llama 3's, as in Meta Lingua: 256 special
    tokens after the n ranks, BOS (`<|begin_of_text|>`) n + 0, EOS (`<|end_of_text|>`) n + 1.
    """

    name = "tiktoken"
    file_name = "tokenizer.model"
    n_special = 256
    special: ClassVar[dict[int, str]] = {0: "<|begin_of_text|>", 1: "<|end_of_text|>"}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    piece_chars = 400_000
    """Longer texts are encoded in pieces of this many characters, as Meta Lingua does."""

    def __init__(self, definition: bytes):
        super().__init__(definition)
        tiktoken = require("tiktoken", "topklm[data]")
        ranks = _parse_ranks(definition)
        names = {i: self.special.get(i, f"<|reserved_special_token_{i}|>") for i in range(self.n_special)}
        self._n_ranks = len(ranks)
        self._encoding = tiktoken.Encoding(
            name="llama3",
            pat_str=self.pattern,
            mergeable_ranks=ranks,
            special_tokens={name: len(ranks) + i for i, name in names.items()},
        )
        self.vocab_size = len(ranks) + self.n_special
        self.bos_id, self.eos_id = len(ranks), len(ranks) + 1

    def _encode(self, text: str) -> list[int]:
        starts = range(0, len(text), self.piece_chars)
        parts = [self._encoding.encode_ordinary(text[i : i + self.piece_chars]) for i in starts]
        return [i for part in parts for i in part]

    def _decode(self, ids: list[int]) -> str:
        return self._encoding.decode([i for i in ids if i < self._n_ranks])

    def _piece(self, token_id: int) -> str:
        return _readable(self._encoding.decode_single_token_bytes(token_id))

    def _n_bytes(self, token_id: int) -> int:
        return len(self._encoding.decode_single_token_bytes(token_id)) if token_id < self._n_ranks else 0


class HFTokenizer(Tokenizer):
    """A `tokenizer.json` of Hugging Face. Its template, padding and truncation are switched off.

    That file does not say which token is BOS and which EOS. They are taken from `tokenizer_config.json` beside it,
    else from the usual names.
    """

    name = "hf"
    file_name = "tokenizer.json"
    usual_bos = ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>")
    usual_eos = ("<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>")

    def __init__(self, definition: bytes, bos_id: int | None, eos_id: int | None):
        super().__init__(definition + f"\0{bos_id},{eos_id}".encode())
        self._definition = definition
        self._tokenizer = _parse_hf(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # special tokens in a document are ordinary text
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # ids may have holes
        self.bos_id, self.eos_id = bos_id, eos_id

    @classmethod
    def from_file(cls, path: Path) -> HFTokenizer:
        definition = path.read_bytes()
        vocab = _parse_hf(definition).get_vocab()
        beside, named = path.with_name("tokenizer_config.json"), {}
        if beside.is_file():
            try:
                named = json.loads(beside.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DataError(f"{beside} is not valid JSON: {error}") from error
            if not isinstance(named, dict):
                raise DataError(f"{beside} holds no object of settings; restore it, or remove it")

        def find(key: str, usual: tuple[str, ...]) -> int | None:
            token = named.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise DataError(f"{beside}: {key} is {token!r}, not text; correct it, or remove the file")
            candidates = (token,) if key in named else usual
            return next((vocab[name] for name in candidates if name in vocab), None)

        return cls(definition, find("bos_token", cls.usual_bos), find("eos_token", cls.usual_eos))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _piece(self, token_id: int) -> str:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return f"<unused {token_id}>"
        if "\u2581" in token:  # decoding one piece alone would lose its leading space
            return token.replace("\u2581", " ")
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return token if "\ufffd" in text or not text else text

    @cached_property
    def _decoders(self) -> set[str]:
        """Types of the decoders that the definition names, those in a sequence too."""
        decoder = json.loads(self._definition).get("decoder") or {}
        return {str(part.get("type")) for part in (decoder, *decoder.get("decoders", ()))}

    @cached_property
    def _added(self) -> dict[int, Any]:
        return self._tokenizer.get_added_tokens_decoder()

    def _n_bytes(self, token_id: int) -> int:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or (token_id in self._added and self._added[token_id].special):
            return 0
        if "ByteLevel" in self._decoders and token_id not in self._added:
            return len(token)  # each of its characters stands for a byte
        if "ByteFallback" in self._decoders and _BYTE_PIECE.fullmatch(token):
            return 1
        if self._decoders & {"Metaspace", "Replace"}:
            return len(token.replace("\u2581", " ").encode())
        return len(self._decode([token_id]).encode())


def load_tokenizer(name: str, path: str | Path | None = None) -> Tokenizer:
    """The tokenizer of kind `name` (sp, tiktoken, hf, bytes) in the file `path` (not used for bytes).

    For hf, `path` may be the directory that holds `tokenizer.json`. Raises `ConfigError` for an unknown kind, a
    missing file or a missing package, `DataError` for a file that is broken or of another kind.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name not in TOKENIZER_NAMES:
        raise ConfigError(f"tokenizer.name {name!r} is not one of {', '.join(TOKENIZER_NAMES)}")
    if not path:
        raise ConfigError(f"tokenizer.path is needed for the {name} tokenizer: the file that defines it")
    file = Path(path)
    if name == "hf" and file.is_dir():
        file /= "tokenizer.json"
    if file.is_dir():
        raise ConfigError(f"tokenizer.path: {file} is a directory; give the file in it (tokenizer.name is {name})")
    if not file.is_file():
        raise ConfigError(f"tokenizer.path: {file} does not exist (tokenizer.name is {name}); correct the path")
    try:
        if name == "hf":
            return HFTokenizer.from_file(file)
        return (SentencePieceTokenizer if name == "sp" else TiktokenTokenizer)(file.read_bytes())
    except DataError as error:
        raise DataError(f"tokenizer {file}: {error}") from error


def open_saved_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into `directory`. Raises `DataError` if it is missing or changed."""
    path = directory / META
    if not path.is_file():
        raise DataError(f"{path} does not exist; {directory} holds no saved tokenizer, copy it there or prepare again")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        name, sha256, bos_id, eos_id = (meta[key] for key in ("name", "sha256", "bos_id", "eos_id"))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); prepare the data again") from error
    tokenizer: Tokenizer
    if name == "hf":
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise DataError(f"{file} does not exist; prepare the data again")
        tokenizer = HFTokenizer(file.read_bytes(), bos_id, eos_id)
    else:
        try:
            tokenizer = load_tokenizer(name, directory / "tokenizer.model")
        except ConfigError as error:
            raise DataError(f"the tokenizer saved in {directory} cannot be opened: {error}") from error
    if tokenizer.sha256 != sha256:
        raise DataError(f"the tokenizer in {directory} is not the one that was saved there (sha256 differs)")
    return tokenizer


def _id_or_none(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None


def _readable(raw: bytes) -> str:
    """Text if `raw` is printable text, else each byte as <0xNN>."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    return text if text.isprintable() and text else "".join(f"<0x{byte:02X}>" for byte in raw)


def _parse_ranks(definition: bytes) -> dict[bytes, int]:
    """Bytes to rank. Every byte must have a rank (else some text could not be encoded), and ranks must be 0 ... n-1."""
    ranks = {}
    for number, line in enumerate(definition.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DataError(f"line {number} is not 'base64 rank'; is it a SentencePiece model?") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise DataError("the ranks are not 0, 1, 2, ... each once; the file is damaged, copy it again")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(f"{len(missing)} of the 256 single bytes have no rank; the file is damaged, copy it again")
    return ranks


def _parse_hf(definition: bytes) -> Any:
    tokenizers = require("tokenizers", "topklm[data]")
    try:
        return tokenizers.Tokenizer.from_str(definition.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise DataError(
            f"not a tokenizer.json that `tokenizers` can read ({error}); copy it again, or correct tokenizer.name"
        ) from error
