"""Shards that change while they are read are told, before reading them ends the process."""

import os
import shutil
from itertools import islice

import numpy as np
import pytest

from topklm.data import TokenArray, TrainLoader, read_manifest, token_array
from topklm.errors import DataError

from .synthetic import documents, two_sources, write_source


@pytest.fixture(autouse=True)
def looks_before_each_read(monkeypatch):
    monkeypatch.setattr(token_array, "_LOOK_SECONDS", 0)


@pytest.fixture
def tokens(tmp_path):
    write_source(tmp_path, "s", documents(100))
    return TokenArray(tmp_path / "s", read_manifest(tmp_path / "s"), "train")


def first(tokens, what="tokens"):
    return tokens.directory / "train" / f"{tokens.shards[0].name}.{what}.npy"


def truncate(path):
    os.truncate(path, 130)


def overwrite(path):
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"\x01\x02")


def replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(bytes(path.stat().st_size))
    os.replace(other, path)


@pytest.mark.parametrize(
    ("change", "told"),
    [(truncate, "has 130 bytes and had"), (os.remove, "is gone"), (overwrite, "hash"), (replace, "hash")],
)
def test_a_changed_shard_is_named_and_the_others_are_read(tokens, change, told):
    path = first(tokens)
    end = int(tokens.shards[0].n_tokens)
    expected = np.array(tokens.read(end, 100))
    change(path)
    os.utime(path, ns=(1, 1)) if path.exists() else None  # whatever the clock's ticks
    with pytest.raises(DataError, match=told) as caught:
        tokens.read(end - 1, 100)
    assert str(path) in str(caught.value)
    np.testing.assert_array_equal(tokens.read(end, 100), expected)


def test_a_shortened_file_of_offsets_is_told_too(tokens):
    truncate(first(tokens, "offsets"))
    with pytest.raises(DataError, match="offsets"):
        tokens.document_ids(0, 10)


def test_the_same_contents_written_again_are_allowed(tokens, caplog):
    expected = np.array(tokens.read(0, 100))
    path = first(tokens)
    shutil.copy(path, path.with_suffix(".copy"))
    os.replace(path.with_suffix(".copy"), path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(tokens.read(0, 100), expected)
    tokens.read(0, 100)
    assert caplog.text.count("with the same contents") == 1


@pytest.mark.parametrize("load_async", [False, True])
def test_the_loader_ends_at_the_step_that_reads_it(tmp_path, load_async):
    data = two_sources(tmp_path)
    loader = TrainLoader(data, global_batch_size=4, micro_batch_size=2, load_async=load_async, prefetch_size=1)
    batches = iter(loader)
    next(batches)
    for path in (tmp_path / "a" / "train").glob("*.tokens.npy"):
        truncate(path)
    with pytest.raises(DataError, match="start the same command"):
        list(islice(batches, 5))
    loader.close()
