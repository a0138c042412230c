"""Semantic entropy and coherence against their definitions, pair by pair, in Python's floats."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.errors import ConfigError
from topklm.interp import semantic_entropy
from topklm.interp.entropy.coherence import Null, coherence, false_discovery
from topklm.interp.entropy.response import responses, shared_threshold, thresholds
from topklm.interp.entropy.semantic_entropy import unit, without


def case(seed, types=24, width=5, dim=5):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 80, types)
    sums = rng.normal(0.2, 1, (types, width)) * counts[:, None]
    return sums, counts, rng.normal(0.3, 1, (types, dim))


def cosine(u, v, left_out=None):
    pairs = [(a, b) for i, (a, b) in enumerate(zip(u, v, strict=True)) if i != left_out]
    dot = math.fsum(a * b for a, b in pairs)
    return dot / math.sqrt(math.fsum(a * a for a, _ in pairs) * math.fsum(b * b for _, b in pairs))


def brute_force(sums, counts, embedding, i, *, q, share, over, min_count, bins, adaptive, left_out):
    """(semantic entropy, coherence, effective pairs) of neuron i."""
    types = [v for v in range(len(counts)) if counts[v] >= min_count]
    means = {v: float(sums[v, i]) / int(counts[v]) for v in types}
    values = sorted(max(m, 0.0) for m in means.values() if over == "all" or m > 0)
    tau = share * values[max(1, math.ceil(q / 100 * len(values))) - 1] if values else 0.0
    chosen = [v for v in types if means[v] > tau and means[v] > 0]
    if len(chosen) < 2:
        return math.nan, math.nan, math.nan
    pairs = list(itertools.combinations(chosen, 2))
    s = [cosine(embedding[u], embedding[v], i if left_out else None) for u, v in pairs]
    w = [int(counts[u]) * int(counts[v]) for u, v in pairs]
    total = sum(w)
    low, high = (min(s), max(s)) if adaptive else (-1.0, 1.0)
    p = [0.0] * bins
    for similarity, weight in zip(s, w, strict=True):
        b = int((similarity - low) / (high - low) * bins) if high > low else 0
        p[min(b, bins - 1)] += weight / total
    entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
    mean = math.fsum(weight * similarity for similarity, weight in zip(s, w, strict=True)) / total
    return entropy, mean, total**2 / sum(weight**2 for weight in w)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    q=st.sampled_from([50.0, 90.0, 99.0]),
    over=st.sampled_from(["all", "positive"]),
    min_count=st.sampled_from([1, 20]),
    adaptive=st.booleans(),
    left_out=st.booleans(),
)
def test_equals_the_definition(seed, q, over, min_count, adaptive, left_out):
    sums, counts, embedding = case(seed)
    found = semantic_entropy(
        sums, counts, embedding, percentile=q, share=0.7, over=over, min_count=min_count, bins=17,
        bin_range="adaptive" if adaptive else "fixed", leave_one_out=left_out,
    )  # fmt: skip
    kept = counts >= min_count
    means = sums[kept] / counts[kept, None]
    sets = responses(means, thresholds(means, q, 0.7, over), cap=1000)
    for i in range(5):
        expected, mean, pairs = brute_force(
            sums, counts, embedding, i, q=q, share=0.7, over=over, min_count=min_count, bins=17,
            adaptive=adaptive, left_out=left_out,
        )  # fmt: skip
        assert found[i] == pytest.approx(expected, abs=1e-9, nan_ok=True)
        rows = embedding[kept][sets[i].tokens]
        of_set = coherence(unit(without(rows, i) if left_out else rows), counts[kept][sets[i].tokens])
        assert of_set.value == pytest.approx(mean, abs=1e-9, nan_ok=True)
        assert of_set.effective_pairs == pytest.approx(pairs, rel=1e-9, nan_ok=True)


def test_a_random_set_can_have_a_lower_entropy_than_a_coherent_one():
    """Why coherence stands beside it: in many dimensions random tokens have similarities in a few bins around 0."""
    rng = np.random.default_rng(0)
    concept, sizes = rng.normal(size=256), rng.uniform(0.2, 2.5, (300, 1))
    embedding = np.concatenate([rng.normal(size=(300, 256)), rng.normal(size=(300, 256)) + sizes * concept])
    sums = np.zeros((600, 2))
    sums[:300, 0] = sums[300:, 1] = 1.0
    counts = np.ones(600, int)
    entropy = semantic_entropy(sums, counts, embedding, min_count=1)
    values = [coherence(unit(embedding[part]), np.ones(300)).value for part in (slice(300), slice(300, 600))]
    assert entropy[0] < entropy[1]
    assert abs(values[0]) < 0.01 < 0.2 < values[1]


def test_fewer_than_two_tokens_have_none_and_the_cap_keeps_the_strongest():
    means = np.array([[5.0, 1], [4, 0], [3, 0], [0, 0], [2, -1]])
    found = responses(means, np.array([0.0, 0.5]), cap=3)
    assert list(found[0].tokens) == [0, 1, 2]
    assert found[0].n == 4
    assert found[1].n == 1
    assert np.isnan(semantic_entropy(means, np.ones(5, int), np.eye(5), min_count=1, percentile=1)[1])


@given(st.lists(st.floats(-5, 5) | st.sampled_from([0.0, -0.0, 1e-300]), min_size=1, max_size=60), st.integers(1, 100))
def test_the_shared_threshold_is_an_order_statistic(values, q):
    blocks = [np.array(values[::2]), np.array(values[1::2]).reshape(-1, 1)]
    for over in ("all", "positive"):
        kept = sorted(max(v, 0.0) for v in values if over == "all" or v > 0)
        expected = kept[math.ceil(q / 100 * len(kept)) - 1] if kept else 0.0
        assert shared_threshold(lambda: iter(blocks), q, 1.0, over) == expected
        assert thresholds(np.array(values)[:, None], q, 1.0, over)[0] == expected


def test_the_null_is_the_coherence_of_random_sets_of_the_same_frequencies():
    rng = np.random.default_rng(3)
    rows, counts = unit(rng.normal(0.2, 1, (60, 8))), rng.integers(1, 40, 60)
    null = Null(rows, counts, draws=4000)
    tokens = np.array([3, 11, 17, 30, 31, 40, 58])
    drawn = [null.draw(null.profile(tokens), rng) for _ in range(4000)]
    assert all(null.profile(each) == null.profile(tokens) for each in drawn[:50])
    expected = np.array([coherence(rows[each], counts[each]).value for each in drawn])
    found = null.coherences(tokens)
    for q in (5, 50, 95):
        assert np.percentile(found, q) == pytest.approx(np.percentile(expected, q), abs=0.02)
    assert found.mean() == pytest.approx(expected.mean(), abs=0.01)


def test_p_values_of_random_sets_are_uniform_and_of_planted_ones_small():
    rng = np.random.default_rng(4)
    rows, counts = rng.normal(size=(400, 16)), rng.integers(1, 200, 400)
    rows[100:120] += 1.5 * rng.normal(size=16)
    rows = unit(rows)
    null = Null(rows, counts, draws=500, seed=1)
    sets = [rng.permutation(400)[:20] for _ in range(200)]
    p = np.array([null.p_value(coherence(rows[s], counts[s]).value, s) for s in sets])
    assert np.abs(np.quantile(p, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.12
    planted = np.arange(100, 120)
    assert null.p_value(coherence(rows[planted], counts[planted]).value, planted) == 1 / 501
    everything = np.arange(400)
    assert null.p_value(coherence(rows, counts).value, everything) == 1.0
    assert np.isnan(null.p_value(float("nan"), planted[:1]))


def test_false_discovery_rates():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.5])
    assert false_discovery(p) == pytest.approx([0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5], nan_ok=True)
    rng = np.random.default_rng(0)
    mixed = np.concatenate([rng.random(900), rng.random(100) * 1e-4])
    taken = false_discovery(mixed) <= 0.1
    assert taken[900:].all()
    assert taken[:900].sum() / taken.sum() < 0.2


def test_shapes_that_do_not_fit_are_told():
    sums, counts, embedding = case(0)
    with pytest.raises(ConfigError, match="do not fit"):
        semantic_entropy(sums, counts, embedding[:-1])
    with pytest.raises(ConfigError, match="one embedding coordinate per neuron"):
        semantic_entropy(sums, counts, embedding[:, :3], leave_one_out=True)
