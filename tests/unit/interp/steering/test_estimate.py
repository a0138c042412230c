"""Rates, perplexities, intervals and the test against controls, by hand."""

import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.interp.steering.concept import Concept
from topklm.interp.steering.estimate import Bootstrap, count, draws, permutation_test
from topklm.interp.steering.samples import Sample

CONCEPT = Concept(tokens=np.array([2, 7]), n=2, corpus_rate=0.1)


def sample(ids, nll=0.0):
    return Sample(neuron=None, offset=0.0, sample=0, text="", ids=ids, nll=nll, finish_reason="length")


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=12), st.floats(0, 100)), min_size=1, max_size=8))
def test_pooled_figures_are_those_of_exact_fractions(texts):
    cell = count([sample(ids, nll) for ids, nll in texts], CONCEPT)
    tokens = sum(len(ids) for ids, _ in texts)
    pairs = sum(max(0, len(ids) - 1) for ids, _ in texts)
    if not tokens:
        assert math.isnan(cell.rate)
        assert math.isnan(cell.perplexity)
        return
    hits = sum(ids.count(2) + ids.count(7) for ids, _ in texts)
    assert cell.rate == float(Fraction(hits, tokens))
    assert cell.perplexity == pytest.approx(math.exp(math.fsum(nll for _, nll in texts) / tokens), rel=1e-12)
    repeated = sum(n - 1 for ids, _ in texts for n in Counter(pairwise(ids)).values())
    if pairs:
        assert cell.repeated_share == repeated / pairs


def test_intervals_are_quantiles_over_the_same_draws_of_texts():
    rng = np.random.default_rng(3)
    a, b = (
        [sample(rng.integers(0, 9, rng.integers(1, 20)).tolist(), rng.uniform(1, 9)) for _ in range(6)] for _ in "ab"
    )
    x, y = count(a, CONCEPT), count(b, CONCEPT)
    bootstrap = Bootstrap(6, 500, seed=4, level=0.9)
    drawn = draws(6, 500, 4)
    rates, logs, gains, prices = [], [], [], []
    for rows in drawn:
        rate_x, rate_y = (sum(c.hits[i] for i in rows) / sum(c.tokens[i] for i in rows) for c in (x, y))
        loss_x, loss_y = (sum(c.nll[i] for i in rows) / sum(c.tokens[i] for i in rows) for c in (x, y))
        rates.append(rate_x)
        gains.append(rate_x - rate_y)
        logs.append(math.exp(loss_x))
        prices.append(math.exp(loss_x) / math.exp(loss_y))
    for found, value, expected in (
        (bootstrap.rate(x), x.rate, rates),
        (bootstrap.gain(x, y), x.rate - y.rate, gains),
        (bootstrap.lead(x, [y, y]), x.rate - y.rate, gains),
        (bootstrap.perplexity(x), x.perplexity, logs),
        (bootstrap.price(x, y), x.perplexity / y.perplexity, prices),
    ):
        assert found.value == pytest.approx(value, rel=1e-12)
        assert found[1:] == pytest.approx(np.quantile(expected, [0.05, 0.95]), rel=1e-12)


def test_a_cell_against_itself_has_no_difference():
    cell = count([sample([1, 2, 3], 4.0), sample([2], 1.0)], CONCEPT)
    bootstrap = Bootstrap(2, 100, seed=0, level=0.95)
    assert bootstrap.gain(cell, cell) == (0.0, 0.0, 0.0)
    assert bootstrap.price(cell, cell) == (1.0, 1.0, 1.0)


def test_cells_without_tokens_are_left_out_of_the_controls_mean():
    cell, empty = count([sample([2, 1]), sample([2, 2])], CONCEPT), count([sample([]), sample([])], CONCEPT)
    bootstrap = Bootstrap(2, 100, seed=0, level=0.95)
    assert bootstrap.lead(cell, [empty, cell]).value == 0.0
    assert math.isnan(bootstrap.lead(cell, [empty]).value)


def test_the_permutation_test_by_hand():
    # Neuron 0 leads at the second dose only; at the first one control leads more clearly.
    rates = np.array([[0.1, 0.9], [0.1, 0.1], [0.7, 0.1], [0.1, 0.1]])
    z = (rates - rates.mean(0)) / rates.std(0)
    largest = z.max(1)
    p_doses, p = permutation_test(rates, np.array([1.0, 1.0]))
    np.testing.assert_allclose(p_doses, [(largest >= z[0, 0]).mean(), 0.5])
    assert p == 0.5  # it ties with the control that leads at the first dose
    p_doses, p = permutation_test(rates[:, 1:], np.array([1.0]))
    assert (p, p_doses.tolist()) == (0.25, [0.25])
    p_doses, p = permutation_test(rates[:, 1:], np.array([-1.0]))  # a negative offset should lower it
    assert (p, p_doses.tolist()) == (1.0, [1.0])
    p_doses, p = permutation_test(np.full((4, 2), 0.3), np.array([1.0, 1.0]))
    assert (p, p_doses.tolist()) == (1.0, [1.0, 1.0])


def test_p_is_uniform_if_the_steered_neuron_is_one_like_the_others():
    rng = np.random.default_rng(0)
    found = np.array([permutation_test(rng.random((10, 5)), np.ones(5))[1] for _ in range(4000)])
    for level in (0.1, 0.3, 0.5):
        assert (found <= level + 1e-9).mean() == pytest.approx(level, abs=0.03)
    adjusted = np.array([permutation_test(rng.random((10, 5)), np.ones(5))[0].min() for _ in range(2000)])
    assert (adjusted <= 0.1 + 1e-9).mean() == pytest.approx(0.1, abs=0.03)
