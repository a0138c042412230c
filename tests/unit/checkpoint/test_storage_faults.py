"""A save that cannot be written: told with what to do, nothing left behind, nothing removed, and the next one works."""

import errno
import os
import resource
import shutil
from contextlib import contextmanager

import pytest

from tests.unit.checkpoint.small_run import make
from topklm.checkpoint import SaveEvery, defects, integrity, list_checkpoints, newest_good
from topklm.checkpoint import store as store_module
from topklm.errors import CheckpointError, StorageError


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def no_large_files(limit=600):
    """The writes of this process fail beyond `limit` bytes of a file, also those from within torch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def patched(owner, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, full)
        yield


FAULTS = {
    "params.json": (lambda: patched(store_module, "write_json"), "No space left"),
    "tokenizer": (lambda: patched(shutil, "copytree"), "No space left"),
    "weights": (no_large_files, "File too large"),
    "hashing": (lambda: patched(store_module, "digest"), "No space left"),
    "syncing": (lambda: patched(store_module, "make_durable"), "No space left"),
    "renaming": (lambda: patched(os, "replace"), "No space left"),
}


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_save_that_fails_costs_nothing_but_itself(tmp_path, fault, async_save):
    store, *_, save = make(tmp_path, dump=SaveEvery(every=1, keep=1), async_save=async_save)
    save(1)
    store.finish()
    inject, reason = FAULTS[fault]

    def save_all():
        save(2)
        store.finish()

    with inject(), pytest.raises(StorageError, match=reason) as caught:
        save_all()
    assert str(store.directory / "0000000002") in str(caught.value)
    assert "start the same command" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert [p.name for p in store.directory.iterdir()] == ["0000000001"]
    assert not defects(store.directory / "0000000001")
    save(3)
    store.finish()
    assert [p.name for p in list_checkpoints(store.directory)] == ["0000000003"]
    assert not defects(newest_good(store.directory))


def test_a_checkpoint_that_cannot_be_removed_is_no_reason_to_stop(tmp_path, caplog):
    store, *_, save = make(tmp_path, dump=SaveEvery(every=1, keep=1))
    save(1)
    with patched(shutil, "rmtree"):
        save(2)
    assert "could not be removed" in caplog.text
    assert newest_good(store.directory).name == "0000000002"
    make(tmp_path)  # the next start removes what is left
    assert [p.name for p in store.directory.iterdir()] == ["0000000002"]


def test_a_directory_that_vanished_between_saves_is_made_anew(tmp_path, caplog):
    """Older checkpoints are lost, but not what was trained since."""
    store, *_, save = make(tmp_path, dump=SaveEvery(every=1, keep=2))
    save(1)
    shutil.rmtree(store.directory)
    save(2)
    assert newest_good(store.directory).name == "0000000002"
    assert f"{store.directory} has vanished" in caplog.text


def test_a_directory_that_vanishes_in_a_save_is_told(tmp_path, monkeypatch):
    store, *_, save = make(tmp_path)

    def vanish(path):
        shutil.rmtree(store.directory)
        return integrity.digest(path)

    monkeypatch.setattr(store_module, "digest", vanish)
    with pytest.raises(StorageError, match="No such file"):
        save(1)


def test_weights_that_cannot_be_read_are_told_without_a_traceback(tmp_path):
    store, model, optimizer, save = make(tmp_path)
    save(1)
    path = store.directory / "0000000001"
    (path / "__0_0.distcp").write_bytes(bytes((path / "__0_0.distcp").stat().st_size))
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        store.restore(path, model, optimizer)
    assert "Traceback" not in str(caught.value)
