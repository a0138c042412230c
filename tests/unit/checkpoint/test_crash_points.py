"""A process that dies at any file operation of a save, of its completion or of a clean-up leaves a run to resume."""

import itertools
import os
import re
import shutil
import signal
import sys

import pytest
import torch

from tests.unit.checkpoint.small_run import make
from topklm.checkpoint import SaveEvery, defects, list_checkpoints, newest_good, step_of

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
"""What Python tells its audit hooks of, before it is done."""


def dies_at(n, work):
    """Whether a copy of this process that kills itself at its n-th file operation came to it while it did `work`."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL)
        return status == signal.SIGKILL
    number = itertools.count(1)

    def hook(event, args):
        if event in EVENTS and next(number) == n:
            os.kill(os.getpid(), signal.SIGKILL)

    signal.alarm(60)
    sys.addaudithook(hook)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("async_save", [False, True])
def test_a_crash_at_every_file_operation(tmp_path, async_save):
    _, before, _, save = make(tmp_path, dump=SaveEvery(every=1, keep=1))
    save(1)
    left = set()
    for n in itertools.count(1):
        place = tmp_path / str(n)
        shutil.copytree(tmp_path / "checkpoints", place / "checkpoints")

        def save_and_retire(place=place):
            store, *_, save = make(place, dump=SaveEvery(every=1, keep=1), async_save=async_save)
            save(2)
            store.finish()

        died = dies_at(n, save_and_retire)
        left |= {re.sub(r"\d{10}", "step", p.name) for p in (place / "checkpoints").iterdir()}
        store, model, optimizer, save = make(place, dump=SaveEvery(every=1, keep=1))
        assert not any(defects(path) for path in list_checkpoints(store.directory))
        path = newest_good(store.directory)
        assert store.restore(path, model, optimizer)["step"] == step_of(path)
        if step_of(path) == 1:
            assert all(map(torch.equal, before.state_dict().values(), model.state_dict().values()))
        save(3)
        assert [p.name for p in store.directory.iterdir()] == ["0000000003"]
        if not died:
            break
    assert n > 25  # or the hook does not see them
    assert left == {"step", "step.tmp"}


def test_what_is_renamed_is_durable(tmp_path, monkeypatch):
    """A power cut after the rename must not leave empty files: each was synced when it had all its bytes."""
    synced, at_rename = {}, {}
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        synced[os.readlink(f"/proc/self/fd/{handle}")] = os.fstat(handle).st_size
        fsync(handle)

    def note_replace(source, target):
        for folder, _, names in os.walk(source):
            at_rename.update({os.path.join(folder, name): None for name in names})
            at_rename[folder] = None
        for path in at_rename:
            at_rename[path] = (synced.get(path), os.stat(path).st_size)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    store, *_, save = make(tmp_path)
    save(1)
    assert {"__0_0.distcp", ".metadata", "params.json", "t.model"} <= {os.path.basename(path) for path in at_rename}
    late = [path for path, (then, now) in at_rename.items() if then != now and not os.path.isdir(path)]
    assert late == []
    assert str(store.directory) in synced
    assert all(then is not None for then, _ in at_rename.values())
