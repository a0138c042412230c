"""`exit.json` says how a run ended, whoever noticed."""

from types import SimpleNamespace

import pytest

from topklm.errors import EXIT_PREEMPTED, DataError, NonFiniteError, PeerError, StorageError
from topklm.train.exit_record import ExitRecord, read_exit


def test_it_runs_and_then_it_is_done(tmp_path):
    with ExitRecord(tmp_path, 0) as record:
        assert read_exit(tmp_path)["code"] is None  # what stays when the process is killed
        record.trainer = SimpleNamespace(step=12)
        record.ends_with(EXIT_PREEMPTED, "SIGTERM")
    found = read_exit(tmp_path)
    assert (found["code"], found["reason"], found["step"]) == (EXIT_PREEMPTED, "stopped by SIGTERM", 12)
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]


def test_another_rank_writes_only_what_it_fails_of(tmp_path):
    with ExitRecord(tmp_path, 1) as record:
        record.ends_with(0)
    assert read_exit(tmp_path) == {}
    with pytest.raises(PeerError), ExitRecord(tmp_path, 1):
        raise PeerError("another rank is gone")
    assert read_exit(tmp_path) == {}
    with pytest.raises(DataError), ExitRecord(tmp_path, 1):
        raise DataError("a shard is damaged")
    assert (read_exit(tmp_path)["code"], read_exit(tmp_path)["rank"]) == (3, 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [(NonFiniteError("nan"), 4), (PeerError("gone"), 9), (ValueError("?"), 1), (KeyboardInterrupt(), 130)],
)
def test_codes_are_those_of_the_program(tmp_path, error, code):
    with pytest.raises(type(error)), ExitRecord(tmp_path, 0):
        raise error
    assert read_exit(tmp_path)["code"] == code
    assert read_exit(tmp_path)["reason"]


def fail(dump_dir, rank, error, path=None):
    with ExitRecord(dump_dir, rank) as record:
        record.path = path or record.path
        raise error


def test_the_cause_is_not_replaced_by_its_consequence(tmp_path):
    with ExitRecord(tmp_path, 0):
        with pytest.raises(DataError):
            fail(tmp_path, 1, DataError("a shard is damaged"))
        ExitRecord(tmp_path, 0).__exit__(PeerError, PeerError("rank 1 is gone"), None)
        assert read_exit(tmp_path)["reason"] == "a shard is damaged"


def test_a_disk_that_is_full_does_not_hide_what_ended_the_run(tmp_path, caplog):
    with pytest.raises(NonFiniteError):
        fail(tmp_path, 0, NonFiniteError("nan"), path=tmp_path / "gone" / "exit.json")
    assert "cannot be written" in caplog.text


def test_a_disk_that_is_full_at_the_start_is_told_and_gets_no_leftovers(tmp_path):
    """A directory stands where the file belongs: it can be written, but not renamed."""
    (tmp_path / "exit.json" / "x").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"exit\.json cannot be written: .*make room"), ExitRecord(tmp_path, 0):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]
