"""Disks that are full, read-only, or broken for one rank: told with exit code 8, and nothing is lost that was saved."""

import json
import subprocess

import pytest

from tests.programs import assert_same_run, run_app, start_app, torchrun, wait_for_step
from topklm.errors import StorageError

pytestmark = pytest.mark.e2e
ENDLESS = ["steps=5000", "eval=null", "topk.anneal_steps=10"]


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB of its own: two checkpoints of the tiny run, and half of a third."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def remount(place, options):
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def assert_told(stderr, *texts):
    assert "Traceback" not in stderr, stderr
    for text in (*texts, "start the same command"):
        assert text in stderr, stderr


@pytest.mark.parametrize("async_save", ["false", "true"])
def test_a_disk_that_fills_up_in_a_save(tiny, whole, disk, async_save):
    command = ["apps.train", *tiny, f"dump_dir={disk / 'run'}", f"checkpoint.async_save={async_save}"]
    done = run_app(*command, check=StorageError.exit_code)
    assert_told(
        done.stderr, "0000000015 was not saved: rank 0: [Errno 28] No space left on device", "MiB free, and the"
    )
    assert sorted(p.name for p in (disk / "run" / "checkpoints").iterdir()) == ["0000000005", "0000000010"]
    assert json.loads((disk / "run" / "exit.json").read_text())["code"] == StorageError.exit_code
    if async_save == "false":
        remount(disk, "size=20m")
        run_app(*command)
        assert_same_run(whole, disk / "run")


def test_a_disk_without_room_for_figures(tiny, disk, tmp_path):
    """The checkpoints are elsewhere: of metrics.jsonl and train.log, the figures are worth stopping for."""
    run = disk / "run"
    process = start_app("apps.train", *tiny, *ENDLESS, f"dump_dir={run}", f"checkpoint.path={tmp_path / 'c'}")
    wait_for_step(run, 3, process)
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(8_000_000))
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == StorageError.exit_code, stderr
    assert_told(stderr, "metrics.jsonl cannot be written: No space left on device")


def test_a_disk_that_becomes_read_only(tiny, disk, tmp_path):
    run = tmp_path / "run"
    process = start_app("apps.train", *tiny, *ENDLESS, "checkpoint.dump={every: 100, keep: 1}", f"dump_dir={run}",
                        f"checkpoint.path={disk / 'checkpoints'}")  # fmt: skip
    wait_for_step(run, 3, process)
    remount(disk, "ro")
    stderr = process.communicate(timeout=120)[1]
    assert process.returncode == StorageError.exit_code, stderr
    assert_told(stderr, "0000000100 was not saved: rank 0: [Errno 30] Read-only file system")


def test_a_file_that_may_not_grow_on_one_of_two_ranks(tiny, tmp_path):
    """Needs no root: as a full disk of one node. No rank waits for the one that cannot write."""
    run = tmp_path / "run"
    env = {"FILE_LIMIT": "200000", "FILE_LIMIT_RANK": "1"}
    done = run_app(*torchrun(2), "tests.bad_disk", "apps.train", *tiny, f"dump_dir={run}", env=env, check=1, timeout=60)
    told = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert len(told) == 2  # one line for each rank
    assert all("0000000005 was not saved: rank 1: [Errno 27] File too large" in line for line in told)
    assert done.stderr.replace(" ", "").count(f"exitcode:{StorageError.exit_code}") >= 1
    assert json.loads((run / "exit.json").read_text())["code"] == StorageError.exit_code
    assert list((run / "checkpoints").iterdir()) == []
