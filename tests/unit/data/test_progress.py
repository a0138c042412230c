"""The estimate of how much is done."""

from __future__ import annotations

import logging

from topklm.data.progress import PrepareProgress


def test_unfinished_items_count_by_their_text() -> None:
    progress = PrepareProgress("web", total=100, already=20, size_of_a_byte=0.5)
    assert progress.done(40) == 20  # nothing finished: the first guess
    progress.finish(20, 100)  # a byte of text is 0.2 in size
    assert progress.done(100) == 20
    assert progress.done(150) == 30
    assert progress.done(10**6) == 80  # never more than there is
    assert progress.done(50) == 20  # nor less than what is finished


def test_time_left_is_logged_without_a_terminal(caplog, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = PrepareProgress("web", total=100, already=50, size_of_a_byte=1.0)
    with caplog.at_level(logging.INFO):
        now[0] = 9.0
        progress.update(1, 10)
        assert not caplog.records
        now[0] = 10.0
        progress.update(3, 10)
    (record,) = caplog.records
    assert record.getMessage() == "web: 60 %, 3 documents, 0.0 MB/s, time left 0:00:40"
