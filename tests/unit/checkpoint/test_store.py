"""Checkpoints of one process: whole or absent, verified, retired; damage is found and named."""

import json
import logging

import pytest
import torch

from tests.unit.checkpoint.small_run import make
from topklm.checkpoint import SaveEvery, defects, list_checkpoints, newest_good
from topklm.errors import CheckpointError


@pytest.mark.parametrize("async_save", [False, True])
def test_restores_weights_and_moments_exactly(tmp_path, async_save):
    store, model, optimizer, save = make(tmp_path, async_save=async_save)
    for step in (1, 2):
        save(step)
    expected = [t.clone() for t in model.state_dict().values()]
    moments = [
        optimizer.state[p][name].clone() for p in model.parameters() for name in ("step", "exp_avg", "exp_avg_sq")
    ]
    save(3)  # moves on: an asynchronous save must have copied what it writes
    store.finish()
    fresh_store, fresh, fresh_optimizer, _ = make(tmp_path)
    state = fresh_store.restore(tmp_path / "checkpoints" / "0000000002", fresh, fresh_optimizer)
    assert state == {"step": 2}
    for a, b in zip(expected, fresh.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    restored = [fresh_optimizer.state[p][n] for p in fresh.parameters() for n in ("step", "exp_avg", "exp_avg_sq")]
    for a, b in zip(moments, restored, strict=True):
        assert torch.equal(a, b)


def test_the_layout_is_linguas(tmp_path):
    *_, save = make(tmp_path)
    save(7)
    path = tmp_path / "checkpoints" / "0000000007"
    names = {p.name for p in path.iterdir()}
    assert {".metadata", "__0_0.distcp", "params.json", "train_state_00000.json", "files.json", "tokenizer"} <= names
    metadata = torch.distributed.checkpoint.FileSystemReader(path).read_metadata()
    keys = set(metadata.state_dict_metadata)
    assert "model.0.weight" in keys
    assert any(key.startswith("optim.state.") for key in keys)
    assert json.loads((path / "params.json").read_text()) == {"name": "x"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "files.json", ".metadata"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, damage, caplog):
    store, *_, save = make(tmp_path)
    save(1)
    save(2)
    path = tmp_path / "checkpoints" / "0000000002"
    shard = path / "__0_0.distcp"
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "remove":
        shard.unlink()
    else:
        (path / damage).unlink()
    assert defects(path)
    with caplog.at_level(logging.ERROR):
        assert newest_good(store.directory).name == "0000000001"
    assert str(path) in caplog.text
    save(2)  # training comes past the step again: the broken one is moved aside, not lost
    assert not defects(path)
    assert (tmp_path / "checkpoints" / "0000000002.broken").exists()


def test_all_broken_is_an_error_and_none_is_none(tmp_path):
    store, *_, save = make(tmp_path)
    assert newest_good(store.directory) is None
    save(1)
    (store.directory / "0000000001" / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match="every checkpoint of this run is broken"):
        newest_good(store.directory)


@pytest.mark.parametrize(
    ("dump", "evaluation", "kept"),
    [
        ((1, 2), (4, 0), [4, 8, 9, 10]),
        ((1, 3), (1, 1), [8, 9, 10]),  # the union of what both keep
        ((2, 2), (0, 0), [8, 10]),
        ((3, 1), (0, 0), [9, 10]),  # 10, saved for another reason, is not the schedule's to remove
        ((1, 0), (5, 1), list(range(1, 11))),
    ],
)
def test_retention_keeps_the_newest_of_each_schedule(tmp_path, dump, evaluation, kept):
    schedules = {
        "dump": SaveEvery(every=dump[0], keep=dump[1]),
        "eval": SaveEvery(every=evaluation[0], keep=evaluation[1]),
    }
    store, *_, save = make(tmp_path, **schedules)
    for step in range(1, 11):
        if store.config.saves_at(step) or step == 10:
            save(step)
    assert [int(p.name) for p in list_checkpoints(store.directory)] == kept


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path):
    store, *_, save = make(tmp_path)
    save(1)
    (store.directory / "0000000002.tmp").mkdir()
    assert newest_good(store.directory).name == "0000000001"
    make(tmp_path)
    assert not (store.directory / "0000000002.tmp").exists()


@pytest.mark.parametrize("layers", [((4, 9), (9, 2)), ((4, 8),), ((4, 8), (8, 2), (2, 2))])
def test_a_checkpoint_of_another_model_does_not_fit(tmp_path, layers):
    """Also one with more layers, whose first ones a shallower model could take."""
    store, *_, save = make(tmp_path)
    save(1)
    other = torch.nn.Sequential(*(torch.nn.Linear(*shape) for shape in layers))
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(CheckpointError, match="does not fit this model"):
        store.restore(store.directory / "0000000001", other, optimizer)


def test_a_failure_in_the_background_is_raised(tmp_path):
    store, _, _, save = make(tmp_path, async_save=True)
    save(1)
    store.finish()
    original = store._complete
    store._complete = lambda *args: (_ for _ in ()).throw(OSError("disk full"))
    save(2)
    with pytest.raises(CheckpointError, match="disk full"):
        store.finish()
    store._complete = original
    assert newest_good(store.directory).name == "0000000001"
