"""A rank that cannot write its part of a checkpoint ends the save on all ranks, none of which waits for it."""

import pytest

from tests.programs import run_app, torchrun

pytestmark = pytest.mark.dist


def test_a_fault_on_one_rank_is_told_by_all_and_costs_no_checkpoint(tmp_path):
    done = run_app(*torchrun(2), "tests.dist.save_program", tmp_path, timeout=120)
    assert "rank 0 done" in done.stdout
    assert "rank 1 done" in done.stdout
