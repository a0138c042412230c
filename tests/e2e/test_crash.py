"""SIGKILL in the middle of a save, of its completion and of a clean-up; scripts/soak.py is the longer version, with
kills at any moment."""

import pytest

from tests.crash import Crasher

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("async_save", ["false", "true"])
def test_killed_again_and_again_equals_never_interrupted(tiny, whole, tmp_path, async_save):
    args = [*tiny, f"checkpoint.async_save={async_save}"]
    tally = Crasher(args, whole, tmp_path, kills=3, moments=("removing", "completing", "writing")).run()
    assert tally.mismatches == []
    assert tally.kills.total() == 3
    assert tally.finished >= 1
    assert tally.steps >= 24
    assert tally.resumes >= 1, tally
