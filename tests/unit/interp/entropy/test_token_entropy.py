"""Token entropy against definitions written out with Python's floats, and where its value is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.errors import ConfigError
from topklm.interp import token_entropy
from topklm.interp.entropy.token_entropy import token_explained, token_figures


def brute_force(sums, counts, negative, min_count, positive=None):
    entropies = []
    for i in range(sums.shape[1]):
        means = []
        for v in range(len(counts)):
            if counts[v] >= max(1, min_count):
                mean = float(sums[v, i]) / int(counts[v])
                if negative == "relu_first":
                    mean = float(positive[v, i]) / int(counts[v])
                means.append(abs(mean) if negative == "abs" else max(mean, 0.0))
        total = math.fsum(means)
        shares = [mean / total for mean in means if mean > 0] if total > 0 else []
        entropies.append(-math.fsum(p * math.log(p) for p in shares) if shares else math.nan)
    return np.array(entropies)


def table(seed, types=13, width=7, scale=1.0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 60, types)
    sums = rng.normal(0, 1, (types, width)) * counts[:, None] * scale
    sums[:, 0] = 0  # silent
    sums[:, 1] = -np.abs(sums[:, 1])  # never positive
    positive = np.maximum(sums, 0) + rng.random((types, width)) * counts[:, None] * scale
    return sums, counts, positive


@given(seed=st.integers(0, 10**6), min_count=st.sampled_from([1, 5, 20]), exponent=st.integers(-280, 200))
def test_equals_the_definition(seed, min_count, exponent):
    sums, counts, positive = table(seed, scale=10.0**exponent)
    for negative in ("clamp", "abs", "relu_first"):
        found = token_entropy(sums, counts, negative=negative, min_count=min_count, positive_sums=positive)
        np.testing.assert_allclose(found, brute_force(sums, counts, negative, min_count, positive), rtol=0, atol=1e-9)


@given(seed=st.integers(0, 10**6), cut=st.integers(1, 12))
def test_the_order_and_the_blocks_of_types_change_nothing(seed, cut):
    sums, counts, _ = table(seed)
    whole = token_figures([(counts, sums)], 7, negative="clamp", min_count=3)
    order = np.random.default_rng(seed).permutation(len(counts))
    blocks = [(counts[part], sums[part]) for part in (order[:cut], order[cut:])]
    parts = token_figures(blocks, 7, negative="clamp", min_count=3)
    for name in ("entropy", "mass_entropy", "negative_mass", "effective", "normalised"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(parts.types, whole.types)
    assert parts.n_types == whole.n_types == (counts >= 3).sum()


def test_m_equal_tokens_have_the_entropy_ln_m_and_m_effective_tokens():
    counts = np.array([30, 50, 20, 90, 40])
    planted = np.zeros((5, 3))
    planted[2, 0] = 20 * 1.5  # one type
    planted[:4, 1] = counts[:4] * 0.3  # four, whatever their frequencies
    figures = token_figures([(counts, planted)], 3, negative="clamp", min_count=1)
    assert figures.entropy[0] == 0
    assert figures.entropy[1] == pytest.approx(math.log(4), abs=1e-12)
    assert figures.effective[1] == pytest.approx(4)
    assert figures.normalised[1] == pytest.approx(math.log(4) / math.log(5))
    assert list(figures.types) == [1, 4, 0]
    shares = counts[:4] / counts[:4].sum()
    assert figures.mass_entropy[1] == pytest.approx(-(shares * np.log(shares)).sum())


def test_silent_neurons_are_nan_and_negative_ones_have_their_discarded_mass():
    counts = np.full(4, 25)
    sums = np.array([[0.0, -1, 3], [0, -2, -1], [0, -1, 0], [0, -4, 0]]) * 25
    figures = token_figures([(counts, sums)], 3, negative="clamp", min_count=1)
    assert np.isnan(figures.entropy[:2]).all()
    assert np.isnan(figures.negative_mass[0])
    assert list(figures.negative_mass[1:]) == [1, 0.25]


def test_a_dense_gaussian_neuron_over_32000_types_has_9_40_nats():
    means = np.random.default_rng(0).normal(size=(32_000, 8))
    assert token_entropy(means, np.ones(32_000, int), min_count=1) == pytest.approx(9.40, abs=0.02)


def test_a_small_corpus_lowers_the_estimate():
    """Why no entropy is shown without its number of tokens: the same neuron, measured on ever more tokens."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 2001)
    frequency /= frequency.sum()
    chance = rng.random(2000) * 0.02  # how often a sparse neuron fires on each type
    found = []
    for n in (10_000, 100_000, 1_000_000):
        counts = rng.multinomial(n, frequency)
        found.append(token_entropy(rng.binomial(counts, chance)[:, None], counts, min_count=1)[0])
    true = token_entropy(chance[:, None], np.ones(2000, int), min_count=1)[0]
    assert found[0] < found[1] < found[2] < true + 0.02
    assert found[0] < true - 0.5


def test_shapes_and_words_that_do_not_fit_are_told():
    with pytest.raises(ConfigError, match=r"\[5, 2\] and \[4\]"):
        token_entropy(np.zeros((5, 2)), np.ones(4, int))
    with pytest.raises(ConfigError, match="needs positive_sums"):
        token_entropy(np.zeros((5, 2)), np.ones(5, int), negative="relu_first")
    with pytest.raises(ConfigError, match="clamp, abs, relu_first"):
        token_entropy(np.zeros((5, 2)), np.ones(5, int), negative="drop")


def test_the_share_of_variance_that_the_token_explains():
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 6, 500)
    activation = np.stack([tokens * 2.0, rng.normal(size=500), tokens + rng.normal(size=500), np.ones(500)], 1)
    counts = np.bincount(tokens, minlength=8)
    sums = np.stack([np.bincount(tokens, column, minlength=8) for column in activation.T], 1)
    eta, epsilon = token_explained([(counts, sums)], activation.sum(0), (activation**2).sum(0))
    for i in range(3):
        a = activation[:, i]
        within = sum(((a[tokens == v] - a[tokens == v].mean()) ** 2).sum() for v in range(6))
        total = ((a - a.mean()) ** 2).sum()
        assert eta[i] == pytest.approx(1 - within / total)
        assert epsilon[i] == pytest.approx(1 - (within / (500 - 6)) / (total / 499))
    assert eta[0] == pytest.approx(1)
    assert abs(epsilon[1]) < 0.02 < eta[2] < 1
    assert np.isnan(eta[3])
    assert np.isnan(epsilon[3])
