"""Preparation: what the shards hold, and that neither workers nor interruptions can be seen in them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.data.corpus import Killed, documents, interrupt_after, shard_documents, tree, write_jsonl
from topklm.config import build
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig, PrepareTokenizerConfig
from topklm.data.shards import read_manifest
from topklm.data.sources import SourceConfig
from topklm.data.split import split_of
from topklm.data.tokenizers import open_saved_tokenizer
from topklm.errors import ConfigError, DataError


@given(text=st.text(), fraction=st.floats(0, 1, exclude_max=True), salt=st.text(max_size=5))
def test_split_moves_only_one_way_as_the_fraction_grows(text: str, fraction: float, salt: str) -> None:
    assert split_of(text, 0.0, salt) == "train"
    if split_of(text, fraction, salt) == "val":
        assert split_of(text, (1 + fraction) / 2, salt) == "val"


def test_split_has_the_share_that_was_asked_for() -> None:
    share = sum(split_of(f"text {i}", 0.1, "s") == "val" for i in range(5000)) / 5000
    assert abs(share - 0.1) < 0.015
    differ = sum(split_of(f"text {i}", 0.5, "s") != split_of(f"text {i}", 0.5, "t") for i in range(1000))
    assert 400 < differ < 600


def test_split_rule_is_the_documented_one() -> None:
    value = int.from_bytes(hashlib.sha256(b"salt\0caf\xc3\xa9").digest()[:8], "big") / 2**64
    assert split_of("café", value + 1e-9, "salt") == "val"
    assert split_of("café", value - 1e-9, "salt") == "train"


def test_shards_hold_the_documents(config: PrepareConfig) -> None:
    manifest = prepare(config)["web"]
    out = Path(config.out_dir) / "web"
    assert read_manifest(out) == manifest
    for split in ("train", "val"):
        expected = [text for text in documents(200) if split_of(text, 0.2, "topklm") == split]
        found = shard_documents(out, manifest, split)
        assert found == [[256, *text.encode(), 257] for text in expected]
        assert manifest.counts[split]["documents"] == len(expected) > 20
        assert manifest.counts[split]["bytes"] == sum(len(text.encode()) for text in expected)
        assert manifest.counts[split]["tokens"] == sum(map(len, found))
    assert (manifest.dtype, manifest.tokenizer["vocab_size"]) == ("uint16", 258)
    assert len(manifest.shards) > 10
    assert open_saved_tokenizer(out / "tokenizer").sha256 == manifest.tokenizer["sha256"]
    assert not (out / ".preparing").exists()
    assert (out / "skipped.jsonl").read_bytes() == b""


def test_no_bos_no_eos_and_small_shards(config: PrepareConfig) -> None:
    config = replace(config, add_bos=False, add_eos=False, shard_tokens=500, item_bytes=10**6)
    manifest = prepare(config)["web"]
    texts = [text for text in documents(200) if split_of(text, 0.2, "topklm") == "train"]
    assert shard_documents(Path(config.out_dir) / "web", manifest, "train") == [list(t.encode()) for t in texts]
    assert max(shard.n_tokens for shard in manifest.shards) <= 500


@pytest.mark.parametrize("item_bytes", [50, 777, 10**6])
def test_tokens_do_not_depend_on_the_size_of_items(config: PrepareConfig, item_bytes: int) -> None:
    write_jsonl(Path(config.sources["web"].path), documents(30))
    manifest = prepare(replace(config, item_bytes=item_bytes))["web"]
    found = shard_documents(Path(config.out_dir) / "web", manifest, "train")
    texts = [text for text in documents(30) if split_of(text, 0.2, "topklm") == "train"]
    assert found == [[256, *text.encode(), 257] for text in texts]


def test_duplicates_are_on_one_side(config: PrepareConfig, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "more.jsonl", documents(200)[::-1])
    more = SourceConfig(kind="jsonl", path=str(tmp_path / "more.jsonl"))
    manifests = prepare(replace(config, sources={**config.sources, "more": more}))
    sides = {
        split: {
            bytes(ids[1:-1])
            for name in ("web", "more")
            for ids in shard_documents(Path(config.out_dir) / name, manifests[name], split)
        }
        for split in ("train", "val")
    }
    assert not sides["train"] & sides["val"]
    assert len(sides["train"] | sides["val"]) == 200


def test_wide_vocabulary_gets_uint32(config: PrepareConfig, tmp_path: Path) -> None:
    vocab = {"<s>": 0, "</s>": 1, "the": 2, "law": 70_000, "<unk>": 3}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    file = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    write_jsonl(tmp_path / "docs.jsonl", ["the law", "law"])
    tokenizer = PrepareTokenizerConfig(name="hf", path=str(tmp_path / "tokenizer.json"))
    manifest = prepare(replace(config, tokenizer=tokenizer, val_fraction=0.0))["web"]
    assert manifest.dtype == "uint32"
    found = shard_documents(Path(config.out_dir) / "web", manifest, "train")
    assert found == [[0, 2, 70_000, 1], [0, 70_000, 1]]


def test_workers_cannot_be_seen_in_the_result(config: PrepareConfig, tmp_path: Path) -> None:
    prepare(config)
    parallel = replace(config, out_dir=str(tmp_path / "parallel"), workers=2)
    prepare(parallel)
    assert tree(Path(config.out_dir)) == tree(Path(parallel.out_dir))


@pytest.mark.parametrize("where", ["__call__", "_write"])
def test_interrupted_and_resumed_is_the_same(config: PrepareConfig, tmp_path: Path, monkeypatch, where: str) -> None:
    whole = replace(config, out_dir=str(tmp_path / "whole"))
    n_items = len({shard.name[:5] for shard in prepare(whole)["web"].shards})
    done = []
    for n in (3, 2):
        with monkeypatch.context() as patch:
            begun = interrupt_after(patch, n, where)
            with pytest.raises(Killed):
                prepare(config)
        done += begun[:n]
        with pytest.raises(DataError, match="not finished"):
            read_manifest(Path(config.out_dir) / "web")
    with monkeypatch.context() as patch:
        begun = interrupt_after(patch, 1000, where)
        prepare(config)
    assert done + begun == list(range(n_items)), "finished items are not made again"
    assert tree(Path(config.out_dir)) == tree(Path(whole.out_dir))


def test_remains_of_a_killed_attempt_do_no_harm(config: PrepareConfig, tmp_path: Path, monkeypatch) -> None:
    whole = replace(config, out_dir=str(tmp_path / "whole"))
    prepare(whole)
    interrupt_after(monkeypatch, 2, "__call__")
    with pytest.raises(Killed):
        prepare(config)
    monkeypatch.undo()
    out = Path(config.out_dir) / "web"
    (out / ".preparing" / "attempt-x" / "train").mkdir(parents=True)
    (out / ".preparing" / "items" / "00004.json.tmp").write_text("{")
    (out / "train" / "00003_00000.tokens.npy").write_bytes(b"half")  # renamed, but the record was not reached
    prepare(config)
    assert tree(Path(config.out_dir)) == tree(Path(whole.out_dir))


def test_unfinished_preparation_refuses_another_configuration(config: PrepareConfig, monkeypatch) -> None:
    interrupt_after(monkeypatch, 2, "__call__")
    with pytest.raises(Killed):
        prepare(config)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"add_eos: was True, is False\n.*split.val_fraction: was 0.2, is 0.3"):
        prepare(replace(config, add_eos=False, val_fraction=0.3))
    path = Path(config.sources["web"].path)
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    with pytest.raises(ConfigError, match=r"input .* has changed .*docs\.jsonl"):
        prepare(config)
    assert prepare(replace(config, overwrite=True))["web"].counts["train"]["documents"] > 100


def test_finished_preparation_is_left_alone(config: PrepareConfig, caplog) -> None:
    manifest = prepare(config)["web"]
    before = {p: p.stat().st_mtime_ns for p in Path(config.out_dir).rglob("*") if p.is_file() and p.name != ".lock"}
    Path(config.sources["web"].path).unlink()  # the input is no longer needed
    with caplog.at_level(logging.INFO):
        assert prepare(replace(config, workers=2, max_skipped=5)) == {"web": manifest}
    assert "prepared already" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_finished_preparation_refuses_another_configuration(config: PrepareConfig) -> None:
    prepare(config)
    other = replace(config, split_salt="other")
    with pytest.raises(ConfigError, match=r"split.salt: was 'topklm', is 'other'"):
        prepare(other)
    assert read_manifest(Path(config.out_dir) / "web").split["salt"] == "topklm"
    keep = Path(config.out_dir) / "web" / "notes.txt"
    keep.write_text("mine")
    assert prepare(replace(other, overwrite=True))["web"].split["salt"] == "other"
    assert keep.read_text() == "mine"


def test_interrupted_overwriting_goes_on(config: PrepareConfig, monkeypatch) -> None:
    prepare(config)
    before = tree(Path(config.out_dir))
    interrupt_after(monkeypatch, 2, "__call__")
    with pytest.raises(Killed):
        prepare(replace(config, overwrite=True))
    monkeypatch.undo()
    with pytest.raises(DataError, match="not finished"):
        read_manifest(Path(config.out_dir) / "web")
    prepare(config)
    assert tree(Path(config.out_dir)) == before


def test_a_second_source_is_added_to_a_finished_one(config: PrepareConfig, tmp_path: Path) -> None:
    first = prepare(config)["web"]
    write_jsonl(tmp_path / "more.jsonl", documents(20, seed=1))
    more = SourceConfig(kind="jsonl", path=str(tmp_path / "more.jsonl"))
    manifests = prepare(replace(config, sources={**config.sources, "more": more}))
    assert manifests["web"] == first
    assert sum(manifests["more"].counts[s]["documents"] for s in ("train", "val")) == 20


def test_foreign_directories_are_not_touched(config: PrepareConfig) -> None:
    mine = Path(config.out_dir) / "web" / "train" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not a preparation"):
            prepare(replace(config, overwrite=overwrite))
    assert mine.read_text() == "mine"


def test_two_preparations_at_once(config: PrepareConfig) -> None:
    Path(config.out_dir).mkdir()
    with open(Path(config.out_dir) / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another preparation is at work"):
            prepare(config)
    prepare(config)


def add_bad_lines(config: PrepareConfig, n: int) -> None:
    path = Path(config.sources["web"].path)
    lines = path.read_text().splitlines()
    for i in range(n):
        lines.insert(10 * i + 5, f'{{"text": 7, "id": "x{i}"}}' if i % 2 else "{broken")
    path.write_text("\n".join(lines) + "\n")


def test_bad_documents_are_counted_and_listed(config: PrepareConfig) -> None:
    add_bad_lines(config, 5)
    manifest = prepare(replace(config, max_skipped=5))["web"]
    assert manifest.skipped == {"broken_json": 3, "wrong_type": 2}
    assert sum(manifest.counts[s]["documents"] for s in ("train", "val")) == 200
    listed = [json.loads(line) for line in (Path(config.out_dir) / "web" / "skipped.jsonl").read_text().splitlines()]
    assert [bad["reason"] for bad in listed] == ["broken_json", "wrong_type"] * 2 + ["broken_json"]
    assert {bad["source"] for bad in listed} == {"web"}
    assert listed[1]["id"] == "x1"
    text = Path(config.sources["web"].path).read_bytes()
    assert all(text[int(bad["location"].rsplit(" ", 1)[1]) :].startswith((b"{broken", b'{"text": 7')) for bad in listed)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("limit", [4, 0.02])
def test_too_many_bad_documents(config: PrepareConfig, limit: float, workers: int) -> None:
    add_bad_lines(config, 5)
    with pytest.raises(DataError) as error:
        prepare(replace(config, max_skipped=limit, workers=workers))
    message = str(error.value)
    assert "source web" in message
    assert f"max_skipped={limit}" in message
    assert "docs.jsonl:byte" in message
    assert "broken_json" in message
    assert not (Path(config.out_dir) / "web" / "manifest.json").exists()
    # A higher limit goes on from there.
    assert prepare(replace(config, max_skipped=0.03))["web"].skipped == {"broken_json": 3, "wrong_type": 2}


def test_a_wrong_field_is_noticed_early(config: PrepareConfig, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "docs.jsonl", ["x"] * 5000)
    source = replace(config.sources["web"], text_field="body")
    with pytest.raises(DataError, match=r"1000 of 1000 .*\n.*no field body; there are: text"):
        prepare(replace(config, sources={"web": source}, max_skipped=0.5, item_bytes=10**6))


def test_no_documents(config: PrepareConfig, tmp_path: Path, caplog) -> None:
    (tmp_path / "docs.jsonl").write_text("")
    with pytest.raises(DataError, match="its files are empty"):
        prepare(config)
    write_jsonl(tmp_path / "docs.jsonl", [t for t in documents(9) if split_of(t, 0.2, "topklm") == "train"])
    prepare(replace(config, overwrite=True))
    assert "no document was held out" in caplog.text


def test_wanted_bos_must_exist(config: PrepareConfig, tmp_path: Path) -> None:
    file = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**file, "added_tokens": []}))
    tokenizer = PrepareTokenizerConfig(name="hf", path=str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="add_bos=false"):
        prepare(replace(config, tokenizer=tokenizer))


@pytest.mark.parametrize("limit", [float("nan"), -1, 1.01, float("inf")])
def test_a_limit_must_be_a_number_or_a_share(limit: float) -> None:
    with pytest.raises(ConfigError) as error:
        build(PrepareConfig, {"max_skipped": limit, "out_dir": "x", "sources": {"a": {"kind": "text", "path": "x"}}})
    assert "max_skipped" in {problem.key for problem in error.value.problems}


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        build(
            PrepareConfig,
            {
                "sources": {"tokenizer": {"kind": "text", "path": "x"}, "b": {"kind": "jsonl"}},
                "tokenizer": {"name": "bytes", "path": "x", "train": {"vocab_size": 12}},
                "val_fraction": 1.0,
                "max_skipped": 1.5,
                "item_bytes": 0,
                "workers": -1,
                "shard_size": 3,
            },
        )
    keys = {problem.key for problem in error.value.problems}
    assert keys == {
        "out_dir", "sources.tokenizer", "sources.b.path", "tokenizer.path", "tokenizer.train",
        "tokenizer.train.vocab_size", "val_fraction", "max_skipped", "item_bytes", "workers", "shard_size",
    }  # fmt: skip
