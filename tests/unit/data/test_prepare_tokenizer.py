"""The tokenizer of a preparation: trained on training documents, kept, refused."""

from __future__ import annotations

import gzip
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data.corpus import documents, shard_documents, write_jsonl
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig
from topklm.data.split import split_of
from topklm.data.tokenizers import load_tokenizer, open_saved_tokenizer
from topklm.errors import ConfigError, DataError


def test_tokenizer_learns_from_training_documents_only(training: PrepareConfig, tmp_path: Path) -> None:
    texts = documents(200)
    # Characters that occur in documents of one split only; with full coverage each one seen becomes a piece.
    mark = {"train": "ж", "val": "ю"}
    marked = [text + mark[split_of(text + "жю"[k], 0.2, "topklm")] for text in texts for k in (0, 1)]
    marked = [text for text in marked if text[-1] == mark[split_of(text, 0.2, "topklm")]]
    write_jsonl(tmp_path / "docs.jsonl", marked)
    prepare(training)
    tokenizer = load_tokenizer("sp", training.tokenizer.path)
    pieces = {tokenizer.piece(i) for i in range(tokenizer.vocab_size)}
    assert {text[-1] for text in marked} == {"ж", "ю"}
    assert "ж" in pieces
    assert "ю" not in pieces


def test_trained_tokenizer_is_reproducible_and_kept(training: PrepareConfig, tmp_path: Path) -> None:
    manifest = prepare(training)["web"]
    model = Path(training.tokenizer.path)
    again = replace(
        training,
        out_dir=str(tmp_path / "again"),
        tokenizer=replace(training.tokenizer, path=str(tmp_path / "again.model")),
    )
    assert prepare(again)["web"].fingerprint() == manifest.fingerprint()
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()
    out = Path(training.out_dir) / "web"
    tokenizer = open_saved_tokenizer(out / "tokenizer")
    texts = [text for text in documents(200) if split_of(text, 0.2, "topklm") == "train"]
    assert [tokenizer.decode(ids) for ids in shard_documents(out, manifest, "train")] == texts
    model.unlink()  # a finished preparation has its own copy
    assert prepare(training)["web"] == manifest


def test_tokenizer_of_other_settings_is_not_taken_in_silence(training: PrepareConfig, tmp_path: Path) -> None:
    prepare(training)
    other = replace(training, out_dir=str(tmp_path / "other"), val_fraction=0.3)
    with pytest.raises(ConfigError, match=r"trained with other settings(.|\n)*val_fraction: was 0.2, is 0.3"):
        prepare(other)
    larger = replace(training.tokenizer.train, vocab_size=335)
    with pytest.raises(ConfigError, match=r"train.vocab_size: was 330, is 335"):
        prepare(replace(training, tokenizer=replace(training.tokenizer, train=larger)))
    assert prepare(replace(other, tokenizer=replace(other.tokenizer, train=None)))["web"].tokenizer["vocab_size"] == 330
    Path(training.tokenizer.path + ".json").unlink()  # now it is one from elsewhere
    with pytest.raises(ConfigError, match=r"has 330 pieces, tokenizer\.train\.vocab_size is 335"):
        prepare(replace(training, tokenizer=replace(training.tokenizer, train=larger)))


def test_overwrite_trains_again_but_spares_a_model_from_elsewhere(training: PrepareConfig) -> None:
    prepare(training)
    model = Path(training.tokenizer.path)
    larger = replace(training.tokenizer, train=replace(training.tokenizer.train, vocab_size=335))
    assert prepare(replace(training, tokenizer=larger, overwrite=True))["web"].tokenizer["vocab_size"] == 335
    Path(f"{model}.json").unlink()
    kept = model.read_bytes()
    prepare(replace(training, tokenizer=larger, overwrite=True))
    assert model.read_bytes() == kept


def test_input_that_cannot_be_read_is_not_blamed_on_the_training(training: PrepareConfig, tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl.gz"
    file.write_bytes(gzip.compress("".join(f'{{"text": "{t.strip()}"}}\n' for t in documents(200)).encode())[:-20])
    source = replace(training.sources["web"], path=str(file))
    with pytest.raises(DataError, match="cannot be read to its end"):
        prepare(replace(training, sources={"web": source}))


def test_bytes_to_train_on_are_bounded_and_told(training: PrepareConfig, caplog) -> None:
    train = replace(training.tokenizer.train, max_bytes=4000)
    with caplog.at_level(logging.INFO):
        prepare(replace(training, tokenizer=replace(training.tokenizer, train=train)))
    used = json.loads(Path(training.tokenizer.path + ".json").read_text())["used"]["web"]
    assert 3000 < used["bytes"] <= 4000
    assert "limited by tokenizer.train.max_bytes=4,000" in caplog.text
