"""What is in a SentencePiece model file, read without protobuf.

The file is one protobuf message, `ModelProto` (github.com/google/sentencepiece, src/sentencepiece_model.proto). The
library itself tells neither its normaliser nor the type of every piece; protobuf is not installed with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from topklm.errors import DataError


class PieceType(IntEnum):
    """`ModelProto.SentencePiece.Type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, kw_only=True)
class SentencePieceFile:
    """The parts that decide the ids of a text."""

    pieces: list[Piece]
    model_type: int
    """`TrainerSpec.ModelType`: 1 unigram, 2 BPE, 3 word, 4 char."""
    byte_fallback: bool
    """Whether unknown characters are written in bytes."""
    whitespace_as_suffix: bool
    """Whether the mark of a space ends a word instead of beginning it."""
    charsmap: bytes
    """Compiled rules of the normaliser; empty: text is taken as it is."""
    add_dummy_prefix: bool
    """Whether a space is put before the text."""
    remove_extra_whitespaces: bool
    """Whether spaces at both ends are dropped and runs of them made one."""
    escape_whitespaces: bool
    """Whether a space is written as U+2581."""


def parse(definition: bytes) -> SentencePieceFile:
    """Read the bytes of a model file. Raises `DataError` for what is none."""
    try:
        fields = list(_fields(definition))
        trainer = dict(_fields(next((value for number, value in fields if number == 2), b"")))
        normalizer = dict(_fields(next((value for number, value in fields if number == 3), b"")))
        return SentencePieceFile(
            pieces=[_piece(value) for number, value in fields if number == 1],
            model_type=trainer.get(3, 1),
            byte_fallback=bool(trainer.get(35, 0)),
            whitespace_as_suffix=bool(trainer.get(24, 0)),
            charsmap=normalizer.get(2, b""),
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
            escape_whitespaces=bool(normalizer.get(5, 1)),
        )
    except (IndexError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise DataError(f"not a SentencePiece model ({error})") from error


def _piece(message: bytes) -> Piece:
    fields = dict(_fields(message))
    return Piece(fields.get(1, b"").decode(), fields.get(2, 0.0), PieceType(fields.get(3, 1)))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field: whole numbers, fp32 numbers, and bytes for text and inner messages."""
    at = 0
    value: Any
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            (value,), at = struct.unpack("<d" if kind == 1 else "<f", message[at : at + size]), at + size
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(message):
            raise ValueError("it ends inside a field")
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next field begins."""
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
