"""Every kind of tokenizer as a fast tokenizer of transformers: the same ids for any text."""

from __future__ import annotations

import io
import itertools
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from transformers import AutoTokenizer

from tests.unit.data.test_tokenizers import TEXTS, hf_file, rank_file
from topklm.data.tokenizers import ByteTokenizer, HFTokenizer, SentencePieceTokenizer, TiktokenTokenizer
from topklm.data.train_tokenizer import TrainTokenizerConfig, train_sentencepiece
from topklm.errors import DataError
from topklm.export.sentencepiece_file import PieceType, parse
from topklm.export.text import SAMPLE
from topklm.export.tokenizer import HARD_TEXTS, check_tokenizer, fast_tokenizer, write_tokenizer

KINDS = ("bytes", "sp", "tiktoken", "hf", "unigram")
RANKS = (b"th", b"the", b" the", b"en", b"<|", b"--", b"----", b"  ", b"    ", b"\n\n", "é".encode(), b"ab", b"abab")
# Any text, and more often what repeats itself or looks like a special token.
ANY_TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["a", "ab", " ", "-", "\n", "the ", "<s>", "</s>", "<0x0A>", "é", "."])).map("".join),
)


def train(*, byte_fallback: bool = True, normalization_rule_name: str = "identity", **options) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *SAMPLE.splitlines()]), model_writer=model, num_threads=1, minloglevel=2,
        byte_fallback=byte_fallback, normalization_rule_name=normalization_rule_name,
        vocab_size=400 if byte_fallback else 140, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def tokenizers() -> dict:
    return {
        "bytes": ByteTokenizer(),
        "sp": SentencePieceTokenizer(train_sentencepiece(TEXTS, TrainTokenizerConfig(vocab_size=330))),
        "tiktoken": TiktokenTokenizer(rank_file(RANKS)),
        "hf": HFTokenizer(hf_file(), 0, 1),
        "unigram": SentencePieceTokenizer(train(model_type="unigram", remove_extra_whitespaces=False)),
    }


@pytest.fixture(scope="module")
def fast(tokenizers: dict, tmp_path_factory) -> dict:
    loaded = {}
    for kind, tokenizer in tokenizers.items():
        directory = tmp_path_factory.mktemp(kind)
        write_tokenizer(tokenizer, directory, add_bos=False, max_length=64)
        loaded[kind] = AutoTokenizer.from_pretrained(directory)
        loaded[kind].model_max_length = 10**9
    return loaded


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=ANY_TEXT)
def test_ids_are_the_same_for_any_text(tokenizers: dict, fast: dict, kind: str, text: str) -> None:
    ids = tokenizers[kind].encode(text)
    assert fast[kind].encode(text) == ids
    assert fast[kind].decode(ids, skip_special_tokens=True) == tokenizers[kind].decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_texts_and_special_tokens(tokenizers: dict, kind: str, tmp_path) -> None:
    tokenizer = tokenizers[kind]
    for add_bos in (False, True):
        write_tokenizer(tokenizer, tmp_path, add_bos=add_bos, max_length=64)
        assert check_tokenizer(tokenizer, tmp_path, TEXTS, add_bos=add_bos) == len(HARD_TEXTS) + len(TEXTS)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert loaded.pad_token_id == tokenizer.eos_id
    batch = loaded(["the law", "a"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    short = tokenizer.encode("a", bos=True)
    assert batch["input_ids"][1][-len(short) :] == short
    assert batch["attention_mask"][1] == [0] * (len(batch["input_ids"][0]) - len(short)) + [1] * len(short)
    assert loaded.decode(batch["input_ids"][0], skip_special_tokens=True) == tokenizer.decode(batch["input_ids"][0])


@pytest.mark.parametrize(
    ("model_type", "normalizer", "squeeze", "prefix"),
    list(itertools.product(("bpe", "unigram"), ("identity", "nmt_nfkc"), (True, False), (True, False))),
)
def test_every_setting_of_sentencepiece(model_type, normalizer, squeeze, prefix, tmp_path) -> None:
    definition = train(
        model_type=model_type, normalization_rule_name=normalizer, remove_extra_whitespaces=squeeze,
        add_dummy_prefix=prefix, user_defined_symbols=["<sep>", "##"], byte_fallback=squeeze,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(definition)
    write_tokenizer(tokenizer, tmp_path, add_bos=False, max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[::9], "a<sep>b", "<sep> the", "the ## law<sep>", "  the   law ", "café ﬁ ①", "", " "]:
        assert loaded.encode(text) == tokenizer.encode(text), text


def test_equal_scores_merge_from_the_left(tmp_path) -> None:
    # In Llama's file all runs of spaces have one score: which of them wins is decided by place alone.
    runs = ["\u2581" * n for n in (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11)]
    tokenizer = SentencePieceTokenizer(_with_pieces(train(model_type="bpe", remove_extra_whitespaces=False), runs))
    write_tokenizer(tokenizer, tmp_path, add_bos=False, max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for n in range(120):
        assert loaded.encode(" " * n + "the") == tokenizer.encode(" " * n + "the"), n


@pytest.mark.parametrize("prefix", [True, False])
def test_text_that_looks_like_a_special_token_keeps_its_pieces(prefix: bool, tmp_path) -> None:
    # With user-defined pieces words are looked up whole, and "<s>" is in the vocabulary; so is the start of " <s>".
    model = train(model_type="bpe", user_defined_symbols=["<sep>"], add_dummy_prefix=prefix)
    tokenizer = SentencePieceTokenizer(_with_pieces(model, ["<", "\u2581<"]))
    write_tokenizer(tokenizer, tmp_path, add_bos=False, max_length=64)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("<s>", "</s>", "<unk>", "<0x41>", "a <s> b", "<sep><s>", "<s><sep></s>", "<sep>", " <sep>"):
        ids = tokenizer.encode(text)
        assert tokenizer.bos_id not in ids
        assert loaded.encode(text) == ids, text


def _with_pieces(model: bytes, pieces: list[str], score: float = -1e9) -> bytes:
    """A model file with more pieces: protobuf messages may be appended."""
    for piece in pieces:
        text = piece.encode()
        message = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score)
        model += b"\x0a" + bytes([len(message)]) + message
    return model


def test_the_file_of_sentencepiece_is_read_right() -> None:
    import sentencepiece

    definition = train(model_type="unigram", user_defined_symbols=["<sep>"], normalization_rule_name="nmt_nfkc")
    library = sentencepiece.SentencePieceProcessor(model_proto=definition)
    file = parse(definition)
    assert [piece.text for piece in file.pieces] == [library.id_to_piece(i) for i in range(library.vocab_size())]
    assert [piece.score for piece in file.pieces] == [library.get_score(i) for i in range(library.vocab_size())]
    for i, piece in enumerate(file.pieces):
        assert library.is_byte(i) == (piece.type is PieceType.BYTE)
        assert library.is_control(i) == (piece.type is PieceType.CONTROL)
        assert library.is_unknown(i) == (piece.type is PieceType.UNKNOWN)
    assert file.pieces[library.piece_to_id("<sep>")].type is PieceType.USER_DEFINED
    assert (file.model_type, file.byte_fallback, file.add_dummy_prefix) == (1, True, True)
    assert file.charsmap


@pytest.mark.parametrize("broken", [b"\x0a\xff", b"\x0a\x05abc", b"\x0b", b"\x0a\x02\x18\x09", b"\x12\x80"])
def test_a_broken_file_is_told(broken: bytes) -> None:
    with pytest.raises(DataError, match="not a SentencePiece model"):
        parse(broken)


def test_a_model_that_has_no_counterpart_is_told() -> None:
    for options in ({"model_type": "char"}, {"model_type": "bpe", "treat_whitespace_as_suffix": True}):
        with pytest.raises(DataError, match="tokenizer=false"):
            fast_tokenizer(SentencePieceTokenizer(train(**options, hard_vocab_limit=False)))


def test_other_ids_are_told_with_the_text(tokenizers: dict, tmp_path) -> None:
    write_tokenizer(tokenizers["sp"], tmp_path, add_bos=False, max_length=64)
    file = tmp_path / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["normalizer"]["normalizers"].pop(0)  # spaces stay spaces
    file.write_text(json.dumps(definition))
    with pytest.raises(DataError, match=r"ids from place 1 on, \[\d+.*for the text ' '"):
        check_tokenizer(tokenizers["sp"], tmp_path, [], add_bos=False)
    write_tokenizer(tokenizers["bytes"], tmp_path, add_bos=True, max_length=64)
    with pytest.raises(DataError, match="differs"):
        check_tokenizer(tokenizers["bytes"], tmp_path, [], add_bos=False)
