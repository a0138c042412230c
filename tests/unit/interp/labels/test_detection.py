"""Scores of labels: what is counted, the interval, and the exchange of labels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.interp.labels.detection import detection, mean_interval, others, wilson


def test_the_balanced_accuracy_does_not_depend_on_how_many_of_each_there_are():
    fires = [True] * 4 + [False] * 20
    said = [True, True, True, False] + [False] * 15 + [True] * 5
    found = detection(fires, said)
    assert (found.hits, found.positives, found.rejections, found.negatives) == (3, 4, 15, 20)
    assert found.balanced == pytest.approx(0.75)
    assert detection(fires, [True] * 24).balanced == 0.5
    assert detection(fires, [False] * 24).balanced == 0.5


def test_unanswered_excerpts_are_counted_apart():
    found = detection([True, True, False, False], [None, True, None, False])
    assert (found.positives, found.negatives, found.unanswered) == (1, 1, 2)
    assert found.balanced == 1.0
    nothing = detection([True, False], [None, None])
    assert math.isnan(nothing.balanced)
    assert all(map(math.isnan, nothing.interval))


def test_the_interval_is_newcombes():
    # Wilson's of 56/70: 0.6918 to 0.8770 (Newcombe 1998, table II: of 56/70 and 48/80)
    assert wilson(56, 70) == pytest.approx((0.6918, 0.8770), abs=2e-3)
    found = detection([True] * 70 + [False] * 80, [True] * 56 + [False] * 14 + [True] * 48 + [False] * 32)
    # the difference 56/70 - 48/80 has (0.0524, 0.3339) there; the sum of p1 and 1 - p2 has the same width
    low, high = found.interval
    assert found.balanced == pytest.approx((0.8 + 0.4) / 2)
    assert 2 * low - 1 == pytest.approx(0.0524, abs=2e-3)
    assert 2 * high - 1 == pytest.approx(0.3339, abs=2e-3)


@given(st.integers(0, 30), st.integers(1, 30), st.integers(0, 30), st.integers(1, 30))
def test_the_interval_holds_its_value_and_stays_between_0_and_1(hits, more, rejected, others_):
    positives, negatives = hits + more, rejected + others_
    found = detection(
        [True] * positives + [False] * negatives,
        [True] * hits + [False] * (positives - hits) + [False] * rejected + [True] * (negatives - rejected),
    )
    low, high = found.interval
    assert -1e-12 <= low <= found.balanced <= high <= 1 + 1e-12


def test_the_interval_covers_what_is_true():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        hits, rejected = rng.binomial(20, 0.8), rng.binomial(20, 0.6)
        found = detection(
            [True] * 20 + [False] * 20, [True] * hits + [False] * (20 - hits + rejected) + [True] * (20 - rejected)
        )
        covered += found.interval[0] <= 0.7 <= found.interval[1]
    assert 0.93 <= covered / 1000 <= 0.985


def test_the_mean_over_neurons_leaves_out_those_without_a_value():
    mean, low, high = mean_interval([0.5, math.nan, 0.7, 0.9])
    assert mean == pytest.approx(0.7)
    assert (low, high) == pytest.approx((0.7 - 4.302653 * 0.2 / math.sqrt(3), 0.7 + 4.302653 * 0.2 / math.sqrt(3)))
    assert all(map(math.isnan, mean_interval([math.nan])))
    assert [math.isnan(each) for each in mean_interval([0.5])] == [False, True, True]


@pytest.mark.parametrize("n", [3, 6, 20])
def test_the_mean_of_differences_is_above_0_no_more_often_than_it_says(n):
    """Own and exchanged labels that both guess, on 20 excerpts of each kind: a bootstrap over three neurons says in
    11 % of the cases that they differ."""
    rng = np.random.default_rng(0)
    rates = rng.binomial(20, 0.5, (1000, 4, n)) / 20
    above = [mean_interval((a + b - c - d) / 2)[1] > 0 for a, b, c, d in rates]
    assert np.mean(above) < 0.045


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12), st.integers(0, 5))
def test_no_neuron_keeps_its_label_and_each_label_is_used_once(labels, seed):
    other = others(labels, seed)
    assert sorted(other) == list(range(len(labels)))
    assert all(i != j for i, j in enumerate(other))


def test_equal_labels_are_exchanged_for_different_ones_where_that_can_be():
    other = others(["the", "THE", "a", "food"], 0)
    labels = ["the", "the", "a", "food"]
    assert all(labels[i] != labels[j] for i, j in enumerate(other))
