"""What a run writes beside checkpoints, on /dev/full: figures are worth stopping for, the log is not."""

import logging
from pathlib import Path

import pytest

from topklm.errors import StorageError
from topklm.train.metrics import append_line
from topklm.train.outputs import _RunLog

FULL = Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")


def test_figures_that_cannot_be_written_are_an_error_that_names_the_file():
    with pytest.raises(StorageError, match="/dev/full cannot be written: No space left on device; make room"):
        append_line(FULL, {"global_step": 1})


def test_a_log_that_cannot_be_written_is_told_once(capsys):
    handler = _RunLog(FULL)
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "step"}))
    handler.close()
    assert capsys.readouterr().err == "/dev/full cannot be written: No space left on device\n"
