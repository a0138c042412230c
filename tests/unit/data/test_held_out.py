"""Bytes of text that tokens stand for, for every kind of tokenizer; opening held-out parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given

from topklm.data import open_held_out
from topklm.data.tokenizers import ByteTokenizer, HFTokenizer, SentencePieceTokenizer, TiktokenTokenizer
from topklm.data.train_tokenizer import TrainTokenizerConfig, train_sentencepiece
from topklm.errors import DataError

from .synthetic import documents, write_source
from .test_tokenizers import ANY_TEXT, TEXTS, hf_file, rank_file

KINDS = ["bytes", "sp", "tiktoken", "hf", "hf with byte fallback"]
MANY_BYTES = ["é", "añ€ 😀 x", "日本語 the law\n\n", "\u0301\u200d", " lead", "  two  ", "\n"]


def hf_with_byte_fallback() -> bytes:
    """A `tokenizer.json` as converted from Llama's: spaces as a mark, one put before a text, bytes where it must."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *byte_pieces], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [a for a in definition["added_tokens"] if a["content"] not in byte_pieces]
    return json.dumps(definition).encode()


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    return {
        "bytes": ByteTokenizer(),
        "sp": SentencePieceTokenizer(train_sentencepiece(TEXTS, TrainTokenizerConfig(vocab_size=310))),
        "tiktoken": TiktokenTokenizer(rank_file()),
        "hf": HFTokenizer(hf_file(), 0, 1),
        "hf with byte fallback": HFTokenizer(hf_with_byte_fallback(), 1, 2),
    }


@pytest.fixture(scope="module")
def lengths(tokenizers: dict) -> dict:
    return {kind: (tokenizer.byte_lengths(), tokenizer.n_prefix_bytes()) for kind, tokenizer in tokenizers.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(text=ANY_TEXT.filter(bool))
def test_the_bytes_of_its_tokens_are_those_of_a_text(tokenizers: dict, lengths: dict, kind: str, text: str) -> None:
    table, prefix = lengths[kind]
    if kind == "hf with byte fallback":
        text = text.lstrip(" ") or "x"  # it does not put a space before a space, and cannot tell the two texts apart
    ids = tokenizers[kind].encode(text, bos=True, eos=True)
    assert table[ids].sum() - prefix == len(text.encode())
    assert table[[ids[0], ids[-1]]].tolist() == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_adds_its_bytes_to_the_text(tokenizers: dict, lengths: dict, kind: str) -> None:
    """Decoded prefix by prefix: the bytes counted so far are those of the text so far, whole characters or parts."""
    table, prefix = lengths[kind]
    for text in MANY_BYTES[:4] + TEXTS[:3]:
        ids = tokenizers[kind].encode(text)
        whole = text.encode()
        for n in range(1, len(ids) + 1):
            counted = int(table[ids[:n]].sum()) - prefix
            decoded = tokenizers[kind].decode(ids[:n])
            if "\ufffd" not in decoded:
                assert decoded.encode() == whole[:counted]
            else:  # its last character, at least, is not complete
                assert whole.startswith(decoded.rstrip("\ufffd").encode())
                assert len(whole[:counted]) - len(decoded.rstrip("\ufffd").encode()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_counts_the_bytes_of_its_documents(tokenizers: dict, kind: str, tmp_path) -> None:
    tokenizer = tokenizers[kind]
    texts = [*TEXTS[:5], *MANY_BYTES]
    ids = [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    sizes = {tuple(i): len(text.encode()) for i, text in zip(ids, texts, strict=True)}
    write_source(tmp_path, "s", [[1]], ids, tokenizer=tokenizer, add_bos=True, n_bytes=lambda i: sizes.get(tuple(i), 0))
    held_out = open_held_out(tmp_path)
    positions = np.arange(len(held_out.arrays["s"]))
    tokens = held_out.arrays["s"].read(0, len(positions))
    counted = held_out.n_bytes(0, positions, tokens)
    by_document = np.bincount(held_out.documents(0, positions), counted)
    loses = kind == "hf with byte fallback"  # the leading spaces of two documents
    for text, n in zip(texts, by_document, strict=True):
        assert n == len(text.encode()) - (loses and text.startswith(" "))
    assert (held_out.bytes_scale["s"] == 1.0) != loses
    assert held_out.bytes_scale["s"] * by_document.sum() == pytest.approx(sum(len(text.encode()) for text in texts))
    is_text = held_out.is_text(tokens)
    assert (~is_text).sum() == 2 * len(texts)
    assert not counted[~is_text].any()


def test_without_bos_the_first_token_is_the_one_with_the_space_before(tokenizers: dict, tmp_path) -> None:
    tokenizer = tokenizers["sp"]
    texts = ["the law", "of the land", "a"]
    write_source(tmp_path, "s", [[1]], [tokenizer.encode(text) for text in texts], tokenizer=tokenizer)
    held_out = open_held_out(tmp_path)
    positions = np.arange(len(held_out.arrays["s"]))
    counted = held_out.n_bytes(0, positions, held_out.arrays["s"].read(0, len(positions)))
    assert np.bincount(held_out.documents(0, positions), counted).tolist() == [len(text) for text in texts]


def test_documents_of_several_sources_and_shards_are_counted_on(tmp_path) -> None:
    for name in ("b", "a"):
        write_source(tmp_path, name, [[1]], documents(100, 5), max_tokens=20)
    held_out = open_held_out(tmp_path)
    n = held_out.arrays["a"].n_documents
    assert held_out.names == ["a", "b"]
    assert held_out.first_document.tolist() == [0, n, 2 * n]
    assert held_out.offsets["a"][-1] == 100
    for source in (0, 1):
        positions = np.arange(100)
        expected = held_out.arrays["a"].document_ids(0, 100) + source * n
        assert held_out.documents(source, positions).tolist() == expected.tolist()


def test_what_is_wrong_with_held_out_parts_is_told_at_once(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no prepared source"):
        open_held_out(tmp_path / "nowhere")
    write_source(tmp_path, "a", [[1]], documents(9), sha256="a" * 64)
    write_source(tmp_path, "b", [[1]], documents(9), sha256="b" * 64)
    with pytest.raises(DataError, match=r"(?s)c is not a prepared source.*different tokenizers"):
        open_held_out(tmp_path, ["a", "b", "c"])


def test_the_fingerprint_is_of_the_held_out_tokens(tmp_path) -> None:
    write_source(tmp_path / "x", "a", [[1]], documents(9))
    write_source(tmp_path / "y", "a", [[2], [3]], documents(9))
    write_source(tmp_path / "z", "a", [[1]], documents(10))
    x, y, z = (open_held_out(tmp_path / name).fingerprint for name in "xyz")
    assert x == y != z
