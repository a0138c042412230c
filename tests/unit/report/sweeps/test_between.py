"""Points of a sweep against its first one."""

import math

import pytest

from tests.unit.report.sweeps.conftest import changed
from topklm.report.sweeps.between import between_table
from topklm.report.sweeps.groups import group
from topklm.report.sweeps.rows import read_rows
from topklm.report.sweeps.spread import RatioSpread


def table(runs):
    found = read_rows(runs)
    return between_table(group(found.rows), found)


def test_each_seed_against_the_same_seed(runs):
    (row,) = table(runs).rows  # k 32 has not finished
    ratios = (105.0 / 120.0, 112.2 / 121.0)
    assert row["values"] == ", ".join(f"{ratio:.3f}" for ratio in ratios)
    assert row["ratio"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
    assert (row["low"], row["high"]) == pytest.approx(RatioSpread(ratios).interval)
    assert row["seeds"] == 2
    assert row["verdict"] == "inconclusive"


def test_a_seed_that_one_of_them_lacks_is_left_out(runs):
    (row,) = table(changed(runs, "k2-s2", state="partial", step=50)).rows
    assert row["seeds"] == 1
    assert row["low"] is None
    assert row["verdict"] == "inconclusive"


def test_what_differs_excludes_one_and_is_beyond_what_is_detectable():
    assert RatioSpread((0.90, 0.91, 0.905)).differs
    assert not RatioSpread((0.9, 1.2, 1.0)).differs
    # Its interval excludes 1 (barely), but so small a ratio would mostly be missed.
    close = RatioSpread(tuple(math.exp(x) for x in (0.045, 0.1, 0.155)))
    near = RatioSpread(tuple(math.exp(x + 0.04) for x in (0.045, 0.1, 0.155)))
    assert close.interval[0] < 1
    assert near.interval[0] > 1
    assert near.detectable > math.exp(0.14)
    assert not near.differs
