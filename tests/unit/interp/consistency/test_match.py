"""Matchings against all permutations, in float64, and what nearest neighbours promise about them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.errors import DataError
from topklm.interp.consistency.match import cosine_blocks, cosines, hungarian, nearest


def unit(rng, m, d):
    rows = rng.normal(size=(m, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def best_by_trying(scores):
    """The largest sum over one-to-one matchings of all of the smaller side."""
    scores = scores if scores.shape[0] <= scores.shape[1] else scores.T
    m, n = scores.shape
    return max(sum(scores[i, p[i]] for i in range(m)) for p in itertools.permutations(range(n), m))


sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 5), seeds, st.booleans())
def test_no_permutation_is_better(m, n, d, seed, absolute):
    rng = np.random.default_rng(seed)
    found = cosines(unit(rng, m, d), unit(rng, n, d))
    matching = hungarian(found, absolute=absolute)
    scores = np.abs(found) if absolute else found
    assert len(matching.a) == min(m, n)
    assert len(set(matching.a)) == len(set(matching.b)) == min(m, n)
    np.testing.assert_array_equal(matching.cosine, scores[matching.a, matching.b])
    assert matching.cosine.sum() == pytest.approx(best_by_trying(scores), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 8), seeds)
def test_a_permuted_dictionary_is_found_and_gives_one(m, d, seed):
    rng = np.random.default_rng(seed)
    a, order = unit(rng, m, d), rng.permutation(m)
    matching = hungarian(cosines(a, a[order]))
    np.testing.assert_array_equal(order[matching.b], matching.a)
    np.testing.assert_allclose(matching.cosine, 1.0, rtol=0, atol=1e-15)
    flipped = a[order] * rng.choice([-1, 1], size=(m, 1))
    absolute = hungarian(cosines(a, flipped), absolute=True)
    np.testing.assert_array_equal(order[absolute.b], absolute.a)
    np.testing.assert_allclose(absolute.cosine, 1.0, rtol=0, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), seeds, st.integers(1, 200))
def test_nearest_neighbours_in_any_blocks(m, n, d, seed, block_bytes):
    rng = np.random.default_rng(seed)
    a, b = unit(rng, m, d).round(1), unit(rng, n, d).round(1)  # rounded: with ties
    scores = cosines(a, b)
    blocks = list(cosine_blocks(a, b, block_bytes))
    assert all(len(block) == 1 or block.nbytes <= block_bytes for _, block in blocks)
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), scores, atol=1e-15)
    found = nearest([(start, scores[start : start + len(block)]) for start, block in blocks], m, n)
    np.testing.assert_array_equal(found.b_of_a, scores.argmax(1))
    np.testing.assert_array_equal(found.a_of_b, scores.argmax(0))
    np.testing.assert_array_equal(found.cosine_a, scores.max(1))
    np.testing.assert_array_equal(found.cosine_b, scores.max(0))
    pairs = [(i, int(j)) for i, j in enumerate(scores.argmax(1)) if scores[:, j].argmax() == i]
    mutual = found.mutual()
    assert list(zip(mutual.a.tolist(), mutual.b.tolist(), strict=True)) == pairs
    np.testing.assert_array_equal(mutual.cosine, [scores[pair] for pair in pairs])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(1, 5), seeds)
def test_nearest_neighbours_bound_the_matching(m, n, d, seed):
    rng = np.random.default_rng(seed)
    scores = cosines(unit(rng, m, d), unit(rng, n, d))
    assert hungarian(scores).cosine.mean() <= nearest([(0, scores)], m, n).upper + 1e-12


def test_cosines_stay_within_one_and_refuse_what_has_none():
    rows = np.full((2, 3), 1 / np.sqrt(3), np.float32) * np.float32(1 + 1e-6)
    assert cosines(rows, rows).max() == 1.0
    with pytest.raises(DataError, match="NaN"):
        cosines(rows, np.full((2, 3), np.nan))
