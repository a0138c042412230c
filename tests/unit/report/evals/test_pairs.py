"""Paired differences against plain float64 sums, and their intervals against repeated sampling."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.report.evals.pairs import Paired, Units, paired


def units(values, sizes=None, names=None):
    sizes = np.ones(len(values)) if sizes is None else np.asarray(sizes, np.float64)
    return Units(list(range(len(values))) if names is None else names, np.asarray(values, np.float64), sizes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.integers(1, 99)), min_size=2, max_size=60))
def test_difference_and_error_by_hand(rows):
    mine, its, sizes = zip(*rows, strict=True)
    found = paired(units(mine, sizes), units(its, sizes))
    n, total = len(rows), sum(sizes)
    difference = math.fsum(a - b for a, b, _ in rows) / total
    residuals = math.fsum((a - b - difference * size) ** 2 for a, b, size in rows)
    error = math.sqrt(n / (n - 1) * residuals) / total
    assert found.n == n
    assert found.difference == pytest.approx(difference, rel=1e-9, abs=1e-12)
    assert found.stderr == pytest.approx(error, rel=1e-9, abs=1e-12)
    if n >= 30:
        assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=1e-9, abs=1e-9)
    else:
        assert found.high - found.low > 2 * 1.96 * error or error < 1e-9


def test_of_a_mean_it_is_the_ordinary_paired_difference():
    rng = np.random.default_rng(1)
    mine, its = rng.random(200) < 0.4, rng.random(200) < 0.6
    found = paired(units(mine), units(its))
    d = mine.astype(float) - its.astype(float)
    assert found.difference == pytest.approx(d.mean())
    assert found.stderr == pytest.approx(d.std(ddof=1) / math.sqrt(200))
    assert (found.low, found.high) == pytest.approx((d.mean() - 1.96 * found.stderr, d.mean() + 1.96 * found.stderr))


@pytest.mark.parametrize("n", [5, 40])
def test_intervals_hold_the_truth_in_95_of_100_samples(n):
    """Documents of unequal length, differences that vary from one to the next around 0.3 per token."""
    rng = np.random.default_rng(0)
    hits, bootstrap_hits, repeats = 0, 0, 400
    for _ in range(repeats):
        sizes = rng.integers(50, 80, n)
        its = rng.normal(3, 1, n) * sizes
        found = paired(units(its + rng.normal(0.3, 0.2, n) * sizes, sizes), units(its, sizes))
        hits += found.low <= 0.3 <= found.high
        bootstrap_hits += found.bootstrap_low <= 0.3 <= found.bootstrap_high
    assert 0.92 <= hits / repeats <= 0.985
    assert bootstrap_hits / repeats == pytest.approx(0.94 if n == 40 else 0.83, abs=0.04)  # too narrow for few


def test_what_both_find_hard_cancels_out():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 5, 100)
    mine, its = units(hard + rng.normal(0.5, 0.1, 100)), units(hard)
    separate = math.hypot(mine.above.std(ddof=1), its.above.std(ddof=1)) / 10
    found = paired(mine, its)
    assert found.stderr < separate / 20
    assert found.low > 0


def test_the_bootstrap_is_repeatable_and_agrees():
    rng = np.random.default_rng(3)
    mine, its = units(rng.normal(0.2, 1, 500)), units(rng.normal(0, 1, 500))
    found = paired(mine, its)
    assert found == paired(mine, its)
    assert found.bootstrap_low == pytest.approx(found.low, abs=0.1 * (found.high - found.low))
    assert found.bootstrap_high == pytest.approx(found.high, abs=0.1 * (found.high - found.low))


def test_units_are_matched_by_what_they_are_and_not_by_their_place():
    names = ["a", "b", "c", "d"]
    mine = units([1, 2, 3, 4], names=names)
    its = units([40, 30, 20, 10], names=names[::-1])
    assert paired(mine, its) == paired(mine, units([10, 20, 30, 40], names=names))


@pytest.mark.parametrize(
    ("its", "reason"),
    [
        (units([1, 2, 3]), "asked 2 and 3"),
        (units([1, 2], names=[0, 7]), "not asked the same"),
        (units([1, 2], sizes=[1, 2]), "other sizes"),
        (units([1, 2], names=[0, 0]), "twice"),
    ],
)
def test_other_samples_are_refused(its, reason):
    found = paired(units([1, 2]), its)
    assert isinstance(found, str)
    assert reason in found


def test_one_unit_has_a_difference_and_no_interval():
    found = paired(units([3]), units([1]))
    assert isinstance(found, Paired)
    assert found.difference == 2
    assert math.isnan(found.stderr)
    assert math.isnan(found.low)


def test_students_percentiles():
    """Against the closed forms for 1 and 2 degrees of freedom, and nearly the normal's for many."""
    one, two = paired(units([0, 2]), units([0, 0])), paired(units([0, 3, 6]), units([0, 0, 0]))
    assert (one.high - one.difference) / one.stderr == pytest.approx(math.tan(math.pi * 0.475), rel=1e-3)
    assert (two.high - two.difference) / two.stderr == pytest.approx(
        2 * 0.475 * math.sqrt(2 / (1 - (2 * 0.475) ** 2)), rel=1e-3
    )
    many = paired(units(np.arange(29)), units(np.zeros(29)))
    assert (many.high - many.difference) / many.stderr == pytest.approx(2.0484071)
