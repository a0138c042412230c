import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data import Manifest, ShardWriter, TokenArray, read_manifest, write_manifest
from topklm.errors import DataError

from .synthetic import documents, write_source


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    max_tokens=st.integers(1, 60),
    dtype=st.sampled_from(["uint16", "uint32"]),
    data=st.data(),
)
def test_what_is_written_is_read(tmp_path_factory, lengths, max_tokens, dtype, data):
    root = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 60_000, n) for n in lengths]
    write_source(root, "s", texts, max_tokens=max_tokens, dtype=dtype)
    tokens = TokenArray(root / "s", read_manifest(root / "s"), "train")
    tokens.verify()
    everything, owner = np.concatenate(texts), np.repeat(np.arange(len(texts)), lengths)
    assert len(tokens) == len(everything)
    assert tokens.n_documents == len(texts)
    start = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(start, len(tokens)))
    np.testing.assert_array_equal(tokens.read(start, stop), everything[start:stop])
    assert tokens.read(start, stop).dtype == dtype
    np.testing.assert_array_equal(tokens.document_ids(start, stop), owner[start:stop])
    # (shard, place in it) names the same documents: count them up over the shards
    before = np.cumsum([0, *(shard.n_documents for shard in tokens.shards)])
    names = [shard.name for shard in tokens.shards]
    found = [before[names.index(name)] + place for name, place in tokens.documents_at(start, stop)]
    assert found == sorted(set(owner[start:stop].tolist()))


def test_documents_are_never_divided_and_shards_stay_below_the_limit(tmp_path):
    manifest = write_source(tmp_path, "s", [range(4), range(4), range(4), range(25), range(1)], max_tokens=10)
    assert [(s.name, s.n_tokens, s.n_documents, s.n_bytes) for s in manifest.shards] == [
        ("part_00000", 8, 2, 24),
        ("part_00001", 4, 1, 12),
        ("part_00002", 25, 1, 75),
        ("part_00003", 1, 1, 3),
    ]


def test_files_are_plain_numpy_and_nothing_temporary_remains(tmp_path):
    write_source(tmp_path, "s", [range(3), range(5)])
    folder = tmp_path / "s" / "train"
    assert sorted(p.name for p in folder.iterdir()) == ["part_00000.offsets.npy", "part_00000.tokens.npy"]
    np.testing.assert_array_equal(np.load(folder / "part_00000.tokens.npy"), [0, 1, 2, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(np.load(folder / "part_00000.offsets.npy"), [0, 3, 8])


def test_no_documents_no_files(tmp_path):
    writer = ShardWriter(tmp_path, "val", "part", "uint16", 10)
    assert writer.close() == []
    assert list((tmp_path / "val").iterdir()) == []


def test_an_interrupted_shard_is_not_left_behind(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, "train", "part", "uint16", 4) as writer:
            writer.add([1, 2, 3], 3)
            writer.add([4, 5, 6], 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["part_00000.offsets.npy", "part_00000.tokens.npy"]


@pytest.mark.parametrize(("dtype", "ids"), [("uint16", [1, 65_536]), ("uint32", [2**32]), ("uint16", [-1])])
def test_an_id_that_does_not_fit_is_refused_and_not_wrapped(tmp_path, dtype, ids):
    writer = ShardWriter(tmp_path, "train", "part", dtype, 10)
    with pytest.raises(DataError, match=f"{ids[-1]} does not fit"):
        writer.add(ids, 1)
    writer.add([np.iinfo(dtype).max], 1)
    assert writer.close()[0].n_tokens == 1


@pytest.mark.parametrize("ids", [[], [1.5]])
def test_nonsense_documents_are_refused(tmp_path, ids):
    with pytest.raises(DataError, match=r"tokens|whole"):
        ShardWriter(tmp_path, "train", "part", "uint16", 10).add(ids, 0)


def test_manifest_survives_and_its_fingerprint_knows_what_matters(tmp_path):
    manifest = write_source(tmp_path, "s", documents(100), documents(20, 500))
    assert read_manifest(tmp_path / "s") == manifest
    assert not list((tmp_path / "s").glob("*.tmp"))
    moved = dataclasses.replace(manifest, origin={"path": "elsewhere"}, source="renamed", counts={"train": 3})
    assert moved.fingerprint() == manifest.fingerprint()
    other_tokens = dataclasses.replace(manifest.shards[0], sha256="0" * 64)
    for change in (
        {"shards": [other_tokens, *manifest.shards[1:]]},
        {"shards": manifest.shards[::-1]},
        {"tokenizer": {**manifest.tokenizer, "sha256": "u" * 64}},
    ):
        assert dataclasses.replace(manifest, **change).fingerprint() != manifest.fingerprint()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "apps.prepare"),
        ("{", "damaged"),
        ("[]", "not a manifest"),
        ('{"format_version": 1}', "apps.prepare"),
        ('{"format_version": 99, "new": 1}', "version 99"),
    ],
)
def test_a_bad_manifest_says_what_to_do(tmp_path, text, says):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=says):
        read_manifest(tmp_path)


def test_a_manifest_with_a_wrong_type_is_refused(tmp_path):
    write_source(tmp_path, "s", documents(30))
    path = tmp_path / "s" / "manifest.json"
    data = json.loads(path.read_text())
    data["shards"][0]["n_tokens"] = "30"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="n_tokens"):
        read_manifest(tmp_path / "s")


def _damaged(tmp_path: Path, damage) -> Manifest:
    manifest = write_source(tmp_path, "s", documents(120), max_tokens=50)
    damage(tmp_path / "s" / "train", manifest)
    return manifest


def _truncate(folder, _):
    path = folder / "part_00001.tokens.npy"
    path.write_bytes(path.read_bytes()[:-3])


def _append(folder, _):
    with open(folder / "part_00001.tokens.npy", "ab") as file:
        file.write(b"xx")


def _other_dtype(folder, manifest):
    np.save(folder / "part_00001.tokens.npy", np.zeros(manifest.shards[1].n_tokens, np.int64))


def _other_length(folder, manifest):
    np.save(folder / "part_00001.tokens.npy", np.zeros(manifest.shards[1].n_tokens + 1, np.uint16))


def _empty(folder, _):
    (folder / "part_00001.tokens.npy").write_bytes(b"")


def _delete(folder, _):
    (folder / "part_00001.tokens.npy").unlink()


@pytest.mark.parametrize("damage", [_truncate, _append, _other_dtype, _other_length, _empty, _delete])
def test_opening_finds_damaged_files_and_names_them(tmp_path, damage):
    manifest = _damaged(tmp_path, damage)
    with pytest.raises(DataError, match=r"part_00001\.tokens\.npy") as error:
        TokenArray(tmp_path / "s", manifest, "train")
    assert "part_00000" not in str(error.value)


def test_opening_tells_all_damaged_files_at_once(tmp_path):
    manifest = write_source(tmp_path, "s", documents(120), max_tokens=50)
    (tmp_path / "s" / "train" / "part_00000.offsets.npy").unlink()
    _truncate(tmp_path / "s" / "train", manifest)
    with pytest.raises(DataError) as error:
        TokenArray(tmp_path / "s", manifest, "train")
    assert "part_00000.offsets" in str(error.value)
    assert "part_00001.tokens" in str(error.value)


def test_verify_finds_a_flipped_bit_that_opening_does_not(tmp_path):
    def flip(folder, _):
        path = folder / "part_00001.tokens.npy"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    tokens = TokenArray(tmp_path / "s", _damaged(tmp_path, flip), "train")
    with pytest.raises(DataError, match=r"part_00001\.tokens\.npy does not have the hash"):
        tokens.verify()


def test_pickling_takes_paths_not_tokens(tmp_path):
    manifest = write_source(tmp_path, "s", [np.zeros(60_000, np.int64)])
    tokens = TokenArray(tmp_path / "s", manifest, "train")
    text = pickle.dumps(tokens)
    assert len(text) < 5000
    np.testing.assert_array_equal(pickle.loads(text).read(5, 9), tokens.read(5, 9))


def test_positions_beyond_the_end_are_refused(tmp_path):
    manifest = write_source(tmp_path, "s", documents(20))
    with pytest.raises(IndexError):
        TokenArray(tmp_path / "s", manifest, "train").read(15, 21)


def test_write_manifest_replaces_the_old_one_whole(tmp_path):
    manifest = write_source(tmp_path, "s", documents(20))
    write_manifest(tmp_path / "s", dataclasses.replace(manifest, skipped={"empty": 2}))
    assert read_manifest(tmp_path / "s").skipped == {"empty": 2}
