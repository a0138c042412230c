"""Training a SentencePiece BPE model, shaped like Llama's: byte fallback, split digits, text kept as it is."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from topklm.errors import ConfigError, Problem

SMALLEST_VOCAB = 3 + 256 + 1
"""unk, bos, eos, the 256 bytes, and at least one piece."""


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """How to train a SentencePiece BPE model."""

    vocab_size: int = 4096
    """Number of pieces, with unk (0), bos (1), eos (2) and the 256 bytes."""
    max_bytes: int = 100_000_000
    """Train on at most this many UTF-8 bytes of training documents, shared equally by the sources. 50 MB take
    a few seconds and about 200 MB of memory."""
    character_coverage: float = 0.9995
    """Share of the characters that get a piece of their own; the rest is written in bytes."""

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size < SMALLEST_VOCAB:
            yield Problem("vocab_size", f"{self.vocab_size} is less than {SMALLEST_VOCAB} (256 bytes are pieces)")
        if self.max_bytes < 1:
            yield Problem("max_bytes", f"{self.max_bytes} is not positive")
        if not 0.9 <= self.character_coverage <= 1:
            yield Problem("character_coverage", f"{self.character_coverage} is not between 0.9 and 1")


def train_sentencepiece(texts: Iterable[str], config: TrainTokenizerConfig) -> bytes:
    """Bytes of a SentencePiece BPE model trained on `texts`; the same texts in the same order give the same bytes.

    Text is not normalised, so decoding gives the text back, except that U+2581, SentencePiece's own mark for a
    space, becomes a space. Raises `ConfigError` if there is too little text for `vocab_size` pieces, and whatever
    iterating over `texts` raises.
    """
    import sentencepiece

    interrupted: list[BaseException] = []

    def lines() -> Iterator[str]:
        try:
            for text in texts:
                yield from _lines(text)
        except BaseException as error:  # which the library would turn into a RuntimeError of its own
            interrupted.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=_LINE_CHARS * 4,  # longer ones would be left out
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if interrupted:
            raise interrupted[0] from None
        raise ConfigError(
            f"tokenizer.train: no SentencePiece model of {config.vocab_size} pieces can be trained on these "
            f"documents; a smaller vocab_size or more text may help ({error})"
        ) from error
    return model.getvalue()


_LINE_CHARS = 1 << 16


def _lines(text: str) -> Iterator[str]:
    """Lines without their ends, the unit that SentencePiece learns from; very long ones in pieces."""
    for line in text.split("\n"):
        for start in range(0, len(line), _LINE_CHARS):
            yield line[start : start + _LINE_CHARS]
