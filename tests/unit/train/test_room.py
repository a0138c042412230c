"""Whether the checkpoints of a run fit on their disk is told before training."""

import shutil

import pytest

from topklm.checkpoint import CheckpointConfig, SaveEvery
from topklm.data import DataConfig
from topklm.errors import StorageError
from topklm.model import ModelConfig
from topklm.train import TrainConfig
from topklm.train.room import BYTES_PER_PARAMETER, check_room, max_kept

NEVER = SaveEvery(every=0)
TWO_KEPT = CheckpointConfig(dump=SaveEvery(every=10, keep=2), eval=NEVER)


def config(tmp_path):
    return TrainConfig(
        dump_dir=str(tmp_path / "run"), data=DataConfig(root_dir="d", sources={"a": 1.0}), steps=100,
        model=ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=50), checkpoint=TWO_KEPT,
    )  # fmt: skip


@pytest.fixture
def free(monkeypatch):
    def set_free(n_checkpoints, run):
        n_bytes = int(n_checkpoints * BYTES_PER_PARAMETER * run.model.n_params)
        usage = shutil._ntuple_diskusage(10 * n_bytes, 9 * n_bytes, n_bytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    return set_free


@pytest.mark.parametrize(("n_free", "held", "warns"), [(3, 0, False), (2.9, 0, True), (1.1, 2, False), (1.9, 1, True)])
def test_what_is_kept_and_one_more_must_fit(tmp_path, free, caplog, n_free, held, warns):
    run = config(tmp_path)
    for step in range(10, 10 * held + 1, 10):
        (run.checkpoint_dir / f"{step:010d}").mkdir(parents=True)
    (run.checkpoint_dir / "0000000007").mkdir(parents=True)  # of a signal: it frees no room for those of the schedule
    free(n_free, run)
    check_room(run, is_main=True)
    assert ("exit code 8" in caplog.text) == warns


def test_one_must_fit_unless_all_is_done(tmp_path, free):
    run = config(tmp_path)
    free(0.9, run)
    with pytest.raises(StorageError, match=r"needs about 0\.\d MiB: make room"):
        check_room(run, is_main=True)
    (run.checkpoint_dir / f"{run.steps:010d}").mkdir(parents=True)
    check_room(run, is_main=True)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("checkpoints", "kept"),
    [
        (TWO_KEPT, 2),
        (CheckpointConfig(dump=SaveEvery(every=10), eval=NEVER), 10),
        (CheckpointConfig(dump=SaveEvery(every=10, keep=1), eval=SaveEvery(every=25, keep=2)), 2),
        (CheckpointConfig(dump=NEVER, eval=NEVER), 1),
        (CheckpointConfig(dump=SaveEvery(every=30, keep=1), eval=NEVER), 2),  # 90, and 100 at the end
    ],
)
def test_how_many_are_kept(checkpoints, kept):
    assert max_kept(checkpoints, 100) == kept
