"""Every kind of tokenizer: round trips, special tokens, saving, and what is wrong with broken files."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.data.tokenizers import (
    ByteTokenizer,
    HFTokenizer,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    load_tokenizer,
    open_saved_tokenizer,
)
from topklm.data.train_tokenizer import TrainTokenizerConfig, train_sentencepiece
from topklm.errors import ConfigError, DataError

TEXTS = [
    f"The {a} of the {b} shall not be infringed, {i}.\n" for i in range(40) for a in "abc" for b in ("law", "land")
]
ANY_TEXT = st.text(max_size=60).filter(lambda text: "\u2581" not in text)


@pytest.fixture(scope="module")
def sp_model() -> bytes:
    return train_sentencepiece(TEXTS, TrainTokenizerConfig(vocab_size=310))


def rank_file(extra: tuple[bytes, ...] = (b"th", b"the", b" the", b"en", b"<|")) -> bytes:
    tokens = [bytes([i]) for i in range(256)] + list(extra)
    return b"\n".join(base64.b64encode(token) + b" " + str(i).encode() for i, token in enumerate(tokens))


def hf_file() -> bytes:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    # What a published file may switch on and what must not reach the shards:
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=8)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def tokenizers(sp_model: bytes) -> dict:
    return {
        "bytes": ByteTokenizer(),
        "sp": SentencePieceTokenizer(sp_model),
        "tiktoken": TiktokenTokenizer(rank_file()),
        "hf": HFTokenizer(hf_file(), 0, 1),
    }


@pytest.mark.parametrize("kind", ["bytes", "sp", "tiktoken", "hf"])
@given(text=ANY_TEXT)
def test_decoding_gives_the_text_back(tokenizers: dict, kind: str, text: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert ids[0] == tokenizer.bos_id
    assert ids[-1] == tokenizer.eos_id
    assert ids[1:-1] == tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["bytes", "sp", "tiktoken", "hf"])
def test_special_tokens_in_a_document_are_ordinary_text(tokenizers: dict, kind: str) -> None:
    tokenizer = tokenizers[kind]
    text = "a<s></s><|begin_of_text|><|end_of_text|>b"
    ids = tokenizer.encode(text)
    assert tokenizer.bos_id not in ids
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", ["bytes", "sp", "tiktoken", "hf"])
def test_saved_tokenizer_is_the_same(tokenizers: dict, kind: str, tmp_path) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path)
    opened = open_saved_tokenizer(tmp_path)
    assert opened.meta() == tokenizer.meta()
    assert opened.encode(TEXTS[0], bos=True, eos=True) == tokenizer.encode(TEXTS[0], bos=True, eos=True)


@pytest.mark.parametrize("kind", ["bytes", "sp", "tiktoken", "hf"])
def test_unknown_ids_are_refused(tokenizers: dict, kind: str) -> None:
    tokenizer = tokenizers[kind]
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match="another tokenizer"):
            tokenizer.decode([wrong])
        with pytest.raises(DataError, match="another tokenizer"):
            tokenizer.piece(wrong)


def test_ids_of_bytes_are_those_of_meta_lingua() -> None:
    assert ByteTokenizer().encode("aé", bos=True, eos=True) == [256, 97, 0xC3, 0xA9, 257]
    assert ByteTokenizer().vocab_size == 258


def test_ids_of_tiktoken_specials_follow_the_ranks(tokenizers: dict) -> None:
    tokenizer = tokenizers["tiktoken"]
    n = 256 + 5
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (n, n + 1, n + 256)
    assert tokenizer.encode(" the then") == [258, 258, 110]


def test_long_texts_are_whole_with_tiktoken(tokenizers: dict, monkeypatch) -> None:
    monkeypatch.setattr(TiktokenTokenizer, "piece_chars", 7)
    text = "the end of the then é\n" * 9
    assert tokenizers["tiktoken"].decode(tokenizers["tiktoken"].encode(text)) == text


def test_hf_truncation_padding_and_template_are_off(tokenizers: dict) -> None:
    ids = tokenizers["hf"].encode("the law " * 50)
    assert len(ids) > 8
    assert not {0, 1} & set(ids)


@pytest.mark.parametrize(
    ("kind", "space", "newline", "bos"),
    [("sp", " la", "<0x0A>", "<s>"), ("tiktoken", " the", "<0x0A>", "<|begin_of_text|>"), ("hf", " the", "\n", "<s>")],
)
def test_pieces_are_readable(tokenizers: dict, kind: str, space: str, newline: str, bos: str) -> None:
    tokenizer = tokenizers[kind]
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    assert {space, newline, bos} <= set(pieces)
    assert all(pieces)


def test_training_depends_on_the_text_alone(sp_model: bytes) -> None:
    config = TrainTokenizerConfig(vocab_size=310)
    assert train_sentencepiece(iter(TEXTS), config) == sp_model
    assert train_sentencepiece([*TEXTS, "other words"] * 2, config) != sp_model


def test_training_reads_very_long_lines() -> None:
    long_line = "qqxxqq " * 20_000  # longer than what SentencePiece passes over by default
    tokenizer = SentencePieceTokenizer(train_sentencepiece([*TEXTS, long_line], TrainTokenizerConfig(vocab_size=300)))
    assert len(tokenizer.encode("qqxxqq")) <= 2


def test_too_little_text_to_train_on() -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        train_sentencepiece(["one two"], TrainTokenizerConfig(vocab_size=4096))


def test_an_error_in_the_texts_is_not_one_of_the_training() -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS
        raise DataError("the file is damaged")

    with pytest.raises(DataError, match="the file is damaged"):
        train_sentencepiece(texts(), TrainTokenizerConfig(vocab_size=300))


def test_hf_special_tokens_are_found(tmp_path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(hf_file())
    assert (load_tokenizer("hf", file).bos_id, load_tokenizer("hf", tmp_path).eos_id) == (0, 1)
    config = {"bos_token": None, "eos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer("hf", file)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 0)
    assert tokenizer.sha256 != HFTokenizer(file.read_bytes(), 0, 1).sha256
    with pytest.raises(ConfigError, match="add_bos=false"):
        tokenizer.encode("text", bos=True)


@pytest.mark.parametrize("beside", ["[]", "7", '{"bos_token": ["<s>"]}', '{"eos_token": {"content": 1}}', "{"])
def test_hf_special_tokens_of_a_broken_file(tmp_path, beside: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(hf_file())
    (tmp_path / "tokenizer_config.json").write_text(beside)
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        load_tokenizer("hf", tmp_path)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("sp", b"not a model", "SentencePiece"),
        ("sp", b"", "SentencePiece"),
        ("tiktoken", b"\x0a\x0e\x0a\x05<unk>\x15", "line 1"),
        ("tiktoken", rank_file()[5:], "line 1|single bytes|ranks"),
        ("tiktoken", rank_file() + b"\nAAAA 7", "each once"),
        ("tiktoken", b"YQ== 0", "255 of the 256"),
        ("hf", b"{}", "tokenizer.json"),
    ],
)
def test_broken_files(kind: str, content: bytes, message: str, tmp_path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(kind, file)
    assert str(file) in str(error.value)


def test_missing_files_kinds_and_packages(tmp_path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"gone\.model does not exist"):
        load_tokenizer("sp", tmp_path / "gone.model")
    with pytest.raises(ConfigError, match="is a directory"):
        load_tokenizer("sp", tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist"):
        load_tokenizer("hf", tmp_path)
    with pytest.raises(ConfigError, match="not one of sp, tiktoken, hf, bytes"):
        load_tokenizer("word", None)
    with pytest.raises(ConfigError, match=r"tokenizer\.path is needed"):
        load_tokenizer("sp")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match=r"pip install 'topklm\[data\]'"):
        TiktokenTokenizer(rank_file())


def test_changed_saved_tokenizer(sp_model: bytes, tmp_path) -> None:
    SentencePieceTokenizer(sp_model).save(tmp_path)
    other = train_sentencepiece(TEXTS[:50], TrainTokenizerConfig(vocab_size=290))
    (tmp_path / "tokenizer.model").write_bytes(other)
    with pytest.raises(DataError, match="sha256 differs"):
        open_saved_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(DataError, match="does not exist"):
        open_saved_tokenizer(tmp_path)
    (tmp_path / "tokenizer_meta.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        open_saved_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no saved tokenizer"):
        open_saved_tokenizer(tmp_path / "nowhere")
