"""Signals at awkward moments, and ranks that are lost: what is saved, the codes, what is said, and in what time."""

import json
import signal
import time

import pytest

from scripts.check_elastic import Stop, run_ranks
from tests.programs import assert_same_run, metrics
from topklm.checkpoint import list_checkpoints
from topklm.errors import EXIT_PREEMPTED, PeerError
from topklm.train.exit_record import read_exit

pytestmark = pytest.mark.dist


def saved(dump_dir):
    return [int(path.name) for path in list_checkpoints(dump_dir / "checkpoints")]


def log_of(records, rank=0):
    return (records / f"{rank}.log").read_text()


def test_every_signal_on_one_rank_or_all_is_agreed_within_a_step(tiny, tmp_path):
    """With accumulation; four processes one after the other make the run that is never stopped."""
    args = [*tiny, "data.batch_size=2", "checkpoint.dump={every: 8, keep: 0}", "eval=null", "steps=16"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_ranks([*args, f"dump_dir={whole}"], 2, tmp_path / "records") == [0, 0]
    assert read_exit(whole) | {"time": ""} == {"code": 0, "reason": "done", "step": 16, "time": "", "rank": 0}
    for at, rank, signum in ((2, 0, signal.SIGTERM), (5, 1, signal.SIGUSR1), (9, None, signal.SIGUSR2)):
        stop = Stop(at=at, rank=rank, signum=signum)
        codes = run_ranks([*args, f"dump_dir={stopped}"], 2, tmp_path / f"records.{at}", stops=[stop])
        assert codes == [EXIT_PREEMPTED] * 2
        # The signal comes when the batches of step `at` are handed out, which make `at + 1` steps.
        assert saved(stopped)[-1] == at + 1
        record = read_exit(stopped)
        assert (record["code"], record["step"]) == (EXIT_PREEMPTED, at + 1)
        assert record["reason"] == f"stopped by {signum.name}"
        assert f"{signum.name}: saved at step {at + 1}" in log_of(tmp_path / f"records.{at}", 1)
    assert run_ranks([*args, f"dump_dir={stopped}"], 2, tmp_path / "records.last") == [0, 0]
    assert metrics(stopped) == metrics(whole)
    assert_same_run(stopped, whole)


def test_in_a_validation_and_again_in_a_save_while_another_is_written(tiny, tmp_path):
    """The validation is completed, all saves are whole, and the run goes on as if nothing had been."""
    run = tmp_path / "run"
    args = [*tiny, f"dump_dir={run}", "checkpoint={async_save: true, dump: {every: 1, keep: 0}}", "steps=12"]
    stops = [Stop(at="evaluate_step", rank=1), Stop(at="rng_state", signum=signal.SIGTERM)]
    assert run_ranks(args, 2, tmp_path / "records", stops=stops[:1]) == [EXIT_PREEMPTED] * 2
    assert list(metrics(run, "val/loss@32")) == [8]
    assert saved(run) == list(range(1, 9))
    assert run_ranks(args, 2, tmp_path / "again", stops=stops[1:]) == [EXIT_PREEMPTED] * 2
    assert saved(run)[-1] in (9, 10)
    assert "broken" not in log_of(tmp_path / "again")
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize(("ranks", "moment"), [(1, "open_data"), (2, "open_data"), (2, "init_weights")])
def test_before_the_first_step(tiny, tmp_path, ranks, moment):
    run = tmp_path / "run"
    codes = run_ranks([*tiny, f"dump_dir={run}"], ranks, tmp_path, stops=[Stop(at=moment, rank=ranks - 1)])
    assert codes == [EXIT_PREEMPTED] * ranks
    assert "SIGUSR1 before the first step: nothing to save yet" in log_of(tmp_path)
    assert saved(run) == []
    assert (read_exit(run)["code"], read_exit(run)["step"]) == (EXIT_PREEMPTED, 0)


@pytest.mark.parametrize(
    ("ranks", "signum", "told"),
    [(2, signal.SIGKILL, ("closed by peer", "reset by peer")), (4, signal.SIGSTOP, ("imed out", "closed by peer"))],
    ids=["killed", "stopped, 2 x 2"],
)
def test_a_rank_that_is_gone_or_stuck_is_told_of(tiny, tmp_path, ranks, signum, told):
    """A mesh of two dimensions has groups of its own, which would wait for half an hour."""
    run = tmp_path / "run"
    args = [*tiny, f"dump_dir={run}", "distributed.timeout_minutes=0.2", "eval=null", "data.batch_size=1"]
    args.append(f"distributed.dp_replicate={ranks // 2}")
    began = time.monotonic()
    stops = [Stop(at=7, rank=ranks - 1, signum=signum)]
    codes = run_ranks(args, ranks, tmp_path, stops=stops, patience=20, limit=90)
    assert codes == [PeerError.exit_code] * (ranks - 1) + [-signal.SIGKILL]
    assert time.monotonic() - began < 90
    record = read_exit(run)
    assert (record["code"], record["step"]) == (PeerError.exit_code, 7)
    for text in (log_of(tmp_path), record["reason"]):
        assert "lost connection to another rank (" in text
        assert "its own log says why; the same command resumes from step 5" in text
    assert any(word in record["reason"] for word in told)
    assert "Traceback" not in log_of(tmp_path)


def test_what_one_rank_says_is_not_replaced_by_what_the_others_say(tiny, speeches, tmp_path):
    """Rank 1 meets an error of its own: the record has that, though the main rank has lost a peer."""
    run = tmp_path / "run"
    stops = [Stop(at=7, rank=1, signum=signal.SIGINT)]
    codes = run_ranks([*tiny, f"dump_dir={run}", "eval=null"], 2, tmp_path, stops=stops)
    assert codes == [PeerError.exit_code, 130]
    record = json.loads((run / "exit.json").read_text())
    assert (record["code"], record["rank"], record["reason"]) == (130, 1, "KeyboardInterrupt")
