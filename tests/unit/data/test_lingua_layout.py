"""Meta Lingua's JSONL layout: chunks are trained on, *.val.jsonl is held out, and nothing is passed over in silence."""

from __future__ import annotations

import json
import logging
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.corpus import Killed, documents, interrupt_after, shard_documents, tree, write_jsonl
from tests.unit.data.synthetic import documents as token_documents
from tests.unit.data.synthetic import write_source
from topklm.config import build, load_config
from topklm.data import DataConfig, open_data
from topklm.data.config import DataTokenizerConfig
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig, PrepareTokenizerConfig
from topklm.data.shards import read_manifest
from topklm.data.sources import SourceConfig
from topklm.data.split import BY_FILES, split_of
from topklm.errors import ConfigError, DataError

TEXTS = documents(120)


@pytest.fixture
def lingua(config: PrepareConfig, tmp_path: Path) -> PrepareConfig:
    """Two chunks and a file of held-out documents, in a dozen work items."""
    root = tmp_path / "shuffled" / "web_1.0"
    root.mkdir(parents=True)
    write_jsonl(root / "web.chunk.00.jsonl", TEXTS[:60])
    (root / "web.chunk.01.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in TEXTS[60:100]))
    write_jsonl(root / "web.val.jsonl", TEXTS[100:])
    return replace(config, sources={"web_1.0": SourceConfig(kind="lingua", path=str(root))}, item_bytes=2000)


def place(config: PrepareConfig) -> Path:
    return Path(config.sources["web_1.0"].path)


def ids(texts: list[str]) -> list[list[int]]:
    return [[256, *text.encode(), 257] for text in texts]


def test_held_out_are_exactly_the_documents_of_the_validation_files(lingua: PrepareConfig, caplog) -> None:
    with caplog.at_level(logging.INFO):
        manifest = prepare(lingua)["web_1.0"]
    out = Path(lingua.out_dir) / "web_1.0"
    assert shard_documents(out, manifest, "train") == ids(TEXTS[:100])
    assert shard_documents(out, manifest, "val") == ids(TEXTS[100:])
    # Not by the rule, which would have chosen others.
    assert any(split_of(text, lingua.val_fraction, lingua.split_salt) == "val" for text in TEXTS[:100])
    assert manifest.split == BY_FILES
    assert "all 2 chunks (Lingua drops those beyond the world size); held out: web.val.jsonl" in caplog.text
    assert list(manifest.origin["inputs"]) == [
        "web.chunk.00.jsonl", "web.chunk.01.jsonl", "web.val.jsonl",
    ]  # fmt: skip
    prepare(replace(lingua, val_fraction=0.5))  # which such a source does not use
    assert read_manifest(out) == manifest


def test_without_validation_files_the_rule_decides_and_that_is_told(lingua: PrepareConfig, caplog) -> None:
    (place(lingua) / "web.val.jsonl").unlink()
    manifest = prepare(lingua)["web_1.0"]
    assert "has no *.val.jsonl; documents of its chunks are held out by val_fraction" in caplog.text
    out = Path(lingua.out_dir) / "web_1.0"
    for split in ("train", "val"):
        expected = [text for text in TEXTS[:100] if split_of(text, 0.2, "topklm") == split]
        assert shard_documents(out, manifest, split) == ids(expected)
    with pytest.raises(ConfigError, match="split"):
        prepare(replace(lingua, val_fraction=0.5))


def test_an_empty_validation_file_is_told(lingua: PrepareConfig, caplog) -> None:
    (place(lingua) / "web.val.jsonl").write_text("")
    manifest = prepare(lingua)["web_1.0"]
    assert "web.val.jsonl is empty" in caplog.text
    assert "its *.val.jsonl hold no document, so none was held out" in caplog.text
    assert (manifest.counts["train"]["documents"], manifest.counts["val"]["documents"]) == (100, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_and_resumed_is_the_same(lingua: PrepareConfig, tmp_path: Path, monkeypatch, workers: int) -> None:
    whole = prepare(replace(lingua, out_dir=str(tmp_path / "whole"), workers=workers))["web_1.0"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, "_write")
        with pytest.raises(Killed):
            prepare(lingua)
    with monkeypatch.context() as patch:
        begun = interrupt_after(patch, 99, "_write")
        assert prepare(lingua)["web_1.0"] == whole
    assert begun[0] == 3
    assert tree(Path(lingua.out_dir)) == tree(tmp_path / "whole")


def test_files_that_appear_in_the_middle_are_refused(lingua: PrepareConfig, monkeypatch) -> None:
    (place(lingua) / "web.val.jsonl").rename(place(lingua) / "later")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1, "_write")
        with pytest.raises(Killed):
            prepare(lingua)
    (place(lingua) / "later").rename(place(lingua) / "web.val.jsonl")
    with pytest.raises(ConfigError, match=r"split\.rule: was"):
        prepare(lingua)


def test_bad_lines_are_counted_and_listed_wherever_they_are(lingua: PrepareConfig) -> None:
    for name in ("web.chunk.01.jsonl", "web.val.jsonl"):
        with open(place(lingua) / name, "a") as file:
            file.write('{"title": "no text"}\n{broken\n\n')
    with pytest.raises(DataError, match="max_skipped"):
        prepare(lingua)
    manifest = prepare(replace(lingua, max_skipped=6))["web_1.0"]
    assert manifest.skipped == {"blank_line": 2, "broken_json": 2, "missing_field": 2}
    lines = (Path(lingua.out_dir) / "web_1.0" / "skipped.jsonl").read_text().splitlines()
    assert sum("web.val.jsonl" in json.loads(line)["location"] for line in lines) == 3
    assert manifest.counts["val"]["documents"] == 20


def test_other_files_are_named_and_hidden_ones_are_not_read(lingua: PrepareConfig, caplog) -> None:
    for name in ("extra.jsonl", "web.chunk.02.jsonl.gz", ".web.chunk.03.jsonl", "README.md"):
        (place(lingua) / name).write_text("not to be read\n")
    write_jsonl(place(lingua) / "more.chunk.0.val.jsonl", ["fits both patterns"])
    manifest = prepare(lingua)["web_1.0"]
    assert "neither *.chunk.*.jsonl nor *.val.jsonl: extra.jsonl, web.chunk.02.jsonl.gz" in caplog.text
    assert ids(["fits both patterns"])[0] in shard_documents(Path(lingua.out_dir) / "web_1.0", manifest, "val")
    assert manifest.counts["train"]["documents"] == 100


def test_a_tokenizer_learns_from_the_chunks_alone(lingua: PrepareConfig, training: PrepareConfig) -> None:
    prepare(replace(lingua, tokenizer=training.tokenizer, add_bos=False))
    note = json.loads(Path(f"{training.tokenizer.path}.json").read_text())
    assert note["used"]["web_1.0"]["documents"] == 100


def test_wrong_places_are_told(lingua: PrepareConfig, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "shuffled", r"holds sources \(web_1.0\), not chunks"),
        (tmp_path / "nowhere", r"no files \*.chunk.\*.jsonl"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(replace(lingua, sources={"w": SourceConfig(kind="lingua", path=str(path))}))
    (place(lingua) / "web.chunk.00.jsonl").unlink()
    (place(lingua) / "web.chunk.01.jsonl").unlink()
    with pytest.raises(ConfigError, match="only 1 held-out files"):
        prepare(lingua)
    with pytest.raises(ConfigError, match="has no meaning for the kind lingua"):
        build(SourceConfig, {"kind": "lingua", "path": "x", "glob": "*"})


def test_training_on_the_jsonl_files_gives_the_command_that_prepares_them(
    lingua: PrepareConfig, tmp_path: Path
) -> None:
    data = DataConfig(root_dir=str(tmp_path / "shuffled"), sources={"web_1.0": 2.0}, seq_len=16, add_eos=False)
    with pytest.raises(DataError) as error:
        open_data(data)
    (command,) = [line for line in str(error.value).splitlines() if "apps.prepare" in line]
    given = load_config(PrepareConfig, shlex.split(command)[3:])
    assert given.sources == lingua.sources
    assert (given.tokenizer, given.add_bos, given.add_eos) == (PrepareTokenizerConfig(name="bytes"), True, False)
    assert f"train with data.root_dir={given.out_dir}" in str(error.value)
    prepare(given)
    assert open_data(replace(data, root_dir=given.out_dir)).manifests["web_1.0"].split == BY_FILES


def test_a_configuration_that_wants_other_tokens_is_refused(lingua: PrepareConfig, training: PrepareConfig) -> None:
    lingua = replace(lingua, tokenizer=training.tokenizer)
    prepare(lingua)
    data = DataConfig(root_dir=lingua.out_dir, sources={"web_1.0": 1.0}, seq_len=16)
    same = DataTokenizerConfig(name="sp", path=training.tokenizer.path)
    assert open_data(replace(data, tokenizer=same, add_bos=True, add_eos=True)).summary()
    with pytest.raises(DataError) as error:
        open_data(replace(data, tokenizer=DataTokenizerConfig(name="bytes"), add_bos=False))
    for part in ("data.add_bos is false, it was prepared with true", "data.tokenizer.name is bytes"):
        assert part in str(error.value)
    Path(training.tokenizer.path).write_text("another")
    with pytest.raises(DataError, match=r"data.tokenizer.path .* is not the tokenizer it was prepared with"):
        open_data(replace(data, tokenizer=same))
    Path(training.tokenizer.path).unlink()
    assert "is not there, so it was not compared" in open_data(replace(data, tokenizer=same)).summary()[-1]


def test_files_that_say_what_is_held_out_are_taken_at_their_word(lingua: PrepareConfig) -> None:
    """A rule cannot tell whether a text of another source's validation file is among the training documents."""
    prepare(lingua)
    out = Path(lingua.out_dir)
    by_rule = SourceConfig(kind="jsonl", path=str(place(lingua) / "web.chunk.00.jsonl"))
    prepare(replace(lingua, sources={**lingua.sources, "ruled": by_rule}))
    data = open_data(DataConfig(root_dir=str(out), sources={"web_1.0": 1.0, "ruled": 1.0}, seq_len=16))
    assert data.summary()[-2].startswith("web_1.0: held out are the documents of *.val.jsonl; whether")
    (named,) = re.findall("would be web_1.0 (.*)%, ruled (.*)%: data.weights_of=documents", data.summary()[-1])
    drawn = open_data(replace(data.config, weights_of="documents"))
    assert [float(share) for share in named] == [round(100 * drawn.shares[name], 1) for name in ("web_1.0", "ruled")]
    assert "data.weights_of" not in drawn.summary()[-1]


def test_weights_of_documents_are_shares_of_documents_as_in_lingua(tmp_path: Path) -> None:
    """Lingua draws documents: drawing from the sources by weight, document after document, gives these tokens."""
    write_source(tmp_path, "long", token_documents(900, length=30))
    write_source(tmp_path, "short", token_documents(900, 10_000, length=4))
    config = DataConfig(root_dir=str(tmp_path), sources={"short": 3.0, "long": 1.0}, seq_len=8)
    assert open_data(config).shares == {"short": 0.75, "long": 0.25}
    drawn = open_data(replace(config, weights_of="documents"))
    rng = np.random.default_rng(0)
    tokens = {"short": 0, "long": 0}
    for name, n in zip(("short", "long"), rng.multinomial(100_000, [0.75, 0.25]), strict=True):
        lengths = [len(ids) for ids in shard_documents(tmp_path / name, drawn.manifests[name], "train")]
        tokens[name] = int(rng.choice(lengths, n).sum())
    assert drawn.shares["long"] == pytest.approx(tokens["long"] / sum(tokens.values()), abs=0.01)
    assert drawn.shares["long"] > 0.5
    order = drawn.order()
    counts = dict(zip(order.names, order.counts(4096) / 4096, strict=True))
    assert counts == pytest.approx(drawn.shares, abs=1e-3)
    assert drawn.fingerprint != open_data(config).fingerprint
