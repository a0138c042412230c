"""Our tokenizers as a fast tokenizer of Hugging Face: the same ids for the same text, checked.

`tokenizer.json` is built with the `tokenizers` library, for which each kind of ours is a combination of its parts.
Text is encoded as ordinary text there too (`split_special_tokens`): a document that contains "</s>" does not end there.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from topklm.data import Tokenizer
from topklm.data.tokenizers import TiktokenTokenizer
from topklm.errors import DataError
from topklm.export.sentencepiece_file import PieceType, SentencePieceFile, parse
from topklm.optional import require

SPACE = "\u2581"
"""SentencePiece's mark for a space."""

HARD_TEXTS = (
    "", " ", "  ", "\n", "\n\n\n", "\t", "a", " a", "a ", "  two  spaces   three ", "line\nline\r\nline\n\n  end\n",
    "\u00a0no-break\u2003em\u3000ideographic", "Don't, WON'T; it's 1234567.89 + 10%!", "----- ===== ..... ((((()))))",
    "x" * 300, "ab" * 150, " " * 100, "naïve façade Ærøskøbing", "ﬁ ligature, ① ½ Å", "e\u0301 combining",
    "漢字かな交じり文、テスト。", "Привет, мир! Γεια", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🇩🇪 👍🏽", "<s>", "</s> in a text</s>", "<unk><0x0A><pad>",
    "<|begin_of_text|>x<|end_of_text|><|endoftext|>", "\u2581under\u2581score",
    "\x00\x01\x7f\x85\u200b\ufeff\ufffd", "def f(x):\n\treturn {'a': [x, 1e-5]}  # 🙂\n",
)  # fmt: skip
"""Texts on which two implementations of a tokenizer are likely to differ."""


def fast_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` with the ids of `tokenizer`; no BOS, padding or truncation.

    Raises `DataError` for a SentencePiece model that has no counterpart there (neither BPE nor unigram).
    """
    require("tokenizers", "topklm[hf]")
    if tokenizer.name == "bytes":
        return _bytes()
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(Path(directory))
        definition = (Path(directory) / str(tokenizer.file_name)).read_bytes()
    if tokenizer.name == "hf":
        return _hf(definition)
    if isinstance(tokenizer, TiktokenTokenizer):
        return _tiktoken(tokenizer, definition)
    return _sentencepiece(parse(definition))


def write_tokenizer(tokenizer: Tokenizer, directory: Path, *, add_bos: bool, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` loads without code of ours.

    With `add_bos` the tokenizer begins a text with BOS unless it is told otherwise (`add_special_tokens=False`).
    Padding is on the left, with EOS, or BOS where there is none (the attention mask tells it from the text).
    """
    processors = require("tokenizers", "topklm[hf]").processors
    fast = fast_tokenizer(tokenizer)
    bos, eos = (None if i is None else fast.id_to_token(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    begins = [bos] if add_bos and bos is not None else []
    # Also where nothing is added: a tokenizer.json of the kind hf may bring a template of its own.
    fast.post_processor = processors.TemplateProcessing(
        single=[*begins, "$A"],
        pair=[*begins, "$A", *(f"{token}:1" for token in begins), "$B:1"],
        special_tokens=[(token, fast.token_to_id(token)) for token in begins],
    )
    fast.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": eos if eos is not None else bos,
        "add_bos_token": bool(begins),
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],  # no token_type_ids, which generate would refuse
        "model_max_length": max_length,
    }
    config = {key: value for key, value in config.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def check_tokenizer(tokenizer: Tokenizer, directory: Path, texts: Iterable[str], *, add_bos: bool) -> int:
    """Compare the tokenizer that transformers loads from `directory` with ours, on `HARD_TEXTS` and `texts`.

    Ids, with and without BOS. Returns the number of texts. Raises `DataError` that shows the first text that differs.
    """
    transformers = require("transformers", "topklm[hf]")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))
    theirs.model_max_length = sys.maxsize  # which is advice, and a warning
    n = 0
    for n, text in enumerate((*HARD_TEXTS, *texts), 1):  # noqa: B007
        _same(text, tokenizer.encode(text), theirs.encode(text, add_special_tokens=False))
        _same(text, tokenizer.encode(text, bos=add_bos and tokenizer.bos_id is not None), theirs.encode(text))
    return n


def _same(text: str, ours: list[int], theirs: list[int]) -> None:
    if ours == theirs:
        return
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"
    raise DataError(
        f"the exported tokenizer differs from the model's: ids from place {at} on, {ours[at : at + 8]} here, "
        f"{theirs[at : at + 8]} there, for the text {shown!r}. tokenizer=false exports the model without it"
    )


def _bytes() -> Any:
    tokenizers = require("tokenizers", "topklm[hf]")
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: b for b, c in _byte_chars().items()}, merges=[]))
    fast.add_special_tokens(["<s>", "</s>"])  # 256, 257
    return _on_bytes(fast, None)


def _hf(definition: bytes) -> Any:
    fast = require("tokenizers", "topklm[hf]").Tokenizer.from_str(definition.decode())
    fast.no_padding()
    fast.no_truncation()
    return fast


def _tiktoken(tokenizer: TiktokenTokenizer, ranks: bytes) -> Any:
    tokenizers = require("tokenizers", "topklm[hf]")
    chars = _byte_chars()
    lines = (line.split() for line in ranks.splitlines())
    vocab = {"".join(chars[byte] for byte in base64.b64decode(token)): int(rank) for token, rank in lines}
    # tiktoken looks a word up whole before it merges anything: ignore_merges.
    model = tokenizers.models.BPE(vocab=vocab, merges=_merges(vocab), ignore_merges=True)
    fast = tokenizers.Tokenizer(model)
    fast.add_special_tokens([tokenizer.piece(i) for i in range(len(vocab), tokenizer.vocab_size)])
    return _on_bytes(fast, tokenizer.pattern)


def _on_bytes(fast: Any, pattern: str | None) -> Any:
    """A tokenizer whose characters stand for bytes, split by `pattern` first."""
    tokenizers = require("tokenizers", "topklm[hf]")
    pre, levels = (
        tokenizers.pre_tokenizers,
        [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
    )
    if pattern is not None:
        levels.insert(0, pre.Split(tokenizers.Regex(pattern), behavior="isolated"))
    fast.pre_tokenizer = pre.Sequence(levels)
    fast.decoder = tokenizers.decoders.ByteLevel()
    return fast


def _sentencepiece(file: SentencePieceFile) -> Any:
    tokenizers = require("tokenizers", "topklm[hf]")
    if file.model_type not in (1, 2) or file.whitespace_as_suffix:
        raise DataError(
            "this SentencePiece model is neither unigram nor BPE, or marks spaces at the end of words; `tokenizers` "
            "has nothing like it. tokenizer=false exports the model without its tokenizer"
        )
    by_type: dict[PieceType, list[str]] = {kind: [] for kind in PieceType}
    for piece in file.pieces:
        by_type[piece.type].append(piece.text)
    defined, reserved = by_type[PieceType.USER_DEFINED], [*by_type[PieceType.UNKNOWN], *by_type[PieceType.CONTROL]]
    if file.model_type == 2:
        model = tokenizers.models.BPE(
            vocab={piece.text: i for i, piece in enumerate(file.pieces)},
            merges=_merges({piece.text: -piece.score for piece in file.pieces if piece.type is PieceType.NORMAL}),
            unk_token=reserved[0],
            fuse_unk=True,
            byte_fallback=file.byte_fallback,
            ignore_merges=bool(defined),  # a user-defined piece is a word of its own, and no merges lead to it
        )
    else:
        model = tokenizers.models.Unigram(
            [(piece.text, piece.score) for piece in file.pieces],
            unk_id=[piece.type for piece in file.pieces].index(PieceType.UNKNOWN),
            byte_fallback=file.byte_fallback,
        )
    fast = tokenizers.Tokenizer(model)
    fast.add_special_tokens(reserved)
    fast.normalizer = _normalizer(file)
    if defined or file.model_type == 1:
        fast.pre_tokenizer = _words(defined, reserved, whole=file.model_type == 2)
    decoders = tokenizers.decoders
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.add_dummy_prefix:
        parts.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(parts)
    return fast


def _words(defined: list[str], reserved: list[str], whole: bool) -> Any:
    """Makes user-defined pieces words of their own, and divides text that only looks like a reserved piece.

    A unigram model would take the text "</s>" for EOS and "<0x0A>" for a byte wherever they stand; a BPE model that
    looks words up first, where they are the `whole` word.
    """
    tokenizers = require("tokenizers", "topklm[hf]")
    ends = (r"\A", r"\z") if whole else ("", "")
    looks = [f"{re.escape(text[0])}(?={re.escape(text[1:])}{ends[1]})" for text in reserved if len(text) > 1]
    patterns = ["|".join(f"{ends[0]}{look}" for look in (*looks, f"<(?=0x[0-9A-F]{{2}}>{ends[1]})"))]
    if defined:
        patterns.insert(0, "|".join(re.escape(text) for text in sorted(defined, key=len, reverse=True)))
    split = tokenizers.pre_tokenizers.Split
    return tokenizers.pre_tokenizers.Sequence([split(tokenizers.Regex(p), behavior="isolated") for p in patterns])


def _normalizer(file: SentencePieceFile) -> Any:
    """The steps of SentencePiece's normaliser, in its order."""
    tokenizers = require("tokenizers", "topklm[hf]")
    normalizers, parts = tokenizers.normalizers, []
    space = SPACE if file.escape_whitespaces else " "
    if file.charsmap:
        parts.append(normalizers.Precompiled(file.charsmap))
    if file.remove_extra_whitespaces:
        parts.append(normalizers.Replace(tokenizers.Regex(r"\A +| +\z"), ""))
        parts.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if file.escape_whitespaces:
        parts.append(normalizers.Replace(" ", SPACE))
    if file.add_dummy_prefix:
        parts.append(normalizers.Prepend(space))
    return normalizers.Sequence(parts)


def _merges(rank: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair that makes a token of two others, in the order in which they are merged: by the token's rank.

    SentencePiece and tiktoken merge the neighbours whose union ranks first, and among equals the leftmost, whatever
    the two are. `tokenizers` wants an order of the pairs. Pairs of equal rank compete for the same text where it
    repeats itself (runs of spaces, which in Llama's file all have one score); there what is on the left has grown the
    longest, so longer left parts come first.
    """
    found = [
        (rank[token], -i, token[:i], token[i:])
        for token in rank
        for i in range(1, len(token))
        if token[:i] in rank and token[i:] in rank
    ]
    found.sort(key=lambda pair: (pair[0], pair[1], -len(pair[3])))
    return [(left, right) for *_, left, right in found]


def _byte_chars() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level tokenizers (GPT-2's table)."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in itself)
    return {byte: chr(byte) for byte in itself} | {byte: chr(256 + i) for i, byte in enumerate(others)}
