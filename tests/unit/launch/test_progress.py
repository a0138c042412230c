"""How far the whole sweep is."""

import json
import logging

import pytest

from topklm.launch import plan_runs, progress
from topklm.launch.progress import SweepProgress, clock


@pytest.fixture
def runs(make_sweep):
    return plan_runs(make_sweep(grid={"model.dim": [32, 64]}))


def at_step(run, step):
    run.dump_dir.mkdir(parents=True, exist_ok=True)
    (run.dump_dir / "metrics.jsonl").write_text(json.dumps({"global_step": step, "loss/out": 1.0}) + "\n")


def test_runs_count_by_their_work_and_what_was_done_before_counts_for_the_share_but_not_for_the_speed(
    runs, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    narrow, wide = runs
    with SweepProgress(runs, {narrow.name: 10}, {narrow.name: 1.0, wide.name: 3.0}) as shown:
        assert shown.eta() == "?"
        shown.started(narrow, 10)
        at_step(narrow, 15)
        now[0] = 60.0
        shown.update()
        # 15 of 80 units of work; 5 of them took a minute, 65 are left.
        assert "0 of 2 runs finished, 18.8% of the work, eta 0:13:00: dim32 15/20" in caplog.text
        shown.ended(narrow, "finished")
        assert "dim32: finished  (1 of 2 runs finished, 25.0% of the work" in caplog.text
        shown.started(wide, 0)
        at_step(wide, 20)
        now[0] = 120.0
        shown.update()
        # It is saving its last step: not finished yet.
        assert "1 of 2 runs finished, 100.0% of the work, eta 0:00:00" in caplog.text
        shown.ended(wide, "failed", "exit code 4")
        assert "dim64: failed, exit code 4" in caplog.text


def test_files_are_not_looked_at_all_the_time(runs, monkeypatch):
    now, looked = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "last_step", lambda path: looked.append(path) or 1)
    shown = SweepProgress(runs, {}, {run.name: 1.0 for run in runs})
    shown.started(runs[0], 0)
    for _ in range(100):
        now[0] += 0.05
        shown.update()
    assert 3 <= len(looked) <= 6


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3_661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text
